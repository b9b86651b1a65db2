"""Whether a run goes on with the data that it stopped with, and all its processes read the same."""

from collections.abc import Mapping, Sequence

from mmgpt.config import UserError
from mmgpt.datasets.fingerprint import Fingerprint, difference
from mmgpt.datasets.source import Source
from mmgpt.distributed import ProcessGroup
from mmgpt.files import read_json
from mmgpt.training.train_state import ResumePoint

Data = dict[str, list[tuple[str, Fingerprint]]]  # of each stage its sources: name and fingerprint


def same_data(sources: Mapping[str, Sequence[Source]], start: ResumePoint | None, ranks: ProcessGroup) -> Data:
    """The fingerprints of the sources of each stage, for the checkpoints to come.

    Args:
        sources: by the name of the stage, in the order of the stages.
        start: the checkpoint that the run goes on from.
        ranks: each reads its own disk.
    Raises:
        UserError: if data differ from those at the checkpoint, or between the processes; names source and difference.
    """
    data = {stage: [(source.name, source.fingerprint()) for source in own] for stage, own in sources.items()}
    if start:
        ranks.on_main(lambda: _check(start, data))
    for rank, other in enumerate(ranks.gather(data)):
        found = _first_difference(data, other, list(data))
        if found:
            raise UserError(
                f"process {rank} of {ranks.world_size} reads other data, {found} (then: process {ranks.rank}); "
                "give all machines the same files"
            )
    return data


def _check(start: ResumePoint, data: Data) -> None:
    """Compare with a checkpoint, but for stages that are done. One of an earlier version tells nothing of its data."""
    before = read_json(start.folder / "trainer_state.json").get("data", {})
    found = _first_difference(before, data, list(data)[start.stage :])
    if found:
        raise UserError(
            f"{start.folder}: the data have changed since, {found}; put them back, "
            f"or choose another --out, with init_from={start.folder} to begin with these weights"
        )


def _first_difference(
    before: Mapping[str, Sequence[tuple[str, Fingerprint]]], now: Data, stages: list[str]
) -> str | None:
    for stage in stages:
        for (_, old), (name, new) in zip(before.get(stage, []), now[stage], strict=False):
            words = difference(old, new)
            if words:
                return f"those of {name} in stage {stage}: {words}"
    return None

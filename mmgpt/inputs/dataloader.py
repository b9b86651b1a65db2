"""The stream of training steps: samples drawn in order, rendered, and cut into micro-batches.

Step k holds draws k * batch_size to (k + 1) * batch_size, whatever the number of ranks and workers, so the position of
a training in its data is the step and where each source's draws are; there is no buffer to rebuild. Of W ranks, rank r
takes every W-th draw of each step, from its r-th on.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.mixture import MixtureSampler, SamplerState
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source
from mmgpt.inputs.batch import Batch, collate_packed, pack, split_into_micro_batches
from mmgpt.inputs.objectives import rows_of
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import Objective, Rendered
from mmgpt.inputs.trimming import TooLong

CONNECTIONS = 8  # reads at a time of a process whose samples come over a network
NUM_MEASURED_SAMPLES = 32  # samples that tell how many tokens those of a source have


@dataclass(frozen=True)
class StepBatches:
    """What one optimizer step learns from, or a rank's share of it.

    Attributes:
        batches: micro-batches of similar lengths.
        counts: samples drawn, skipped and trimmed, by source: `{"easy_vqa": {"samples": 64, "skipped": 1}}`.
        epochs: how often each source has been gone through.
        faults: reasons of what was skipped.
        position: where the draws of the next step begin.
    """

    batches: list[Batch]
    counts: dict[str, Counter[str]]
    epochs: dict[str, float]
    faults: list[str] = field(default_factory=list)
    position: SamplerState | None = None


class StepDataset(IterableDataset[StepBatches | UserError]):
    """StepData from step `start` on; a fault of the user's data comes as the error itself, and ends it.

    Args:
        order: of the draws; the stream ends with it.
        micro_batch_tokens: padded tokens that a micro-batch holds at most.
        micro_batch_media: media of one modality that a micro-batch, and a packed row, holds at most.
        pack_length: pack samples into rows of up to so many tokens; None gives each a row of its own.
        start: the first step.
        position: of its draws, as the step before told it; None walks there from the first draw.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        order: MixtureSampler,
        renderer: Renderer,
        *,
        objective: Objective,
        batch_size: int,
        micro_batch_tokens: int,
        micro_batch_media: int | None = None,
        pack_length: int | None = None,
        start: int = 0,
        position: SamplerState | None = None,
        word_dropout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources, self.order, self.renderer, self.objective = list(sources), order, renderer, objective
        self.batch_size, self.micro_batch_tokens = batch_size, micro_batch_tokens
        self.start, self.position = start, position
        self.micro_batch_media, self.pack_length = micro_batch_media, pack_length
        self.word_dropout, self.rank, self.world_size = word_dropout, rank, world_size

    def __iter__(self) -> Iterator[StepBatches | UserError]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        draws = self.order.draw(self.start * self.batch_size, self.position)
        step = self.start
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            while drawn := list(islice(draws, self.batch_size)):
                if (step - self.start) % workers == mine:
                    try:
                        data: StepBatches | UserError = self._step(drawn, step, draws.position, pool)
                    except (
                        UserError
                    ) as error:  # handed on as a value: torch wraps what a worker raises into its traceback
                        data = error
                    yield data
                step += 1

    def _step(
        self, drawn: list[tuple[int, int]], step: int, after: SamplerState, pool: ThreadPoolExecutor
    ) -> StepBatches:
        rendered, faults = [], []
        counts = {source.name: Counter[str]() for source in self.sources}
        numbered = list(enumerate(drawn, start=step * self.batch_size))[self.rank :: self.world_size]
        over_network = any(source.is_remote for source in self.sources)
        samples = (pool.map if over_network else map)(self._read, (draw for _, draw in numbered))
        for (number, (which, _)), sample in zip(numbered, samples, strict=True):
            own = counts[self.sources[which].name]
            own["samples"] += 1
            try:
                if isinstance(sample, MediaError):
                    raise sample
                for one in self._render(sample, number):
                    rendered.append(one)
                    own["trimmed"] += one.is_trimmed
            except (MediaError, TooLong) as error:
                own["skipped"] += 1
                faults.append(str(error))
        epochs = {one.name: count / len(one) for one, count in zip(self.sources, after["counts"], strict=True)}
        return StepBatches(self._batches(rendered), counts, epochs, faults, after)

    def _read(self, draw: tuple[int, int]) -> Sample | MediaError:
        source, index = draw
        try:
            return self.sources[source][index]
        except MediaError as error:  # handed on: it is counted in the order of the draws
            return error

    def _render(self, sample: Sample, sample_number: int) -> Iterator[Rendered]:
        for part in rows_of(sample, self.objective):
            yield self.renderer.render(part, self.objective, sample_number, self.word_dropout)

    def _batches(self, rendered: list[Rendered]) -> list[Batch]:
        if self.pack_length:
            rows = pack(rendered, self.pack_length, self.micro_batch_media)
        else:
            rows = [[one] for one in rendered]
        groups = split_into_micro_batches(rows, self.micro_batch_tokens, self.micro_batch_media)
        return [collate_packed(group, self.objective) for group in groups]


def mean_tokens(source: Source, renderer: Renderer, objective: Objective) -> float:
    """Tokens of a source's samples, the mean of a few that lie evenly in it."""
    lengths = []
    for index in range(0, len(source), max(1, len(source) // NUM_MEASURED_SAMPLES)):
        try:
            rows = rows_of(source[index], objective)
            lengths.append(sum(len(renderer.render(row, objective).ids) for row in rows))
        except (MediaError, TooLong):
            continue
    if not lengths:
        raise UserError(
            f"{source.name}: none of {NUM_MEASURED_SAMPLES} samples can be read and fits the context; "
            "see mmgpt data check"
        )
    return sum(lengths) / len(lengths)


def iterate_steps(stream: StepDataset, workers: int) -> Iterator[StepBatches]:
    """Iterate over a stream in `workers` processes (0: in this one), in the same order for any number of them.

    Raises:
        UserError: when it comes to a sample that is wrong, other than by a medium or its length.
    """
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    for data in loader:
        if isinstance(data, UserError):
            raise data
        yield data


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A shell's Ctrl-C and torchrun's SIGTERM go to a group of processes; the main one needs its workers to the end."""
    os.setpgrp()

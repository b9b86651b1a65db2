"""Checkpoints: a loadable model folder with, beside it, all that going on exactly takes.

`<run>/<stage>/checkpoint-<step>/` is written under another name and moved into place, so a killed writer leaves the
previous one. Randomness is seeded by (seed, stage, step) and data are drawn by step, so step and optimizers are all.
"""

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from mmgpt.checkpoints.save_load import save_bundle, set_weights
from mmgpt.config import UserError, build, old_spellings_allowed, read_yaml, to_yaml
from mmgpt.files import load_weights, write_folder
from mmgpt.model.bundle import ModelBundle
from mmgpt.training.lora import merged, unmerged_state
from mmgpt.training.recipe import Recipe


@dataclass(frozen=True)
class ResumePoint:
    """Where a run stands: `step` updates of stage number `stage` are done."""

    stage: int
    step: int
    folder: Path


def save_checkpoint(
    bundle: ModelBundle,
    optimizers: Sequence[Optimizer],
    folder: Path,
    trainer_state: dict[str, Any],
    averages: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one checkpoint folder, whole or not at all; `trainer_state` goes to trainer_state.json.

    Adapters are merged into the model's weights, so that it answers with their effect; apart from them they go to the
    state, as the running `averages` of parameters do.

    Raises:
        OSError: if the disk is full or refuses; the checkpoints before it are as they were.
    """

    def fill(draft: Path) -> None:
        state = optimizer_state(bundle.model, optimizers)
        state |= {f"{name}/weight": weight for name, weight in unmerged_state(bundle.model).items()}
        state |= {f"{name}/average": average for name, average in (averages or {}).items()}
        with _quiet():
            save(state, checkpoint_id=draft / "state", no_dist=True)
        with merged(bundle.model):
            save_bundle(bundle, draft, with_golden=False)
        (draft / "trainer_state.json").write_text(json.dumps(trainer_state))

    write_folder(folder, fill)


def load_checkpoint(bundle: ModelBundle, optimizers: Sequence[Optimizer], folder: Path) -> dict[str, Tensor]:
    """Read weights and optimizer state back, bit for bit; the parameters stay the objects that the optimizers hold.

    Returns:
        The running averages, by the names of parameters; none where the stage takes none.
    Raises:
        UserError: if a file is absent or damaged, as where the folder was copied in part.
    """
    with merged(bundle.model):
        set_weights(bundle.model, load_weights(folder, bundle.model.device), str(folder), assign=False)
    state = _load_state(folder)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, kind = key.split("/")
        by_name.setdefault(name, {})[kind] = value.to(bundle.model.device)
    averages = {name: kinds.pop("average") for name, kinds in by_name.items() if "average" in kinds}
    for name, weight in unmerged_state(bundle.model).items():
        weight.copy_(by_name[name].pop("weight"))
    learning: dict[Tensor, str] = {parameter: name for name, parameter in bundle.model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if by_name.get(learning[parameter]):
                optimizer.state[parameter] = by_name[learning[parameter]]
    return averages


def _load_state(folder: Path) -> dict[str, Tensor]:
    try:
        stored = FileSystemReader(folder / "state").read_metadata().state_dict_metadata
        state = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in stored.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with _quiet():
            load(state, checkpoint_id=folder / "state", no_dist=True)
    except Exception as error:  # a half pickle or tensor fails in as many ways as it can be cut
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: its state is absent or damaged ({reason}); remove the folder to go on from the one before it"
        ) from None
    return state


def optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Moments and step counts as `parameter/kind`. A parameter without a gradient so far has none, and gets none.

    torch's own `get_optimizer_state_dict` would take an empty step to make them up, and so change what is trained.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{kind}": value
        for optimizer in optimizers
        for parameter, own in optimizer.state.items()
        for kind, value in own.items()
        if value is not None
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning, and with an error that has its cause, in place of the one that gathers those of all ranks."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*single process")  # it is one, on purpose
            yield
    except CheckpointException as error:  # no Exception, so that no `except` for one would see it
        cause = next((one for one, _ in error.failures.values()), error)
        raise RuntimeError(str(cause)) from cause


def newest(run: Path, stages: Sequence[str]) -> ResumePoint | None:
    """The last checkpoint of the last stage that has one."""
    for number in reversed(range(len(stages))):
        steps = checkpoint_steps(run / stages[number])
        if steps:
            return ResumePoint(number, steps[-1], run / stages[number] / f"checkpoint-{steps[-1]}")
    return None


def checkpoint_steps(stage: Path) -> list[int]:
    """Steps of a stage's checkpoints, in order."""
    found = [re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in stage.glob("checkpoint-*")]
    return sorted(int(match.group(1)) for match in found if match)


def keep_last(stage: Path, count: int) -> None:
    """Remove all but the last checkpoints of a stage."""
    for step in checkpoint_steps(stage)[:-count]:
        shutil.rmtree(stage / f"checkpoint-{step}")


def is_finished(run: Path, stages: Sequence[str]) -> bool:
    """True if the final model stands.

    Raises:
        UserError: if it does though the last stage, unlike one before it, was never trained.
    """
    final = run / "final"
    files = ("model.safetensors", "model.safetensors.index.json")
    if not (final / "config.json").is_file() or not any((final / name).is_file() for name in files):
        return False
    at = newest(run, stages)
    if at and at.stage + 1 < len(stages):
        raise UserError(
            f"{final}: is there, but the last checkpoint is {at.folder} and stage {stages[-1]} has none; "
            f"remove {final} to train the rest, or choose another --out"
        )
    return True


def check_same_recipe(run: Path, recipe: Recipe) -> None:
    """Refuse to go on with a run under another recipe.

    Raises:
        UserError: names the first line that differs.
    """
    file = run / "config.yaml"
    if not file.is_file():
        found = next(iter(sorted(run.glob("*/checkpoint-*"))), None)
        if found:
            raise UserError(
                f"{run}: has no config.yaml, which says whose run {found} is of; copy it too, or choose another --out"
            )
        return
    before, now = file.read_text(encoding="utf-8", errors="replace"), to_yaml(recipe)
    if before != now:  # perhaps in the spellings of an earlier release alone
        with contextlib.suppress(UserError), old_spellings_allowed():
            before = to_yaml(build(Recipe, read_yaml(file), str(file)))
    if before != now:
        pairs = zip(before.splitlines(), now.splitlines(), strict=False)
        old, new = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("its length", "another"))
        raise UserError(
            f"{run}: holds a run of another recipe (there {old!r}, now {new!r}); choose another --out, "
            "or remove the folder to start anew"
        )

"""Runs that stop as a crash stops them, and go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmgpt.training.loop import Run, train
from mmgpt.training.recipe import Recipe


class Stopped(Exception):
    """Raised in the middle of a training."""


def train_until(step: int, recipe: Recipe, stage: str | None = None, **options: Any) -> None:
    """Train until so many steps of a stage (of any, if none is named) are done; what was saved then is all there is."""

    def on_record(record: dict[str, Any]) -> None:
        if record.get("event") == "tick" and record["step"] == step and stage in (None, record["stage"]):
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, device="cpu", on_record=on_record, **options)


def train_in_two(step: int, recipe: Recipe, stage: str | None = None, **options: Any) -> Run:
    """The same, then go on to the end."""
    train_until(step, recipe, stage, **options)
    return train(recipe, device="cpu", **options)


def assert_same_weights(one: Path, other: Path, file: str = "final/model.safetensors") -> None:
    """Two runs have a file with the same weights, bit for bit."""
    ours, theirs = load_file(one / file), load_file(other / file)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

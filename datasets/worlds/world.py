"""Worlds: seeded generators of samples. Index and seed give the same sample on every machine, without a file.

Training never holds the `UNSEEN` pairs of color and shape or the `UNSEEN_SOUNDS`, in media or in words; every picture
and clip of the test split holds one, and what is asked of a single thing is asked of it.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.datasets.worlds.scenes import scene_lookups, scene_places, scenes
from mmgpt.datasets.worlds.sounds import scene_sounds, sound_lookups, sound_places, sounds
from mmgpt.datasets.worlds.stories import stories

World = Callable[[random.Random, str], Sample]  # what to draw from, and the split


def only(world: World, branches: slice) -> World:
    """A world's samples with some of their branches alone."""

    def drawn(rng: random.Random, split: str) -> Sample:
        made = world(rng, split)
        return replace(made, branches=made.branches[branches])

    return drawn


CAPTION, QUESTIONS = slice(1), slice(1, None)
WORLDS: dict[str, World] = {
    "stories": stories,
    "scenes": scenes,
    "scene_questions": only(scenes, QUESTIONS),
    "scene_captions": only(scenes, CAPTION),
    "scene_places": scene_places,
    "scene_lookups": scene_lookups,
    "sounds": sounds,
    "sound_questions": only(sounds, QUESTIONS),
    "sound_captions": only(sounds, CAPTION),
    "sound_places": sound_places,
    "sound_lookups": sound_lookups,
    "scene_sounds": scene_sounds,
}


class WorldConfig(SourceConfig):
    """A generated source: which world, how many samples, from which seed."""

    reader: Literal["world"]
    name: str
    size: PositiveInt = 100_000
    seed: int = 0

    @model_validator(mode="after")
    def _has_no_rows(self) -> Self:
        if self.ignore:
            raise ValueError("ignore is of sources that read rows; a world makes its own: leave it out")
        return self


class WorldSource(Source):
    """Samples of a world."""

    def __init__(self, config: WorldConfig, data_root: Path) -> None:
        if config.name not in WORLDS:
            raise UserError(f"world {config.name!r} does not exist; {did_you_mean(config.name, WORLDS)}")
        if config.split not in ("train", "test"):
            raise UserError(f"split {config.split!r} of world {config.name} does not exist; worlds have train and test")
        self.config, self.name = config, config.label or config.name
        super().__init__(config, config.size, config.name)

    def __getitem__(self, index: int) -> Sample:
        origin = f"{self.config.seed}/{self.config.split}/{index}"
        made = WORLDS[self.config.name](random.Random(origin), self.config.split)
        return Sample(made.messages, self.name, f"{self.name}/{origin}", made.branches)

"""Tasks are YAML: data, the pool of exemplars, how to answer, which metrics."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mmgpt.config import Config, UserError, build, find_config, read_yaml
from mmgpt.datasets.episodes import EpisodesConfig
from mmgpt.datasets.readers import AnySource, open_source
from mmgpt.datasets.source import Source
from mmgpt.evaluation.item import Item, items_of
from mmgpt.evaluation.metrics import METRICS
from mmgpt.evaluation.shots import ShotConfig
from mmgpt.generation.sampling import GenerateConfig


class TaskConfig(Config):
    """A benchmark."""

    name: str
    data: AnySource
    exemplars: AnySource | None = None  # where shots and the text-only guess come from: never the test split
    kind: Literal["generate", "choose", "classify", "rank", "score"] = "generate"
    choices: list[str] | None = Field(default=None, min_length=2)  # for choose: the same for every item ...
    distractors: PositiveInt | None = None  # ... or so many answers of other items beside the right one
    normalise: bool = False  # for choose: log-probability a token
    generate: GenerateConfig = GenerateConfig(max_new_tokens=32)
    shots: ShotConfig = ShotConfig()
    metrics: list[str] = Field(["exact_match"], min_length=1)
    version: int = 1  # raise it when a change moves the scores

    @model_validator(mode="after")
    def _choices_and_metrics_fit(self) -> Self:
        own = isinstance(self.data, EpisodesConfig)
        if self.kind == "choose" and not own and (self.choices is None) == (self.distractors is None):
            raise ValueError("kind=choose needs either choices or distractors")
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown:
            raise ValueError(f"metric {unknown[0]!r} does not exist; known: {', '.join(METRICS)}")
        return self


def load_task(name: str | Path) -> TaskConfig:
    """A task by its name among those that come with mmgpt, or from a YAML file.

    Raises:
        UserError: if there is none, or it does not fit the schema.
    """
    return build(TaskConfig, read_yaml(name, "tasks"), str(find_config(name, "tasks")))


class Task:
    """A task with its data opened."""

    def __init__(self, config: TaskConfig, data_root: str | Path = ".") -> None:
        self.config = config
        self.test = open_source(config.data, data_root)
        self.pool: Source | None = open_source(config.exemplars, data_root) if config.exemplars else None

    def items(self, limit: int | None = None) -> list[Item]:
        """The first `limit` items, with their choices, which do not depend on the limit."""
        items: list[Item] = []
        for index in range(len(self.test)):
            items += items_of(self.test[index])
            if limit and len(items) >= limit and self.config.distractors is None:
                break
        if self.config.kind == "generate" or (items[0].choices and not self.config.choices):
            return items[:limit]
        answers = sorted({item.reference for item in items})
        return [replace(item, choices=self._choices(item, answers)) for item in items[:limit]]

    def _choices(self, item: Item, answers: list[str]) -> tuple[str, ...]:
        if self.config.choices:
            if item.reference not in self.config.choices:
                raise UserError(f"{item.key}: its reference {item.reference!r} is not among the choices")
            return tuple(self.config.choices)
        rng = random.Random(f"{self.config.name}/{item.key}")
        others = [answer for answer in answers if answer != item.reference]
        wanted = self.config.distractors or 0
        if len(others) < wanted:
            raise UserError(
                f"task {self.config.name}: {wanted} distractors asked for, only {len(others)} other answers exist"
            )
        shown = [item.reference, *rng.sample(others, wanted)]
        rng.shuffle(shown)
        return tuple(shown)

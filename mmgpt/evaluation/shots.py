"""Which exemplars an item gets.

Exemplars depend on (seed, task, item, k) alone: not on batch, order or world size.
"""

import random
from typing import Literal, NamedTuple

from mmgpt.config import Config, UserError
from mmgpt.datasets.sample import Message
from mmgpt.datasets.source import Source
from mmgpt.evaluation.item import Item, items_of
from mmgpt.evaluation.models import Model
from mmgpt.generation.prompts import with_exemplars


class ShotConfig(Config):
    """How the solved examples of a prompt are chosen and shown."""

    pick: Literal["random"] = "random"


class Exemplar(NamedTuple):
    """A solved example: its key in the pool, and messages that end with its answer."""

    key: str
    messages: tuple[Message, ...]


class Shots(NamedTuple):
    """How many solved examples, by the name that results give it: "4"."""

    name: str
    count: int

    @classmethod
    def parse(cls, name: str) -> "Shots":
        """By name.

        Raises:
            UserError: if it is no number.
        """
        if not name.isdecimal():
            raise UserError(f"shots {name!r} are not known; give a number, as in 4")
        return cls(str(int(name)), int(name))


class Prompt(NamedTuple):
    """What is asked of the model, the keys of the exemplars in it, and how many were left out for the context."""

    messages: tuple[Message, ...]
    exemplars: tuple[str, ...] = ()
    dropped: int = 0


class Exemplars:
    """The pool of a task; what is picked depends on (seed, task, item, count) and the config alone."""

    def __init__(self, pool: Source | None, task: str, config: ShotConfig | None = None, seed: int = 0) -> None:
        self.pool, self.task, self.config, self.seed = pool, task, config or ShotConfig(), seed

    def prompt(self, item: Item, shots: Shots, model: Model | None = None, room: int = 0) -> Prompt:
        """An item after its solved examples, of which the first go where they do not fit a model's context."""
        chosen = self.of(item, shots.count)
        for dropped in range(len(chosen) + 1):
            kept = chosen[dropped:]
            messages = with_exemplars([one.messages for one in kept], item.messages)
            if model is None or not kept or model.excess(messages, room) <= 0:
                break
        return Prompt(messages, tuple(one.key for one in kept), dropped)

    def of(self, item: Item, count: int) -> list[Exemplar]:
        """`count` solved examples for an item, in the order of the prompt.

        Raises:
            UserError: if the task has no pool, or one smaller than `count`.
        """
        if count == 0:
            return []
        if self.pool is None or len(self.pool) < count:
            size = "no exemplars" if self.pool is None else f"{len(self.pool)} exemplars"
            raise UserError(
                f"task {self.task}: {count} shots asked for, it has {size}; add a larger `exemplars` source"
            )
        rng = random.Random(f"{self.seed}/{self.task}/{item.key}/{count}")
        chosen = []
        for index in rng.sample(range(len(self.pool)), count):
            example = rng.choice(list(items_of(self.pool[index])))
            chosen.append(Exemplar(example.key, (*example.messages, Message.of("assistant", example.reference))))
        return chosen

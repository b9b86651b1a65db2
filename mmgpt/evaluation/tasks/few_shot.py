"""Which exemplars an item gets, and the prompt that they make with it.

Exemplars depend on (seed, task, item, k) alone: not on batch, order or world size.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, Self, get_args

from pydantic import model_validator

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.sample import Message, media_of
from mmgpt.datasets.source import Source
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.tasks.context_fit import Fit, fewest_dropped
from mmgpt.evaluation.tasks.exemplar_pool import Entry, Pool, balanced, identity, permuted, shuffled
from mmgpt.evaluation.tasks.item import Item
from mmgpt.evaluation.tasks.similar import OPEN_CLIP, Of, Similar, open_embedder
from mmgpt.generation.embedding import Pool as Pooling
from mmgpt.generation.prompts import with_exemplars, without_media

FLAMINGO = "flamingo-0"  # the "zero-shot" of Alayrac et al. 2022, arXiv:2204.14198


class ShotConfig(Config):
    """How the solved examples of a prompt are chosen and shown."""

    pick: Literal["random", "balanced", "similar"] = "random"  # balanced: as many of each answer; similar: RICES
    by: str = "decoder"  # for similar, what embeds: a pool of the model's embed, or open_clip:FOLDER
    of: Of = "media"  # for similar, the parts of the question that are embedded
    labels: Literal[True, "permuted"] = True  # permuted: wrong answers, to see if a model uses its examples
    media: bool = True  # false: examples in words alone

    @model_validator(mode="after")
    def _embedding_is_known(self) -> Self:
        if not self.by.startswith(OPEN_CLIP) and self.by not in get_args(Pooling):
            raise ValueError(f"by={self.by} is not known; {did_you_mean(self.by, [*get_args(Pooling), 'open_clip:'])}")
        if self.of != "media" and self.by not in ("decoder", "last"):
            raise ValueError(f"of={self.of}: by={self.by} embeds media alone; say of: media, or by: decoder")
        return self


class Exemplar(NamedTuple):
    """A solved example: its key in the pool, and messages that end with its answer."""

    key: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Shots:
    """How many solved examples stand in a prompt, by the name that results give it.

    "0" has none and "4" four. "flamingo-0" has two in words alone: those that "2" would show, without their media. Its
    authors call that zero-shot, and it is never counted as shots: results give its name.
    """

    name: str
    count: int
    with_media: bool = True

    @classmethod
    def parse(cls, name: str) -> "Shots":
        """By name.

        Raises:
            UserError: if there is none of that name.
        """
        if name == FLAMINGO:
            return cls(name, 2, with_media=False)
        if not (name.isascii() and name.isdecimal()):
            raise UserError(f"shots {name!r} are not known; give a number, as in 0 or 4, or {FLAMINGO}")
        return cls(str(int(name)), int(name))


class Prompt(NamedTuple):
    """What is asked of the model, the keys of the exemplars in it, and how many were left out for the context."""

    messages: tuple[Message, ...]
    exemplars: tuple[str, ...] = ()
    dropped: int = 0


class Exemplars:
    """The pool of a task; what is picked depends on (seed, task, item, count) and the config alone.

    An item is never its own exemplar, nor is another question about the same media. No two exemplars of a prompt come
    from one sample, whose items share their media.
    """

    def __init__(
        self,
        pool: Source | None,
        task: str,
        config: ShotConfig | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        """A pool.

        Args:
            pool: solved samples, none of them of the test split.
            task: its name.
            config: how exemplars are chosen and shown.
            seed: of the choice.
            cache: a folder in which the pool's vectors are kept, for `pick: similar`.
        """
        self.pool = Pool(pool) if pool is not None else None
        self.task, self.config, self.seed = task, config or ShotConfig(), seed
        self.cache = Path(cache) if cache is not None else None
        self.similar: dict[int, Similar] = {}  # by the model that embeds
        self.fits: dict[int, Fit] = {}  # by the model that they hold

    def seeded(self, seed: int) -> "Exemplars":
        """The same pool under another seed; what was read and embedded of it is not read again."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def prompt(self, item: Item, shots: Shots, model: Model | None = None, room: int = 0) -> Prompt:
        """An item after its solved examples, of which the first are left out where all would not fit.

        Args:
            item: what is asked.
            shots: how many examples, and if with their media.
            model: whose context must hold the prompt, and which embeds for `pick: similar`; None for no such bounds.
            room: tokens of the answer.
        Raises:
            UserError: if the pool is too small, or the item does not fit alone; MediaError: if a medium is damaged.
        """
        chosen = self.of(item, shots.count, model)
        if not (shots.with_media and self.config.media):
            chosen = [Exemplar(one.key, without_media(one.messages)) for one in chosen]
        talks = [with_exemplars([one.messages for one in chosen[n:]], item.messages) for n in range(len(chosen) + 1)]
        fit = self.fits.setdefault(id(model), Fit(model)) if model is not None else None
        if fit is None or fit.excess(talks[0], room) <= 0:
            return Prompt(talks[0], tuple(one.key for one in chosen))
        over = fit.excess(talks[-1], room)
        if over > 0:
            raise UserError(
                f"{item.key}: {over} tokens over the context, without any exemplars and with {room} for the answer; "
                "leave it out, or take a model of a longer context"
            )
        dropped = fewest_dropped(len(chosen), lambda n: fit.excess(talks[n], room) > 0)
        return Prompt(talks[dropped], tuple(one.key for one in chosen[dropped:]), dropped)

    def of(self, item: Item, count: int, model: Model | None = None) -> list[Exemplar]:
        """`count` solved examples for an item, in the order of the prompt.

        Raises:
            UserError: if the task has no pool, or one smaller than `count`, or no model can embed it.
        """
        if count == 0:
            return []
        if self.pool is None:
            raise self._too_few(count, "no exemplars")
        name = f"{self.seed}/{self.task}/{item.key}/{count}"
        rng = Random(name)
        size = len(self.pool.source)
        picked = list(islice(self._candidates(self.pool, item, model, rng), count)) if size >= count else []
        if len(picked) < count:
            beside = f", {len(picked)} beside the item {item.key} itself" if size >= count else ""
            raise self._too_few(count, f"{size} exemplars{beside}")
        if self.config.pick == "similar":
            picked.reverse()
        elif self.config.pick == "balanced":
            rng.shuffle(picked)
        answers = [one.reference for one in picked]
        if self.config.labels == "permuted":
            answers = permuted(Random(f"{name}/labels"), answers, self.pool.answers)
        return [
            Exemplar(one.key, (*one.messages, Message.of("assistant", answer)))
            for one, answer in zip(picked, answers, strict=True)
        ]

    def _candidates(self, pool: Pool, item: Item, model: Model | None, rng: Random) -> Iterator[Item]:
        """Items of different samples, none of them the item itself, in the order in which they are picked."""
        own = [identity(medium) for medium in media_of(item.messages)]

        def is_other(one: Item) -> bool:
            is_same = bool(own) and [identity(medium) for medium in media_of(one.messages)] == own
            return one.key != item.key and not is_same

        if self.config.pick == "random":
            for sample in shuffled(rng, range(len(pool.source))):
                others = [one for one in pool.items(sample) if is_other(one)]
                if others:
                    yield rng.choice(others)
            return
        used: set[int] = set()

        def is_wanted(entry: Entry) -> bool:
            return entry.sample not in used and is_other(pool.item(entry))

        if self.config.pick == "balanced":
            entries = balanced(rng, pool, is_wanted)
        else:
            entries = filter(is_wanted, self._similar(pool, model).nearest(item))
        for entry in entries:
            used.add(entry.sample)
            yield pool.item(entry)

    def _similar(self, pool: Pool, model: Model | None) -> Similar:
        key = 0 if self.config.by.startswith(OPEN_CLIP) else id(model)  # which the embedder holds on to
        if key not in self.similar:
            embedder = open_embedder(self.config.by, model)
            self.similar[key] = Similar(pool, embedder, self.config.of, self.cache)
        return self.similar[key]

    def _too_few(self, count: int, has: str) -> UserError:
        return UserError(f"task {self.task}: {count} shots asked for, it has {has}; add a larger `exemplars` source")

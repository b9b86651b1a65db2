"""Which exemplars an item gets, and the prompt that they make with it.

Exemplars depend on (seed, task, item, k) alone: not on batch, order or world size.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import model_validator

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.sample import Message, media_of
from mmgpt.datasets.source import Source
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.tasks.context_fit import ContextFit, min_dropped
from mmgpt.evaluation.tasks.exemplar_pool import Entry, Pool, balanced_order, identity, lazy_shuffle, permute_labels
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.similar import OPEN_CLIP, EmbedParts, Similar, open_embedder
from mmgpt.generation.embedding import Pooling
from mmgpt.generation.prompts import with_exemplars, without_media

FLAMINGO = "flamingo-0"  # the "zero-shot" of Alayrac et al. 2022, arXiv:2204.14198


class ShotConfig(Config):
    """How the solved examples of a prompt are chosen and shown."""

    renamed: ClassVar[Mapping[str, str]] = {
        "pick": "strategy",
        "by": "embedder",
        "of": "embed_parts",
        "media": "with_media",
    }
    strategy: Literal["random", "balanced", "similar"] = "random"  # balanced: as many of each answer; similar: RICES
    embedder: str = "decoder"  # for similar, what embeds: a pool of the model's embed, or open_clip:FOLDER
    embed_parts: EmbedParts = "media"  # for similar, the parts of the question that are embedded
    labels: Literal[True, "permuted"] = True  # permuted: wrong answers, to see if a model uses its examples
    with_media: bool = True  # false: examples in words alone

    @model_validator(mode="after")
    def _embedding_is_known(self) -> Self:
        if not self.embedder.startswith(OPEN_CLIP) and self.embedder not in get_args(Pooling):
            nearest = did_you_mean(self.embedder, [*get_args(Pooling), OPEN_CLIP])
            raise ValueError(f"embedder={self.embedder} is not known; {nearest}")
        if self.embed_parts != "media" and self.embedder not in ("decoder", "last"):
            raise ValueError(
                f"embed_parts={self.embed_parts}: embedder={self.embedder} embeds media alone; "
                "say embed_parts: media, or embedder: decoder"
            )
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


class FewShotPrompt(NamedTuple):
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
            cache: a folder in which the pool's vectors are kept, for `strategy: similar`.
        """
        self.pool = Pool(pool) if pool is not None else None
        self.task, self.config, self.seed = task, config or ShotConfig(), seed
        self.cache = Path(cache) if cache is not None else None
        self.similar: dict[int, Similar] = {}  # by the model that embeds
        self.fits: dict[int, ContextFit] = {}  # by the model that they hold

    def seeded(self, seed: int) -> "Exemplars":
        """The same pool under another seed; what was read and embedded of it is not read again."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def prompt(self, item: TaskItem, shots: Shots, model: Model | None = None, room: int = 0) -> FewShotPrompt:
        """An item after its solved examples, of which the first are left out where all would not fit.

        Args:
            item: what is asked.
            shots: how many examples, and if with their media.
            model: whose context must hold the prompt, and which embeds for `similar`; None for no such bounds.
            room: tokens of the answer.
        Raises:
            UserError: if the pool is too small, or the item does not fit alone; MediaError: if a medium is damaged.
        """
        chosen = self.of(item, shots.count, model)
        if not (shots.with_media and self.config.with_media):
            chosen = [Exemplar(one.key, without_media(one.messages)) for one in chosen]
        talks = [with_exemplars([one.messages for one in chosen[n:]], item.messages) for n in range(len(chosen) + 1)]
        fit = self.fits.setdefault(id(model), ContextFit(model)) if model is not None else None
        if fit is None or fit.tokens_over_context(talks[0], room) <= 0:
            return FewShotPrompt(talks[0], tuple(one.key for one in chosen))
        over = fit.tokens_over_context(talks[-1], room)
        if over > 0:
            raise UserError(
                f"{item.key}: {over} tokens over the context, without any exemplars and with {room} for the answer; "
                "leave it out, or take a model of a longer context"
            )
        dropped = min_dropped(len(chosen), lambda n: fit.tokens_over_context(talks[n], room) > 0)
        return FewShotPrompt(talks[dropped], tuple(one.key for one in chosen[dropped:]), dropped)

    def of(self, item: TaskItem, count: int, model: Model | None = None) -> list[Exemplar]:
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
        if self.config.strategy == "similar":
            picked.reverse()
        elif self.config.strategy == "balanced":
            rng.shuffle(picked)
        answers = [one.reference for one in picked]
        if self.config.labels == "permuted":
            answers = permute_labels(Random(f"{name}/labels"), answers, self.pool.answers)
        return [
            Exemplar(one.key, (*one.messages, Message.of("assistant", answer)))
            for one, answer in zip(picked, answers, strict=True)
        ]

    def _candidates(self, pool: Pool, item: TaskItem, model: Model | None, rng: Random) -> Iterator[TaskItem]:
        """Items of different samples, none of them the item itself, in the order in which they are picked."""
        own = [identity(medium) for medium in media_of(item.messages)]

        def is_other(one: TaskItem) -> bool:
            is_same = bool(own) and [identity(medium) for medium in media_of(one.messages)] == own
            return one.key != item.key and not is_same

        if self.config.strategy == "random":
            for sample in lazy_shuffle(rng, range(len(pool.source))):
                others = [one for one in pool.items(sample) if is_other(one)]
                if others:
                    yield rng.choice(others)
            return
        used: set[int] = set()

        def is_wanted(entry: Entry) -> bool:
            return entry.sample not in used and is_other(pool.item(entry))

        if self.config.strategy == "balanced":
            entries = balanced_order(rng, pool, is_wanted)
        else:
            entries = filter(is_wanted, self._similar(pool, model).nearest(item))
        for entry in entries:
            used.add(entry.sample)
            yield pool.item(entry)

    def _similar(self, pool: Pool, model: Model | None) -> Similar:
        key = 0 if self.config.embedder.startswith(OPEN_CLIP) else id(model)  # which the embedder holds on to
        if key not in self.similar:
            embedder = open_embedder(self.config.embedder, model)
            self.similar[key] = Similar(pool, embedder, self.config.embed_parts, self.cache)
        return self.similar[key]

    def _too_few(self, count: int, has: str) -> UserError:
        return UserError(f"task {self.task}: {count} shots asked for, it has {has}; add a larger `exemplars` source")

"""The pool of a task's exemplars, read once without decoding a medium, and the orders that they are drawn in."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from random import Random
from typing import NamedTuple, TypeVar

from mmgpt.config import UserError
from mmgpt.datasets.media import Media
from mmgpt.datasets.source import Source
from mmgpt.evaluation.tasks.item import TaskItem, items_of

T = TypeVar("T")


class Entry(NamedTuple):
    """Where an item of a pool stands: the number of its sample, and its number among the items of that."""

    sample: int
    number: int
    key: str
    answer: str


class Pool:
    """The items of a source by number. Only keys and answers are kept; the rest is read again when asked for."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def items(self, sample: int) -> list[TaskItem]:
        """The items of a sample."""
        return list(items_of(self.source[sample]))

    def item(self, entry: Entry) -> TaskItem:
        """The item of an entry."""
        return self.items(entry.sample)[entry.number]

    @cached_property
    def entries(self) -> list[Entry]:
        """Every item, in the order of the source."""
        return [
            Entry(sample, number, item.key, item.reference)
            for sample in range(len(self.source))
            for number, item in enumerate(self.items(sample))
        ]

    @cached_property
    def by_answer(self) -> dict[str, list[Entry]]:
        """The items that have each answer."""
        found: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            found[entry.answer].append(entry)
        return dict(found)

    @cached_property
    def answers(self) -> list[str]:
        """Every answer once."""
        return list(self.by_answer)


def identity(medium: Media) -> str:
    """Tells media apart: the path where there is one, else a hash of the bytes."""
    if medium.path is not None:
        return medium.path
    payload = medium.read()
    return hashlib.sha256(medium.encoded()[1] if payload is None else payload).hexdigest()


def lazy_shuffle(rng: Random, values: Sequence[T]) -> Iterator[T]:
    """All values in random order; the first few cost as little of a long sequence as of a short one."""
    moved: dict[int, int] = {}  # what Fisher and Yates would have swapped so far
    for at in range(len(values)):
        drawn = rng.randrange(at, len(values))
        yield values[moved.get(drawn, drawn)]
        moved[drawn] = moved.pop(at, at)


def balanced_order(rng: Random, pool: Pool, is_wanted: Callable[[Entry], bool]) -> Iterator[Entry]:
    """Wanted entries, so that no answer comes again before every other that still has some; both in random order.

    An entry may cease to be wanted while others are taken: those of samples that were taken are not.
    """
    opened: list[Iterator[Entry]] = []
    for answer in lazy_shuffle(rng, pool.answers):
        entries: Iterator[Entry] = filter(is_wanted, lazy_shuffle(rng, pool.by_answer[answer]))
        first = next(entries, None)
        if first is not None:
            yield first
            opened.append(entries)
    while opened:
        for stream in list(opened):
            entry = next(stream, None)
            if entry is None:
                opened.remove(stream)
            else:
                yield entry


def permute_labels(rng: Random, labels: Sequence[str], known: Sequence[str]) -> list[str]:
    """The same labels in other places, as few as can be in a place whose own label is equal.

    Sorted by label and moved on by the size of the largest group, none of at most half the labels stays. Labels that
    are all equal are drawn from the others known.

    Raises:
        UserError: if no other is known.
    """
    if len(set(labels)) == 1:
        wrong = [label for label in known if label != labels[0]]
        if not wrong:
            raise UserError(f"labels=permuted: every answer is {labels[0]!r}, none is wrong; take a pool of several")
        return [rng.choice(wrong) for _ in labels]
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place in lazy_shuffle(rng, range(len(labels))):
        groups[labels[place]].append(place)
    places = [place for group in groups.values() for place in group]
    step = max(map(len, groups.values()), default=0)
    given = list(labels)
    for at, place in enumerate(places):
        given[place] = labels[places[(at + step) % len(places)]]
    return given

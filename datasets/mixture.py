"""The order of training samples: a function of the seed and the sources' sizes alone.

Sources take turns so that after any number of draws each has had its share to within one sample (Tijdeman 1980,
doi:10.1016/0012-365X(80)90269-1); inside a source every epoch is its own permutation, computed place by place, so that
a source of a billion samples costs no memory.
"""

import hashlib
from collections.abc import Iterator, Sequence

SamplerState = dict[str, list[int]]


class MixtureSampler:
    """A sequence of (source, index), endless unless every source has a limit.

    Args:
        sizes: samples of each source.
        weights: share of each source, in any unit.
        seed: what the permutations depend on, with the source and its epoch.
        limits: its draws after which a source has no more, and the others share what comes; None for no limit.
        ends: the same counted in the draws of all sources. One source at least has none.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        limits: Sequence[int | None] = (),
        ends: Sequence[int | None] = (),
    ) -> None:
        self.sizes, self.weights, self.seed = list(sizes), list(weights), seed
        self.limits = list(limits) or [None] * len(self.sizes)
        self.ends = {which: end for which, end in enumerate(ends) if end is not None}

    @property
    def total(self) -> int | None:
        """Draws in all, None for endless."""
        return None if None in self.limits else sum(limit or 0 for limit in self.limits)

    def counts(self, draws: int) -> list[int]:
        """How many of the first so many draws each source has, to within one."""
        if self.ends or any(limit is not None for limit in self.limits):
            return self.draw(draws).counts
        return [round(draws * weight / sum(self.weights)) for weight in self.weights]

    def draw(self, start: int = 0, position: SamplerState | None = None) -> "SamplerIterator":
        """Draws from number `start` on, or from a position that other draws of this order were at."""
        return SamplerIterator(self, start, position)


class SamplerIterator(Iterator[tuple[int, int]]):
    """The draws of an order; `counts` tells how many each source has had, those before the start included."""

    def __init__(self, order: MixtureSampler, start: int, position: SamplerState | None) -> None:
        self.order = order
        self.permutations: dict[int, tuple[int, Permutation]] = {}
        if position is not None:
            self.drawn = sum(position["counts"])
            self.counts = list(position["counts"])
            self._share_among(list(position["sources"]))
            self.turns, self.number = list(position["turns"]), sum(position["turns"])
            return
        self.drawn, self.counts = 0, [0] * len(order.sizes)
        self._share_among([which for which, limit in enumerate(order.limits) if limit != 0])
        for _ in range(start if order.total is None else min(start, order.total)):
            self._next_source()

    @property
    def position(self) -> SamplerState:
        """Where these draws are: the draws of each source, the sources that go on, and their turns since one ended."""
        return {"counts": list(self.counts), "sources": list(self.sources), "turns": list(self.turns)}

    def __next__(self) -> tuple[int, int]:
        if not self.sources:
            raise StopIteration
        source = self._next_source()
        size = self.order.sizes[source]
        epoch, place = divmod(self.counts[source] - 1, size)
        if self.permutations.get(source, (-1,))[0] != epoch:
            self.permutations[source] = (epoch, Permutation(size, f"{self.order.seed}/{source}/{epoch}"))
        return source, self.permutations[source][1][place]

    def _share_among(self, sources: list[int]) -> None:
        """From here on these take turns."""
        self.sources, self.number = sources, 0  # draws in this mixture
        self.turns = [0] * len(sources)
        total = sum(self.order.weights[which] for which in sources)
        self.shares = [self.order.weights[which] / total for which in sources]

    def _next_source(self) -> int:
        """Of the sources that the next draw does not put too far ahead, the one that would soonest be too far behind.

        Who is furthest behind would not do: another source with a large share may then be late by more than a sample.
        """
        if self.drawn in self.order.ends.values():
            self._share_among([which for which in self.sources if self.order.ends.get(which) != self.drawn])
        self.drawn += 1
        self.number += 1
        margin = 1 / max(2, 2 * len(self.sources) - 2)
        debts = [share * self.number - turns for share, turns in zip(self.shares, self.turns, strict=True)]
        due = [which for which, debt in enumerate(debts) if debt >= margin - 1e-9]
        which = min(due, key=lambda which: (1 - margin - debts[which]) / self.shares[which])
        source = self.sources[which]
        self.turns[which] += 1
        self.counts[source] += 1
        if self.counts[source] == self.order.limits[source]:
            self._share_among([one for one in self.sources if one != source])
        return source


class Permutation:
    """A permutation of range(size), looked up place by place.

    A Feistel network mixes the two halves of a number's bits, and is walked until it comes back below the size
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """

    ROUNDS = 8

    def __init__(self, size: int, seed: str) -> None:
        self.size = size
        self.half = max(3, -(-(size - 1).bit_length() // 2))
        self.mask = (1 << self.half) - 1
        digest = hashlib.blake2b(seed.encode(), digest_size=8 * self.ROUNDS).digest()
        self.keys = [int.from_bytes(digest[at : at + 8], "little") | 1 for at in range(0, len(digest), 8)]

    def __getitem__(self, place: int) -> int:
        while True:
            left, right = place >> self.half, place & self.mask
            for key in self.keys:
                mixed = (right + 1) * key & 0xFFFFFFFFFFFFFFFF
                mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF  # as in SplitMix64
                left, right = right, left ^ (mixed ^ mixed >> 32) & self.mask
            place = left << self.half | right
            if place < self.size:
                return place

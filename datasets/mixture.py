"""The order of training samples: a function of the seed and the sources' sizes alone.

Sources take turns so that after any number of draws each has had its share to within one sample (Tijdeman 1980,
doi:10.1016/0012-365X(80)90269-1); inside a source every epoch is its own permutation.
"""

from collections.abc import Iterator, Sequence

import numpy as np


class Order:
    """An endless sequence of (source, index).

    Args:
        sizes: samples of each source.
        weights: share of each source, in any unit.
        seed: what the permutations depend on, with the source and its epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.sizes, self.seed = list(sizes), seed
        self.shares = [weight / sum(weights) for weight in weights]
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """Draws from number `start` on."""
        counts = [0] * len(self.sizes)
        number = 0
        while True:
            number += 1
            source = self._next_source(number, counts)
            if number > start:
                yield source, self._index(source, counts[source])
            counts[source] += 1

    def _next_source(self, number: int, counts: Sequence[int]) -> int:
        """Of the sources that draw `number` does not put too far ahead, the one that would soonest be too far behind.

        Who is furthest behind would not do: another source with a large share may then be late by more than a sample.
        """
        margin = 1 / max(2, 2 * len(self.sizes) - 2)
        debts = [share * number - count for share, count in zip(self.shares, counts, strict=True)]
        due = [which for which, debt in enumerate(debts) if debt >= margin - 1e-9]
        return min(due, key=lambda which: (1 - margin - debts[which]) / self.shares[which])

    def _index(self, source: int, count: int) -> int:
        epoch, place = divmod(count, self.sizes[source])
        if self._epochs.get(source, (-1,))[0] != epoch:
            shuffled = np.random.default_rng((self.seed, source, epoch)).permutation(self.sizes[source])
            self._epochs[source] = (epoch, shuffled)
        return int(self._epochs[source][1][place])

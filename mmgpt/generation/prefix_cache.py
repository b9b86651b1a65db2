"""Caches of what prompts share: values within a number of bytes, the least recently used go; prefixes by their keys.

Beginnings are recognised by token ids and by the hashes of their media, so that what is reused is exactly what would
be computed; the idea is that of SGLang (Zheng et al. 2023, arXiv:2312.07104).
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmgpt.model.cache import KVCache

LEAST_SHARED = 16  # tokens; a shorter beginning is computed again, which takes less than finding and copying it
V = TypeVar("V")
Keys = NDArray[np.int64]


class LRUCache(Generic[V]):
    """Values by key, of which the least recently used go when they take more than `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_bytes = limit, 0
        self._held: OrderedDict[bytes, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> V | None:
        """The value, which is now the most recently used."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def holds(self, key: bytes) -> bool:
        """True if it is held; that is no use of it."""
        return key in self._held

    def add(self, key: bytes, value: V, num_bytes: int) -> None:
        """Hold a value, unless it is over the limit alone."""
        self.drop(key)
        if num_bytes > self.limit:
            return
        self._held[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.limit:
            self.drop(next(iter(self._held)))

    def drop(self, key: bytes) -> None:
        """Let a value go, if it is held."""
        if key in self._held:
            self.num_bytes -= self._held.pop(key)[1]

    def clear(self) -> None:
        """Let all go."""
        self._held.clear()
        self.num_bytes = 0


class Prefix(NamedTuple):
    """A text that was read: its keys, and a cache of one row."""

    token_keys: Keys
    cache: KVCache


class PrefixCache(LRUCache[Prefix]):
    """Texts that were read, by their keys' bytes; found by their first few, for an evaluation holds thousands."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._by_head: dict[bytes, dict[bytes, Prefix]] = {}

    def candidates(self, token_keys: Keys) -> Iterable[tuple[bytes, Prefix]]:
        """Those that begin with the same LEAST_SHARED keys."""
        return self._by_head.get(_head(token_keys), {}).items()

    def add(self, key: bytes, value: Prefix, num_bytes: int) -> None:
        """Hold a text, unless it is over the limit alone."""
        super().add(key, value, num_bytes)
        if self.holds(key):
            self._by_head.setdefault(_head(value.token_keys), {})[key] = value

    def drop(self, key: bytes) -> None:
        """Let a text go, if it is held."""
        if self.holds(key):
            head = _head(self._held[key][0].token_keys)
            del self._by_head[head][key]
            if not self._by_head[head]:
                del self._by_head[head]
        super().drop(key)

    def clear(self) -> None:
        """Let all go."""
        super().clear()
        self._by_head.clear()


def _head(token_keys: Keys) -> bytes:
    return token_keys[:LEAST_SHARED].tobytes()


def shared_length(one: Keys, other: Keys) -> int:
    """Tokens at the start that two texts share."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length

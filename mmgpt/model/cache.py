"""Keys and values of the tokens so far, one tensor a layer.

Layers are apart so that a compiled step writes into each in place; in one tensor of all layers it would copy the whole.

Shape letters: B rows, T new tokens, S cached tokens, K key heads, E width of a head, D width of the model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Room for `size` tokens in each row.

    A row's next token goes to slot `lengths_B[row]`, so rows of any length share a batch without left padding. What
    lies behind a row's length is never seen: a row is shortened by its length alone.

    Attributes:
        keys, values: (B, K, S, E) of each layer.
        token_shift_state: (B, S, D) of each layer with token shift, what it mixes in; empty without.
        lengths_B: tokens of each row.
    """

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], token_shift_state: Sequence[Tensor], lengths_B: Tensor
    ) -> None:
        self.keys, self.values, self.token_shift_state, self.lengths_B = keys, values, token_shift_state, lengths_B

    @property
    def rows(self) -> int:
        """Texts that it has room for."""
        return self.keys[0].shape[0]

    @property
    def size(self) -> int:
        """Tokens that a row has room for."""
        return self.keys[0].shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of what is held."""
        return sum(held.nbytes for held in (*self.keys, *self.values, *self.token_shift_state))

    def write(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor, slots_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values at `slots_BT`; returns the layer's whole (B, K, S, E) store."""
        rows_B1 = torch.arange(len(slots_BT), device=slots_BT.device)[:, None]
        keys, values = self.keys[layer], self.values[layer]
        keys[rows_B1, :, slots_BT] = keys_BKTE.transpose(1, 2).to(keys.dtype)
        values[rows_B1, :, slots_BT] = values_BKTE.transpose(1, 2).to(values.dtype)
        return keys, values

    def shift(self, layer: int, x_BTD: Tensor, slots_BT: Tensor) -> Tensor:
        """Store a layer's input at `slots_BT`; returns what came a slot earlier (B, T, D), zeros at the start."""
        store_BSD, rows_B = self.token_shift_state[layer], torch.arange(len(x_BTD), device=x_BTD.device)
        first_B = slots_BT[:, 0]
        before_BD = store_BSD[rows_B, first_B - 1] * (first_B > 0)[:, None]
        store_BSD[rows_B[:, None], slots_BT] = x_BTD.to(store_BSD.dtype)
        return torch.cat((before_BD[:, None].to(x_BTD.dtype), x_BTD[:, :-1]), dim=1)

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows but these, in this order."""
        self.keys = [one[rows] for one in self.keys]
        self.values = [one[rows] for one in self.values]
        self.token_shift_state, self.lengths_B = [one[rows] for one in self.token_shift_state], self.lengths_B[rows]

    def view(self, start: int, rows: int, size: int | None = None) -> "KVCache":
        """Some rows, up to a length, over the same memory; the lengths are a copy."""
        some = slice(start, start + rows)
        return KVCache(
            [one[some, :, :size] for one in self.keys],
            [one[some, :, :size] for one in self.values],
            [one[some, :size] for one in self.token_shift_state],
            self.lengths_B[some].clone(),
        )

    def copy_row(self, row: int, other: "KVCache", length: int) -> None:
        """Copy the first tokens of another cache's only row into a row."""
        for own, given in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            own[row, :, :length] = given[0, :, :length]
        for own, given in zip(self.token_shift_state, other.token_shift_state, strict=True):
            own[row, :length] = given[0, :length]

    def clone(self) -> "KVCache":
        """The same in memory of its own."""
        keys, values, token_shift_state = (
            [one.clone() for one in held] for held in (self.keys, self.values, self.token_shift_state)
        )
        return KVCache(keys, values, token_shift_state, self.lengths_B.clone())

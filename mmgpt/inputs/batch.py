"""Batch: rendered samples as padded tensors, with the media they hold and what each token may see.

Shape letters: B rows, T tokens, M media of one modality.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmgpt.inputs.rendered import IGNORED, Objective, Rendered, TargetText

FULL_ENOUGH = 0.98  # share of real tokens above which no second way of packing is tried
NUM_PACKING_TRIALS = 4  # numbers of rows among which packing chooses
PADDING = -1  # the document number of padding


@dataclass(frozen=True)
class MediaBatch:
    """The media of one modality in reading order.

    Attributes:
        values: (M, ...), padded with zeros at the end of each axis.
        shapes: (M, axes) of each medium without its padding.
        num_tokens: the placeholders that rendering wrote for each medium.
        names: sample and medium, for errors.
        texts: what each medium forms a pair with, for the heads.
        groups: the class of what each shows, where that is known.
    """

    values: Tensor
    shapes: Tensor
    num_tokens: tuple[int, ...]
    names: tuple[str, ...]
    texts: tuple[TargetText | None, ...]
    groups: tuple[str | None, ...]

    def to(self, device: torch.device | str) -> "MediaBatch":
        """The media on another device."""
        return replace(self, values=self.values.to(device), shapes=self.shapes.to(device))

    def sizes(self) -> list[tuple[int, ...]]:
        """The shape of each medium's tensor without its padding."""
        return [tuple(shape) for shape in self.shapes.tolist()]


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. Documents and branches say who sees whom; see `visible`.

    Attributes:
        ids, labels, positions: (B, T); labels are the tokens themselves where they are targets, else -100.
        documents: (B, T) number of the sample in its row, -1 where padded.
        branches: (B, T) 0 in the context, then the branch's number.
        sources: (B, T) index into `source_names`, for the loss of each source.
        is_causal: False for the masked objective, where every token sees its whole document.
        is_plain: one unbranched sample a row, so that plain causal attention does.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    documents: Tensor
    branches: Tensor
    sources: Tensor
    source_names: tuple[str, ...]
    media: dict[str, MediaBatch]
    num_targets: int
    is_causal: bool = True
    is_plain: bool = True

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        moved["media"] = {kind: media.to(device) for kind, media in self.media.items()}
        return replace(self, **moved)

    def attention_mask(self) -> Tensor | None:
        """Bool (B, 1, T, T), True where a query (third axis) may attend to a key; None for plain causal attention.

        A token sees the tokens of its own document that are in the context or its own branch, up to itself.
        """
        if self.is_causal and self.is_plain:
            return None
        same_document = self.documents[:, :, None] == self.documents[:, None, :]
        if not self.is_causal:
            return same_document[:, None]
        in_reach = (self.branches[:, None, :] == 0) | (self.branches[:, :, None] == self.branches[:, None, :])
        length = self.ids.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        return (same_document & in_reach & past)[:, None]

    def previous_index(self) -> Tensor:
        """(B, T) index of the token before each one in its text, -1 for none; a branch's first follows the context."""
        places_BT = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        before = torch.nn.functional.pad
        new_document = self.documents != before(self.documents, (1, 0), value=PADDING - 1)[:, :-1]
        new_branch = (self.branches > 0) & (self.branches != before(self.branches, (1, 0))[:, :-1])
        context_end_BT = torch.where(self.branches == 0, places_BT, -1).cummax(dim=1).values
        return torch.where(new_branch, context_end_BT, places_BT - 1).masked_fill(new_document, -1)


def collate(samples: Sequence[Rendered], objective: Objective = "respond") -> Batch:
    """Pad samples at their ends to one batch, a sample a row."""
    return collate_packed([[sample] for sample in samples], objective)


def collate_packed(rows: Sequence[Sequence[Rendered]], objective: Objective = "respond") -> Batch:
    """Pad rows of samples to one batch; the samples of a row do not see each other."""
    samples = [sample for row in rows for sample in row]
    names = tuple(dict.fromkeys(sample.source for sample in samples))
    labels = _pad([[label for sample in row for label in sample.labels] for row in rows], IGNORED)
    lengths = [[(number, sample, len(sample.ids)) for number, sample in enumerate(row)] for row in rows]
    return Batch(
        ids=_pad([[token for sample in row for token in sample.ids] for row in rows], 0),
        labels=labels,
        positions=_pad([[place for sample in row for place in sample.positions] for row in rows], 0),
        documents=_pad([[number for number, _, length in row for _ in range(length)] for row in lengths], PADDING),
        branches=_pad([[branch for sample in row for branch in sample.branches] for row in rows], 0),
        sources=_pad(
            [[names.index(one.source) for _, one, length in row for _ in range(length)] for row in lengths], 0
        ),
        source_names=names,
        media=collate_media(samples),
        num_targets=int((labels != IGNORED).sum()),
        is_causal=objective != "masked",
        is_plain=all(len(row) == 1 for row in rows) and not any(one.branches[-1] for one in samples if one.branches),
    )


def _pad(rows: list[list[int]], value: int) -> Tensor:
    padded = np.full((len(rows), max(map(len, rows))), value)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return torch.from_numpy(padded)


def collate_media(samples: Sequence[Rendered]) -> dict[str, MediaBatch]:
    """The media of some samples by modality, padded to one size, in reading order."""
    found = [(medium, f"{sample.key}: {medium.name}") for sample in samples for medium in sample.media]
    batches = {}
    for modality in sorted({medium.modality for medium, _ in found}):
        media = [(medium, name) for medium, name in found if medium.modality == modality]
        values = [medium.values for medium, _ in media]
        shapes = torch.tensor([value.shape for value in values])
        padded = _pad_axes(values, shapes.amax(dim=0).tolist())
        batches[modality] = MediaBatch(
            padded,
            shapes,
            num_tokens=tuple(medium.num_tokens for medium, _ in media),
            names=tuple(name for _, name in media),
            texts=tuple(medium.text for medium, _ in media),
            groups=tuple(medium.group for medium, _ in media),
        )
    return batches


def _pad_axes(values: list[Tensor], sizes: list[int]) -> Tensor:
    if all(list(value.shape) == sizes for value in values):
        return torch.stack(values)
    padded = values[0].new_zeros(len(values), *sizes)
    for at, value in enumerate(values):
        padded[at][tuple(slice(size) for size in value.shape)] = value
    return padded


def split_into_micro_batches(
    rows: Sequence[Sequence[Rendered]], budget: int, max_media: int | None = None
) -> list[list[Sequence[Rendered]]]:
    """Sort rows by length and cut them into groups of at most `budget` padded tokens and `max_media` media of a kind.

    A single row always fits.
    """
    groups: list[list[Sequence[Rendered]]] = []
    for row in sorted(rows, key=_length):
        group = groups[-1] if groups else []
        fits = (len(group) + 1) * _length(row) <= budget and _fits_media(
            [one for r in [*group, row] for one in r], max_media
        )
        if group and fits:
            group.append(row)
        else:
            groups.append([row])
    return groups


def pack(samples: Sequence[Rendered], length: int, max_media: int | None = None) -> list[list[Rendered]]:
    """Lay samples into a few rows of up to `length` tokens and `max_media` media of a kind, evenly filled.

    For the least number of rows and the next few, the longest samples go first, each to the row that has most room
    (Graham 1969, doi:10.1137/0117039). Where over 2 % is padding, each also goes to the first row below a limit that
    bisection lowers (Coffman, Garey and Johnson 1978, doi:10.1137/0207001). The packing with the least padding is
    taken; a sample over the length has a row of its own.
    """
    longest_first = sorted(samples, key=lambda sample: -len(sample.ids))
    large = [[sample] for sample in longest_first if len(sample.ids) >= length]
    small = longest_first[len(large) :]
    if not small:
        return large
    total, found = _length(small), list[list[list[Rendered]]]()
    least = -(-total // length)
    for count in range(least, len(small) + 1):
        rows: list[list[Rendered]] = [[] for _ in range(count)]
        if all(_place(sample, sorted(rows, key=_length), length, max_media) for sample in small):
            found.append(rows)
        if len(found) == NUM_PACKING_TRIALS:
            break
    if total < FULL_ENOUGH * min(map(_padded, found)):
        counts = range(least, least + NUM_PACKING_TRIALS)
        limited = (_lowered(small, count, length, max_media) for count in counts)
        found += [rows for rows in limited if rows]
    return large + min(found, key=_padded)


def _padded(rows: Sequence[Sequence[Rendered]]) -> int:
    """Tokens of a batch of rows, padding included."""
    return len(rows) * max(map(_length, rows))


def _lowered(
    longest_first: Sequence[Rendered], count: int, length: int, max_media: int | None
) -> list[list[Rendered]] | None:
    """At most `count` rows, first fit, under the lowest limit that bisection finds; None if `length` is too low."""
    found = None
    low, high = -(-_length(longest_first) // count), length
    while low <= high:
        limit = (low + high) // 2
        rows: list[list[Rendered]] = [[] for _ in range(count)]
        if all(_place(sample, rows, limit, max_media) for sample in longest_first):
            found, high = [row for row in rows if row], limit - 1
        else:
            low = limit + 1
    return found


def _place(sample: Rendered, rows: Sequence[list[Rendered]], length: int, max_media: int | None) -> bool:
    """Add a sample to the first row that has room for it; False if there is none."""
    for row in rows:
        if _length(row) + len(sample.ids) <= length and (not row or _fits_media([*row, sample], max_media)):
            row.append(sample)
            return True
    return False


def _length(row: Sequence[Rendered]) -> int:
    return sum(len(sample.ids) for sample in row)


def _fits_media(samples: Sequence[Rendered], most: int | None) -> bool:
    return most is None or all(
        count <= most for count in Counter(medium.modality for sample in samples for medium in sample.media).values()
    )

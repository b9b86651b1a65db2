"""What a sample becomes: token ids, labels and prepared media."""

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from mmgpt.config import UserError
from mmgpt.datasets.media import Media

IGNORED = -100  # the label of a position that is not a target, as in torch's cross-entropy
HeadKind = Literal["ctc", "contrastive", "classify"]  # objectives of an encoder, learned from pairs
AuxiliaryKind = Literal[HeadKind, "alike"]  # losses of heads that can be added to an objective
Objective = Literal["respond", "causal", "masked", HeadKind]


class MediaProcessor(Protocol):
    """How one modality enters."""

    @property
    def heads(self) -> Collection[str]:
        """Kinds of the heads that learn from it."""

    def preprocess(self, part: Media, rng: random.Random | None) -> Tensor:
        """Decode a part to a tensor; augment it where there is a generator to draw from."""

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        """Tokens that a tensor of this shape takes."""

    def pair_error(self, head: str, text: str, shape: tuple[int, ...]) -> UserError | None:
        """Why a head cannot learn from a text with a tensor of this shape, if so."""


class TargetText(NamedTuple):
    """The reply that a medium forms a pair with: its words, and their tokens closed by the end token."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Medium:
    """A decoded medium of a rendered sample, with the text it forms a pair with, and the class of what it shows."""

    modality: str
    values: Tensor
    num_tokens: int
    name: str
    text: TargetText | None = None
    group: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A sample as the model reads it; the lists have one entry a token.

    Attributes:
        labels: the token itself where it is a target, else -100; the first token of a document or branch never is.
        branches: 0 for the context, 1, 2, ... for the branches, which see the context and themselves.
        positions: a branch goes on from the context's end.
        media: in reading order.
    """

    ids: list[int]
    labels: list[int]
    branches: list[int]
    positions: list[int]
    media: list[Medium]
    key: str
    source: str
    is_trimmed: bool = False


@dataclass(frozen=True)
class MediumPlaceholders:
    """A medium with its placeholder token, and the markup around it."""

    medium: Medium
    slot: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass
class RenderContext:
    """One showing of a sample or talk: what augments its media, and those prepared, which are decoded once.

    Attributes:
        rng: draws the augmentation; None leaves media as they are.
        prepared: what each medium became: tokens of text, and media with their placeholders.
    """

    rng: random.Random | None = None
    prepared: dict[Media, list[tuple[int, ...] | MediumPlaceholders]] = field(default_factory=dict)


@dataclass
class TokenBuilder:
    """Tokens, labels and media in reading order."""

    showing: RenderContext = field(default_factory=RenderContext)
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)

    def add(self, ids: tuple[int, ...], is_target: bool) -> None:
        """Add tokens, all of them targets or none."""
        self.ids += ids
        self.labels += ids if is_target else [IGNORED] * len(ids)

    def add_medium(self, slots: MediumPlaceholders) -> None:
        """Add a medium's placeholders; neither they nor their markup are targets."""
        self.add((*slots.before, *(slots.slot,) * slots.medium.num_tokens, *slots.after), False)
        self.media.append(slots.medium)

"""Choosing the next token: pure functions over logits, composed by the decode loop.

Shape letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from mmgpt.config import Config
from mmgpt.inputs.tokenizer import Tokenizer


class GenerateConfig(Config):
    """How to decode. Greedy unless a temperature is given."""

    max_new_tokens: PositiveInt = 64
    temperature: float = Field(default=0.0, ge=0)  # 0 is greedy
    top_k: NonNegativeInt = 0  # 0 keeps all
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # strings that end a reply and are cut off
    seed: NonNegativeInt = 0  # row i of a call draws from a generator seeded with seed + i


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest of each row at minus infinity (Fan et al. 2018, arXiv:1805.04833)."""
    if k <= 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of the likeliest tokens that reaches p (Holtzman et al. 2020, arXiv:1904.09751)."""
    if p >= 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) - sorted_BV.softmax(dim=-1)
    drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= p)
    return logits_BV.masked_fill(drop_BV, -torch.inf)


def draw(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id a row (B,), each row from its own generator, so that a row's draw does not depend on its batch."""
    probabilities_BV = logits_BV.softmax(dim=-1).cpu()
    picks = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities_BV, generators, strict=True)]
    return torch.cat(picks).to(logits_BV.device)


@dataclass
class Chooser:
    """Chooses the tokens of one request, one after the other."""

    options: GenerateConfig
    generator: torch.Generator

    @property
    def is_plain(self) -> bool:
        """It takes the likeliest token, whatever came before."""
        return self.options.temperature == 0

    def choose(self, logits_1V: Tensor) -> Tensor:
        """The next id (1,)."""
        warm_1V = logits_1V / self.options.temperature
        kept_1V = keep_top_p(keep_top_k(warm_1V, self.options.top_k), self.options.top_p)
        return draw(kept_1V, [self.generator])


def make_chooser(
    options: GenerateConfig, tokenizer: Tokenizer | None, seed: int, prompt_ids: Sequence[int], end: int
) -> Chooser:
    """The chooser of a request, which draws from a generator of its own."""
    return Chooser(options, torch.Generator().manual_seed(seed))


def next_tokens(logits_BV: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """The next token id of each row (B,): the likeliest, or what its own chooser draws."""
    ids_B = logits_BV.argmax(dim=-1)
    for row, chooser in enumerate(choosers):
        if not chooser.is_plain:
            ids_B[row] = chooser.choose(logits_BV[row : row + 1])[0]
    return ids_B

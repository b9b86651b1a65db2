"""Rotary positions: the angles by which queries and keys are turned, and how checkpoints stretch them to long texts.

Shape letters: B rows, T tokens, H heads, E width of a head, F frequencies, which are E / 2.
Source: Su et al. 2021, arXiv:2104.09864. Orders of operations are those of transformers' modeling_rope_utils.py.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from mmgpt.config import Config


class LinearScaling(Config):
    """Positions squeezed evenly (Chen et al. 2023, arXiv:2306.15595)."""

    kind: Literal["linear"]
    factor: PositiveFloat  # how many times longer the texts become

    def scale_frequencies(self, frequencies_F: Tensor, theta: float) -> tuple[Tensor, float]:
        """Frequencies, and what cosines and sines are multiplied by."""
        return frequencies_F / self.factor, 1.0


class Llama3Scaling(Config):
    """Only slow angles are squeezed, with a smooth passage between (Llama 3.1, arXiv:2407.21783)."""

    kind: Literal["llama3"]
    factor: PositiveFloat  # how many times longer the texts become
    original_context: PositiveInt  # tokens of the texts before
    slow: PositiveFloat = 1.0  # angles that turn less often than this over `original_context` are squeezed whole
    fast: PositiveFloat = 4.0  # those that turn more often than this are left

    def scale_frequencies(self, frequencies_F: Tensor, theta: float) -> tuple[Tensor, float]:
        """Frequencies, and what cosines and sines are multiplied by."""
        turns_F = self.original_context / (2 * math.pi / frequencies_F)
        kept_F = ((turns_F - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return (1 - kept_F) * frequencies_F / self.factor + kept_F * frequencies_F, 1.0


class YarnScaling(Config):
    """Slow angles are squeezed, along a ramp over the channels, and all scores sharpened (arXiv:2309.00071)."""

    renamed: ClassVar[Mapping[str, str]] = {"magnitude": "attention_factor"}
    kind: Literal["yarn"]
    factor: PositiveFloat  # how many times longer the texts become
    original_context: PositiveInt  # tokens of the texts before
    slow: PositiveFloat = 1.0  # angles that turn less often than this over `original_context` are squeezed whole
    fast: PositiveFloat = 32.0  # those that turn more often than this are left
    attention_factor: PositiveFloat = 1.0  # what cosines and sines are multiplied by
    whole: bool = True  # the ramp begins and ends at whole channels

    def scale_frequencies(self, frequencies_F: Tensor, theta: float) -> tuple[Tensor, float]:
        """Frequencies, and what cosines and sines are multiplied by."""
        width = 2 * len(frequencies_F)
        first, last = (
            width * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.fast, self.slow)
        )
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        last = last + 0.001 if first == last else last
        channels_F = torch.arange(len(frequencies_F), device=frequencies_F.device, dtype=torch.float32)
        squeezed_F = ((channels_F - first) / (last - first)).clamp(0, 1)
        stretched_F = frequencies_F / self.factor * squeezed_F + frequencies_F * (1 - squeezed_F)
        return stretched_F, self.attention_factor


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="kind")]


def rope_tables(
    positions_BT: Tensor, width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, E/2) of rotary positions, in float32."""
    exponents_F = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32) / width
    frequencies_F, attention_factor = 1.0 / theta**exponents_F, 1.0
    if scaling is not None:
        frequencies_F, attention_factor = scaling.scale_frequencies(frequencies_F, theta)
    angles_BT1F = positions_BT[..., None, None].float() * frequencies_F
    return angles_BT1F.cos() * attention_factor, angles_BT1F.sin() * attention_factor


def rotate(x_BTHE: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (e, e + E/2), as in Llama, by its position's angle."""
    cos, sin = (table.to(x_BTHE.dtype) for table in tables)
    left, right = x_BTHE.chunk(2, dim=-1)
    turned_left = torch.addcmul(left * cos, right, sin, value=-1)
    turned_right = torch.addcmul(right * cos, left, sin)
    return torch.cat((turned_left, turned_right), dim=-1)

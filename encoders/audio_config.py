"""What all audio encoders share: how a sound comes in, and which frames of a batch are real.

Shape letters: S samples, M clips.
"""

import math
import random
from fractions import Fraction
from typing import Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torchaudio.functional import resample

from mmgpt.config import UserError
from mmgpt.encoders.augment import add_noise, change_speed
from mmgpt.encoders.feature_grids import EncoderSizes
from mmgpt.encoders.one_thread import in_one_thread


class SoundConfig(EncoderSizes):
    """How samples come to an audio encoder."""

    rate: PositiveInt = 16_000  # Hz; every sound is resampled to it
    max_seconds: PositiveFloat = 30.0  # longer clips are refused
    speed: float = Field(default=0.0, ge=0, lt=1)  # while training: played at 1 - speed to 1 + speed, whole percents
    noise_snr: tuple[float, float] | None = None  # while training: lowest and highest, in dB

    @model_validator(mode="after")
    def _ratios_in_order(self) -> Self:
        if self.noise_snr and self.noise_snr[0] > self.noise_snr[1]:
            raise ValueError(f"noise_snr={list(self.noise_snr)}: the lowest ratio comes first; write it the other way")
        return self

    def samples(self, sound: tuple[np.ndarray, int], rng: random.Random | None = None) -> Tensor:
        """A mono sound (samples, rate) at the encoder's rate: float32 (S,).

        Args:
            sound: float32 samples, and how many make a second.
            rng: draws the speed and the noise of this showing; None leaves the sound as it is.
        Raises:
            UserError: if it is longer than `max_seconds`.
        """
        samples, rate = sound
        if len(samples) > self.max_seconds * rate:
            raise UserError(
                f"{len(samples) / rate:.2f} s of sound, over the encoder's limit of {self.max_seconds:g} s; "
                "cut it, or raise max_seconds of the encoder"
            )
        samples_S = torch.from_numpy(samples)
        if rng and self.speed:
            slowest = math.ceil(100 * len(samples) / (self.max_seconds * rate))  # which the limit leaves room for
            width = round(100 * self.speed)
            samples_S = change_speed(samples_S, max(slowest, rng.randint(100 - width, 100 + width)))
        if rng and self.noise_snr:
            samples_S = add_noise(samples_S, rng.uniform(*self.noise_snr), rng.getrandbits(63))
        return resampled(samples_S, rate, self.rate)


@in_one_thread
def resampled(samples_S: Tensor, rate: int, target_rate: int) -> Tensor:
    """A sound at another rate, by a windowed sinc; odd ratios of rates to 0.05 %."""
    return samples_S if rate == target_rate else resample(samples_S, *_small_terms(rate, target_rate))


def _small_terms(rate: int, target_rate: int) -> tuple[int, int]:
    """Numbers in the ratio of two rates whose product, the size of the resampling filters, is at most a million or so.

    The rates in use are met exactly; a header's 44,101 Hz would take filters of gigabytes.
    """
    ratio = Fraction(max(rate, target_rate), min(rate, target_rate))
    more, less = ratio.limit_denominator(max(1, math.isqrt(int(10**6 / ratio)))).as_integer_ratio()
    return (more, less) if rate > target_rate else (less, more)


def valid_mask(lengths_M: Tensor, size: int) -> Tensor:
    """Bool (M, size), True before each clip's end, False in the padding after it."""
    return torch.arange(size, device=lengths_M.device) < lengths_M[:, None]

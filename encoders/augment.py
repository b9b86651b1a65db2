"""Augmentation of sounds while training: another speed, and noise.

Shape letters: S samples.
Source: Ko et al. 2015, "Audio augmentation for speech recognition" (Interspeech); SpecAugment's masks, which act on the
features, are drawn in the encoder.
"""

import torch
from torch import Tensor
from torchaudio.functional import resample


def change_speed(samples_S: Tensor, percent: int) -> Tensor:
    """Play a sound at some percent of its speed: 110 is 1.1 times shorter, and all its frequencies 1.1 times higher.

    Whole percents keep the resampling filters small.
    """
    return samples_S if percent == 100 else resample(samples_S, percent, 100)


def add_noise(samples_S: Tensor, snr: float, seed: int) -> Tensor:
    """Add white Gaussian noise whose power, over the clip, lies `snr` dB below the sound's; silence stays silent."""
    noise_S = torch.randn(samples_S.shape, generator=torch.Generator().manual_seed(seed))
    scale = samples_S.square().mean().sqrt() / noise_S.square().mean().sqrt().clamp(min=1e-6)
    return samples_S + noise_S * scale * 10 ** (-snr / 20)

"""Log-mel front end: a sound to frames of mel bands.

Shape letters: S samples, F mel bands, T frames.
Source: Stevens et al. 1937 (the mel scale); computed by torchaudio's MelSpectrogram.
"""

import math
from fractions import Fraction
from functools import lru_cache

from torch import Tensor
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

FLOOR = 1e-6  # power below which all is silence
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010


def num_frames(num_samples: int, rate: int) -> int:
    """Frames of a sound: one a hop, the first centred on the first sample."""
    return 1 + num_samples // round(HOP_SECONDS * rate)


def log_mel(samples_S: Tensor, *, rate: int, target_rate: int, bands: int) -> Tensor:
    """Log-mel features (F, T) of a mono sound, shifted and scaled to mean 0 and deviation 1 over the clip.

    Args:
        samples_S: float32 samples.
        rate: what they were recorded at, in Hz.
        target_rate: what they are resampled to, by a windowed sinc; odd ratios of rates to 0.05 %.
        bands: F.
    """
    if rate != target_rate:
        samples_S = resample(samples_S, *_small_terms(rate, target_rate))
    log_FT = (_transform(target_rate, bands)(samples_S) + FLOOR).log()
    return (log_FT - log_FT.mean()) / (log_FT.std(correction=0) + 1e-3)


def _small_terms(rate: int, target_rate: int) -> tuple[int, int]:
    """Numbers in the ratio of two rates whose product, the size of the resampling filters, is at most a million or so.

    The rates in use are met exactly; a header's 44,101 Hz would take filters of gigabytes.
    """
    ratio = Fraction(max(rate, target_rate), min(rate, target_rate))
    more, less = ratio.limit_denominator(max(1, math.isqrt(int(10**6 / ratio)))).as_integer_ratio()
    return (more, less) if rate > target_rate else (less, more)


@lru_cache(maxsize=8)
def _transform(rate: int, bands: int) -> MelSpectrogram:
    window = round(WINDOW_SECONDS * rate)
    return MelSpectrogram(
        sample_rate=rate,
        n_fft=1 << (window - 1).bit_length(),
        win_length=window,
        hop_length=round(HOP_SECONDS * rate),
        n_mels=bands,
        pad_mode="constant",  # a clip may be shorter than the half window that a mirrored edge would take
    )

"""Log-mel front ends: a sound to frames of mel bands.

Shape letters: S samples, F mel bands, T frames, L samples of a frame, K frequencies.
Source: Stevens et al. 1937 (the mel scale); computed by torchaudio's MelSpectrogram, or as Kaldi's compute-fbank-feats.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torchaudio.functional import preemphasis
from torchaudio.transforms import MelSpectrogram

from mmgpt.config import Config
from mmgpt.encoders.audio_config import resampled


class MelFeatures(Config):
    """Frames centred on every hop, over zeros past both ends; the defaults are what is trained from scratch here."""

    renamed: ClassVar[Mapping[str, str]] = {"guard": "log_floor"}
    kind: Literal["mel"] = "mel"
    window_seconds: PositiveFloat = 0.025
    hop_seconds: PositiveFloat = 0.010
    fft: PositiveInt | None = None  # samples of a transform; None: the next power of two above the window
    symmetric: bool = False  # the Hann window's last sample is as its first; else as the one after its end
    preemphasis: NonNegativeFloat = 0.0  # share of the sample before that is taken off each one
    scale: Literal["htk", "slaney"] = "htk"  # slaney: linear below 1 kHz, and each band's weights sum to the same
    log_floor: PositiveFloat = 1e-6  # added to each power before its logarithm: below it all is silence
    last_frame: bool = True  # keep the frame that may stand past the last whole hop
    normalise: Literal["clip", "band"] = "clip"  # to mean 0 and deviation 1 over all of the clip, or in each band

    def num_frames(self, num_samples: int, rate: int) -> int:
        """Frames of a sound: one a hop, the first centred on the first sample; at least one."""
        return max(1, num_samples // round(self.hop_seconds * rate) + self.last_frame)

    def fewest_samples(self, rate: int) -> int:
        """Samples to which a shorter sound is filled with silence."""
        return 1 if self.last_frame else round(self.hop_seconds * rate)

    def features(self, samples_S: Tensor, rate: int, bands: int) -> Tensor:
        """Normalised log-mel features (F, T)."""
        if self.preemphasis:
            samples_S = preemphasis(samples_S, self.preemphasis)
        log_FT = (_transform(self, rate, bands)(samples_S) + self.log_floor).log()
        log_FT = log_FT[:, : self.num_frames(len(samples_S), rate)]
        if self.normalise == "clip":
            return (log_FT - log_FT.mean()) / (log_FT.std(correction=0) + 1e-3)
        return (log_FT - log_FT.mean(1, keepdim=True)) / (_band_variance(log_FT).sqrt() + 1e-5)


class KaldiFeatures(Config):
    """Kaldi's filter banks (25 ms every 10 ms, only whole windows), each band of mean 0 and deviation 1."""

    kind: Literal["kaldi"]
    window_seconds: ClassVar[float] = 0.025
    hop_seconds: ClassVar[float] = 0.010

    def num_frames(self, num_samples: int, rate: int) -> int:
        """Frames of a sound: the windows that fit into it; at least one."""
        return max(1, 1 + (num_samples - self.fewest_samples(rate)) // round(self.hop_seconds * rate))

    def fewest_samples(self, rate: int) -> int:
        """Samples to which a shorter sound is filled with silence."""
        return round(self.window_seconds * rate)

    def features(self, samples_S: Tensor, rate: int, bands: int) -> Tensor:
        """Normalised log-mel features (F, T); up to the logarithm in float64, for it is that of small differences."""
        length, hop = self.fewest_samples(rate), round(self.hop_seconds * rate)
        frames_TL = samples_S.double().unfold(0, length, hop) * 2**15  # Kaldi reads samples of 16 bits
        frames_TL = frames_TL - frames_TL.mean(1, keepdim=True)
        before_TL = torch.cat([frames_TL[:, :1], frames_TL[:, :-1]], dim=1)
        povey_L = torch.hann_window(length, periodic=False, dtype=torch.float64) ** 0.85
        fft = 1 << (length - 1).bit_length()
        power_TK = torch.fft.rfft((frames_TL - 0.97 * before_TL) * povey_L, fft).abs() ** 2
        floor = torch.finfo(torch.float32).eps
        log_FT = (power_TK @ _kaldi_filters(rate, fft, bands)).clamp(min=floor).log().mT.float()
        return (log_FT - log_FT.mean(1, keepdim=True)) / (_band_variance(log_FT) + 1e-7).sqrt()


FeatureExtractorConfig = Annotated[MelFeatures | KaldiFeatures, Field(discriminator="kind")]
PLAIN = MelFeatures()


def log_mel(
    samples_S: Tensor,
    *,
    rate: int,
    target_rate: int,
    bands: int,
    feature_extractor: MelFeatures | KaldiFeatures = PLAIN,
) -> Tensor:
    """Log-mel features (F, T) of a mono sound.

    Args:
        samples_S: float32 samples.
        rate: what they were recorded at, in Hz.
        target_rate: what they are resampled to.
        bands: F.
        feature_extractor: windows, filters and normalisation.
    """
    samples_S = resampled(samples_S, rate, target_rate)
    missing = feature_extractor.fewest_samples(target_rate) - len(samples_S)
    return feature_extractor.features(F.pad(samples_S, (0, max(0, missing))), target_rate, bands)


def _band_variance(log_FT: Tensor) -> Tensor:
    return log_FT.var(1, keepdim=True, correction=min(1, log_FT.shape[1] - 1))


@lru_cache(maxsize=8)
def _transform(feature_extractor: MelFeatures, rate: int, bands: int) -> MelSpectrogram:
    window = round(feature_extractor.window_seconds * rate)
    fft = feature_extractor.fft or 1 << (window - 1).bit_length()
    transform = MelSpectrogram(
        sample_rate=rate,
        n_fft=fft,
        win_length=window,
        hop_length=round(feature_extractor.hop_seconds * rate),
        n_mels=bands,
        window_fn=partial(torch.hann_window, periodic=not feature_extractor.symmetric),
        pad_mode="constant",  # a clip may be shorter than the half window that a mirrored edge would take
        norm="slaney" if feature_extractor.scale == "slaney" else None,
        mel_scale=feature_extractor.scale,
    )
    if feature_extractor.scale == "slaney":
        transform.mel_scale.fb.copy_(slaney_filters(rate, fft, bands, rate / 2))
    return transform


def slaney_filters(rate: int, fft: int, bands: int, top: float) -> Tensor:
    """Triangular filters (K, F) from 0 to `top` Hz as in Slaney's Auditory Toolbox (1998); of equal area each.

    In float64 on the way, unlike torchaudio's, whose narrow bands are off by up to 2e-5.
    """
    linear, logarithmic, knee = 200 / 3, np.log(6.4) / 27, 1000.0  # Hz a mel below the knee, nepers a mel above it
    top_mel = top / linear if top < knee else knee / linear + np.log(top / knee) / logarithmic
    mels = np.linspace(0, top_mel, bands + 2)
    edges = np.where(mels < knee / linear, mels * linear, knee * np.exp(logarithmic * (mels - knee / linear)))
    frequencies_K1 = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    return torch.from_numpy(_triangles(frequencies_K1, edges) * 2 / (edges[2:] - edges[:-2])).float()


@lru_cache(maxsize=8)
def _kaldi_filters(rate: int, fft: int, bands: int) -> Tensor:
    """Triangular filters (K, F) whose sides are straight over mels, from 20 Hz to half the rate."""
    frequencies_K1 = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    lowest, highest = (1127 * np.log1p(hertz / 700) for hertz in (20, rate / 2))
    edges = np.linspace(lowest, highest, bands + 2)
    return torch.from_numpy(_triangles(1127 * np.log1p(frequencies_K1 / 700), edges))


def _triangles(places_K1: np.ndarray, edges: np.ndarray) -> np.ndarray:
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    sides = np.minimum((places_K1 - low) / (middle - low), (high - places_K1) / (high - middle))
    triangles: np.ndarray = np.maximum(0, sides)
    return triangles

"""Audio encoder: Whisper's, a transformer over windows of 30 s that are always padded the same.

A sound travels as its samples: its length alone tells how many features it gives, and the log-mel frames of a window,
which reach past the sound's end, are made where the encoder runs. Longer sounds are windows one after the other.

Shape letters: S samples, M clips, W windows of a clip, P windows of all clips, F mel bands, T mel frames, N features,
D width.
Source: Radford et al. 2022, arXiv:2212.04356; the pooling: Qwen2-Audio, arXiv:2407.10759.
"""

import math
import random
from functools import lru_cache
from typing import Literal, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmgpt.encoders.audio_config import SoundConfig, valid_mask
from mmgpt.encoders.feature_grids import FeatureGrid
from mmgpt.encoders.mel import slaney_filters
from mmgpt.encoders.one_thread import in_one_thread

HIGHEST_BAND_HZ = 8000.0  # Hz, of the highest mel band at any rate
Count = TypeVar("Count", int, Tensor)


class WhisperConfig(SoundConfig):
    """Size and front end of a Whisper encoder."""

    kind: Literal["whisper"] = "whisper"
    mels: PositiveInt = 80
    hop: PositiveInt = 160  # samples from a mel frame to the next
    fft: PositiveInt = 400  # samples under a mel frame's window
    positions: PositiveInt = 1500  # features of a window before pooling, of two mel frames each
    width: PositiveInt = 384
    depth: PositiveInt = 4
    heads: PositiveInt = 6
    inner: PositiveInt = 1536  # width of the feed-forward layers
    pool: Literal[1, 2] = 1  # features averaged to one before the last norm; 2 as in Qwen2-Audio
    masked: bool = False  # attention sees no feature of the silence after a sound, as in Qwen2-Audio; Whisper sees it
    dropout: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.width % 2 or self.width < 4:
            raise ValueError(f"width={self.width} must be even and at least 4: sines and cosines share it")
        if self.window <= self.fft // 2:
            raise ValueError(f"fft={self.fft} takes more than a window of {self.window} samples; use more positions")
        return self

    @property
    def window(self) -> int:
        """Samples of a window."""
        return 2 * self.positions * self.hop

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of the longest clip's tensor."""
        return (int(self.max_seconds * self.rate),)

    def features(self, samples: Count) -> Count:
        """Features of a sound of so many samples: those of each window that begin in real sound.

        A pair of which only the first does is dropped, as Qwen2-Audio does.
        """
        rest = samples % self.window
        frames = -(-rest // self.hop)
        return samples // self.window * (self.positions // self.pool) + -(-frames // 2) // self.pool

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """How the features of a clip whose tensor has the shape (S,) lie: in one row, (features,)."""
        return ((self.features(shape[-1]),),)

    @in_one_thread
    def preprocess(self, sound: tuple[np.ndarray, int], rng: random.Random | None = None) -> Tensor:
        """Resample a mono sound (samples, rate): float32 (S,), filled with silence where it is too short for a feature.

        Args:
            sound: float32 samples, and how many make a second.
            rng: draws the speed and the noise of this showing; None leaves the sound as it is.
        Raises:
            UserError: if it is longer than `max_seconds`.
        """
        samples_S = self.samples(sound, rng)
        fewest = 1 + 2 * self.hop * (self.pool - 1)
        return F.pad(samples_S, (0, max(0, fewest - len(samples_S))))


class WhisperEncoder(nn.Module):
    """Samples to features; the count is `config.num_tokens`."""

    position_ND: Tensor

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(config.mels, config.width, 3, padding=1),
                nn.Conv1d(config.width, config.width, 3, stride=2, padding=1),
            ]
        )
        self.register_buffer("position_ND", _sinusoids(config.positions, config.width))  # never trained, but stored
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, samples_MS: Tensor, shapes_M1: Tensor) -> Tensor:
        """Encode clips to features (M, N, D), zeros after each clip's `config.num_tokens`.

        Args:
            samples_MS: float32 samples, padded at the end with anything.
            shapes_M1: samples of each clip.
        """
        lengths_M = shapes_M1[:, -1]
        window = self.config.window
        samples_MS = samples_MS * valid_mask(lengths_M, samples_MS.shape[1])
        samples_MWS = F.pad(samples_MS, (0, -samples_MS.shape[1] % window)).unflatten(1, (-1, window))
        used_MW = valid_mask(-(-lengths_M // window), samples_MWS.shape[1])
        visible_P1N = None
        if self.config.masked:
            starts_W = torch.arange(samples_MWS.shape[1], device=lengths_M.device) * window
            inside_P = (lengths_M[:, None] - starts_W).clamp(max=window)[used_MW]
            visible_P1N = valid_mask(-(-inside_P // (2 * self.config.hop)), self.config.positions)[:, None]
        mel_PFT = log_mel_of(samples_MWS[used_MW], self.config).to(self.norm.weight.dtype)
        features_PND = self.encode_windows(mel_PFT, visible_P1N)
        features_MWND = features_PND.new_zeros(*used_MW.shape, *features_PND.shape[1:])
        features_MWND[used_MW] = features_PND
        real_MN = valid_mask(self.config.features(lengths_M), self.config.num_tokens(samples_MS.shape))
        return features_MWND.flatten(1, 2)[:, : real_MN.shape[1]] * real_MN[..., None]

    def encode_windows(self, mel_PFT: Tensor, visible_P1N: Tensor | None = None) -> Tensor:
        """Features (P, N, D) of whole windows of log-mel frames (P, F, T), where attention sees the visible ones."""
        for convolution in self.convolutions:
            mel_PFT = F.gelu(convolution(mel_PFT))
        x_PND = mel_PFT.mT + self.position_ND
        for block in self.blocks:
            x_PND = block(x_PND, visible_P1N)
        if self.config.pool > 1:
            x_PND = F.avg_pool1d(x_PND.mT, self.config.pool).mT
        out_PND: Tensor = self.norm(x_PND)
        return out_PND


class Block(nn.Module):
    """Attention over the whole window and a feed-forward, each pre-normed and added."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, config.inner), nn.GELU(), nn.Linear(config.inner, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_PND: Tensor, visible_P1N: Tensor | None) -> Tensor:
        """One layer."""
        before_attention, before_mlp = self.norms
        normed_PND = before_attention(x_PND)
        split = "p n (h e) -> p h n e"
        query, key, value = (rearrange(f(normed_PND), split, h=self.heads) for f in (self.query, self.key, self.value))
        visible = None if visible_P1N is None else visible_P1N[:, None]
        mixed_PHNE = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x_PND = x_PND + self.dropout(self.out(rearrange(mixed_PHNE, "p h n e -> p n (h e)")))
        out_PND: Tensor = x_PND + self.dropout(self.mlp(before_mlp(x_PND)))
        return out_PND


def log_mel_of(samples_PS: Tensor, config: WhisperConfig) -> Tensor:
    """Log-mel frames (P, F, T) of whole windows: the top 8 powers of ten of each, about zero."""
    window_S, filters_KF = _front_end(config.rate, config.fft, config.mels, samples_PS.device)
    with torch.autocast(samples_PS.device.type, enabled=False):
        spectrum_PKT = torch.stft(samples_PS.float(), config.fft, config.hop, window=window_S, return_complex=True)
        power_PKT = spectrum_PKT[..., :-1].abs() ** 2  # the last frame is centred on the next window's first sample
        log_PFT = (filters_KF.mT @ power_PKT).clamp(min=1e-10).log10()
    log_PFT = log_PFT.maximum(log_PFT.amax((1, 2), keepdim=True) - 8)
    return (log_PFT + 4) / 4


@lru_cache(maxsize=8)
def _front_end(rate: int, fft: int, bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.hann_window(fft).to(device), slaney_filters(rate, fft, bands, HIGHEST_BAND_HZ).to(device)


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines, then cosines, of the positions (N, D) in the reference's order of operations."""
    step = math.log(10_000) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)

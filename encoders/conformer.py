"""Audio encoder: a conformer over log-mel frames, masked so that a clip's features never depend on its batch.

Shape letters: M clips, F mel bands, T mel frames, C channels, N encoded frames, R relative distances, D width, H heads,
E width of a head.
Source: Gulati et al. 2020, arXiv:2005.08100; relative positions: Dai et al. 2019, arXiv:1901.02860. Layer norm stands
where the paper has batch norm, whose statistics would mix clips.
"""

import itertools
import math
import random
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mmgpt.config import UserError
from mmgpt.encoders.augment import add_noise, change_speed
from mmgpt.encoders.mel import log_mel, num_frames
from mmgpt.encoders.pieces import Grid, PiecesConfig


class ConformerConfig(PiecesConfig):
    """Size and front end of a conformer."""

    kind: Literal["conformer"] = "conformer"
    rate: PositiveInt = 16_000  # Hz; every sound is resampled to it
    mels: PositiveInt = 80
    max_seconds: PositiveFloat = 30.0  # longer clips are refused
    subsampling: Literal[2, 4, 8] = 4  # mel frames, 10 ms each, to an encoded frame
    stem: PositiveInt = 32  # channels of the subsampling convolutions
    width: PositiveInt = 256
    depth: PositiveInt = 12
    heads: PositiveInt = 4
    mlp_ratio: PositiveFloat = 4.0
    kernel: PositiveInt = 15  # encoded frames that a block's convolution spans
    window: PositiveInt | None = None  # encoded frames to either side that attention reaches; None: all
    chunk: PositiveInt | None = None  # encoded frames at a time outside training: the same features, less memory
    dropout: NonNegativeFloat = 0.0
    time_masks: NonNegativeInt = 0  # SpecAugment (arXiv:1904.08779), while training: stretches of time set to the mean
    time_mask: PositiveFloat = 0.1  # the longest, as a share of the clip
    band_masks: NonNegativeInt = 0  # the same for bands
    band_mask: PositiveFloat = 0.2
    speed: float = Field(default=0.0, ge=0, lt=1)  # while training: played at 1 - speed to 1 + speed, whole percents
    noise_snr: tuple[float, float] | None = None  # while training: lowest and highest, in dB

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} is even; an odd one has a middle")
        if self.chunk and not self.window:
            raise ValueError(f"chunk={self.chunk} needs a window: attention without one reaches the whole clip")
        if self.noise_snr and self.noise_snr[0] > self.noise_snr[1]:
            raise ValueError(f"noise_snr={list(self.noise_snr)}: the lowest ratio comes first; write it the other way")
        return self

    @property
    def largest(self) -> tuple[int, ...]:
        """Shape of the longest clip's tensor."""
        return (self.mels, num_frames(int(self.max_seconds * self.rate), self.rate))

    @property
    def reach(self) -> int | None:
        """Encoded frames to either side that a feature can depend on; None for the whole clip."""
        return None if self.window is None else self.depth * (self.window + self.kernel // 2) + 1

    def grids_of(self, shape: tuple[int, ...]) -> tuple[Grid, ...]:
        """How the features of a clip whose tensor has the shape (F, T) lie: one piece, (frames,)."""
        return ((math.ceil(shape[-1] / self.subsampling),),)

    def prepare(self, sound: tuple[np.ndarray, int], rng: random.Random | None = None) -> Tensor:
        """Resample a mono sound (samples, rate) and make its log-mel features: float32 (mels, T).

        Args:
            sound: float32 samples (S,), and how many make a second.
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
        return log_mel(samples_S, rate=rate, target_rate=self.rate, bands=self.mels)


class ConformerEncoder(nn.Module):
    """Log-mel features to encoded frames; the count is `config.num_tokens`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.subsample = Subsampling(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, mel_MFT: Tensor, shapes_M2: Tensor) -> Tensor:
        """Encode clips to features (M, N, D), zeros after each clip's `config.num_tokens`.

        Args:
            mel_MFT: log-mel features, padded at the end of the last axis with anything.
            shapes_M2: bands and frames of each clip.
        """
        lengths_M = shapes_M2[:, -1]
        if self.training:
            mel_MFT = mask_spectrogram(mel_MFT, lengths_M, self.config)
        elif self.config.chunk and mel_MFT.shape[-1] > self.config.chunk * self.config.subsampling:
            return self._in_chunks(mel_MFT, lengths_M, self.config.chunk)
        return self._encode(mel_MFT, lengths_M)

    def _encode(self, mel_MFT: Tensor, lengths_M: Tensor) -> Tensor:
        x_MND, counts_M = self.subsample(mel_MFT, lengths_M)
        real_MN = is_real(counts_M, x_MND.shape[1])
        distances_RD = _sinusoids(x_MND.shape[1], self.config.width, x_MND)
        visible_MNN = real_MN[:, None, :]
        if self.config.window:
            places_N = torch.arange(x_MND.shape[1], device=x_MND.device)
            visible_MNN = visible_MNN & ((places_N[:, None] - places_N).abs() <= self.config.window)
            visible_MNN = visible_MNN | torch.eye(len(places_N), dtype=torch.bool, device=x_MND.device)
        for block in self.blocks:
            x_MND = block(x_MND, real_MN, visible_MNN, distances_RD)
        return x_MND * real_MN[..., None]

    def _in_chunks(self, mel_MFT: Tensor, lengths_M: Tensor, chunk: int) -> Tensor:
        """The features of one pass, a chunk at a time with as much before and after it as they can depend on."""
        stride, reach = self.config.subsampling, self.config.reach
        assert reach is not None  # the config's validator holds it
        pieces = []
        for start in range(0, self.config.num_tokens(mel_MFT.shape), chunk):
            first = max(0, start - reach)
            window_MFT = mel_MFT[..., first * stride : (start + chunk + reach) * stride]
            inside_M = (lengths_M - first * stride).clamp(0, window_MFT.shape[-1])
            pieces.append(self._encode(window_MFT, inside_M)[:, start - first : start - first + chunk])
        return torch.cat(pieces, dim=1)


class Subsampling(nn.Module):
    """3x3 convolutions of stride 2 over time and bands, then a projection to the width."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        halvings = int(math.log2(config.subsampling))
        channels = [1] + [config.stem] * halvings
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(channels)
        )
        for name, parameter in self.convolutions.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        self.project = nn.Linear(config.stem * math.ceil(config.mels / config.subsampling), config.width)

    def forward(self, mel_MFT: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor]:
        """Features (M, N, D) and their number (M,)."""
        x_MCFT = mel_MFT[:, None]
        for convolution in self.convolutions:
            x_MCFT = x_MCFT * is_real(lengths_M, x_MCFT.shape[-1])[:, None, None]
            x_MCFT = F.gelu(convolution(x_MCFT))
            lengths_M = (lengths_M + 1) // 2
        out_MND: Tensor = self.project(rearrange(x_MCFT, "m c f n -> m n (c f)"))
        return out_MND, lengths_M


class RelativeAttention(nn.Module):
    """Self-attention whose scores add a term for the distance between query and key."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        width = config.width // config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.distance = nn.Linear(config.width, config.width, bias=False)
        self.content_bias_HE = nn.Parameter(torch.zeros(config.heads, width))
        self.distance_bias_HE = nn.Parameter(torch.zeros(config.heads, width))

    def forward(self, x_MND: Tensor, visible_MNN: Tensor, distances_RD: Tensor) -> Tensor:
        """Attend where `visible` is True."""
        split = "m n (h e) -> m h n e"
        query, key, value = (rearrange(f(x_MND), split, h=self.heads) for f in (self.query, self.key, self.value))
        distance_HRE = rearrange(self.distance(distances_RD), "r (h e) -> h r e", h=self.heads)
        length = x_MND.shape[1]
        by_distance_MHNR = (query + self.distance_bias_HE[:, None]) @ distance_HRE.mT
        places_N = torch.arange(length, device=x_MND.device)
        index_NN = length - 1 - (places_N[:, None] - places_N)  # entry r of R stands for the distance length - 1 - r
        score_MHNN = by_distance_MHNR.gather(3, index_NN.expand(*query.shape[:2], -1, -1)) * query.shape[-1] ** -0.5
        mixed_MHNE = F.scaled_dot_product_attention(
            query + self.content_bias_HE[:, None],
            key,
            value,
            attn_mask=score_MHNN.masked_fill(~visible_MNN[:, None], -math.inf),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_MND: Tensor = self.out(rearrange(mixed_MHNE, "m h n e -> m n (h e)"))
        return out_MND


class Convolution(nn.Module):
    """A gate, a depthwise convolution over time that sees zeros for padding, and a projection."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(
            config.width, config.width, config.kernel, padding=config.kernel // 2, groups=config.width
        )
        self.norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, config.width)

    def forward(self, x_MND: Tensor, real_MN: Tensor) -> Tensor:
        """Mix each frame with its neighbours."""
        gated_MND = F.glu(self.enter(x_MND)) * real_MN[..., None]
        mixed_MND = self.depthwise(gated_MND.mT).mT
        out_MND: Tensor = self.leave(F.silu(self.norm(mixed_MND)))
        return out_MND


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each pre-normed and added."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        inner = round(config.width * config.mlp_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(5))
        self.first, self.last = (
            nn.Sequential(nn.Linear(config.width, inner), nn.SiLU(), nn.Linear(inner, config.width)) for _ in range(2)
        )
        self.attention = RelativeAttention(config)
        self.convolution = Convolution(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_MND: Tensor, real_MN: Tensor, visible_MNN: Tensor, distances_RD: Tensor) -> Tensor:
        """One layer."""
        before_first, before_attention, before_convolution, before_last, at_end = self.norms
        x_MND = x_MND + 0.5 * self.dropout(self.first(before_first(x_MND)))
        x_MND = x_MND + self.dropout(self.attention(before_attention(x_MND), visible_MNN, distances_RD))
        x_MND = x_MND + self.dropout(self.convolution(before_convolution(x_MND), real_MN))
        x_MND = x_MND + 0.5 * self.dropout(self.last(before_last(x_MND)))
        out_MND: Tensor = at_end(x_MND)
        return out_MND


def is_real(lengths_M: Tensor, size: int) -> Tensor:
    """Bool (M, size), True before each clip's end, False in the padding after it."""
    return torch.arange(size, device=lengths_M.device) < lengths_M[:, None]


def _sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines (R, D) of the distances length - 1 down to 1 - length."""
    distances_R = torch.arange(length - 1, -length, -1, device=like.device, dtype=torch.float32)
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = distances_R[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width].to(like.dtype)


def mask_spectrogram(mel_MFT: Tensor, lengths_M: Tensor, config: ConformerConfig) -> Tensor:
    """Set random stretches of time and of bands to zero, the clip's mean (SpecAugment, arXiv:1904.08779)."""
    if not config.time_masks and not config.band_masks:
        return mel_MFT
    clips, bands, frames = mel_MFT.shape
    keep_MFT = torch.ones_like(mel_MFT, dtype=torch.bool)
    for count, share, axis, sizes_M in (
        (config.time_masks, config.time_mask, 2, lengths_M),
        (config.band_masks, config.band_mask, 1, torch.full_like(lengths_M, bands)),
    ):
        places = torch.arange(frames if axis == 2 else bands, device=mel_MFT.device)
        for _ in range(count):
            width_M = torch.rand(clips).to(mel_MFT.device) * share * sizes_M
            start_M = torch.rand(clips).to(mel_MFT.device) * (sizes_M - width_M)
            hidden = (places >= start_M[:, None]) & (places < (start_M + width_M)[:, None])
            keep_MFT = keep_MFT & ~(hidden[:, None] if axis == 2 else hidden[:, :, None])
    return mel_MFT * keep_MFT

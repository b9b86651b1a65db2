"""Audio encoder: a conformer over log-mel frames, masked so that a clip's features never depend on its batch.

Shape letters: M clips, P pieces of clips, F mel bands, T mel frames, C channels, N encoded frames, R relative
distances, D width, H heads, E width of a head.
Source: Gulati et al. 2020, arXiv:2005.08100; relative positions: Dai et al. 2019, arXiv:1901.02860. Layer norm stands
where the paper has batch norm, whose statistics would mix clips. By its switches it is the encoder of FastConformer
(Rekesh et al. 2023, arXiv:2305.05084) and of w2v-BERT 2.0 (arXiv:2312.05187), too.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.encoders.audio_config import valid_mask
from mmgpt.encoders.conformer_config import ConformerConfig


class ConformerEncoder(nn.Module):
    """Log-mel features to encoded frames; the count is `config.num_tokens`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.subsample = STEMS[config.stem_kind](config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, mel_MFT: Tensor, shapes_M2: Tensor) -> Tensor:
        """Encode clips to features (M, N, D), zeros after each clip's `config.num_tokens`.

        Args:
            mel_MFT: log-mel features, padded at the end of the last axis with anything.
            shapes_M2: bands and frames of each clip.
        """
        lengths_M, mel_MFT = shapes_M2[:, -1], mel_MFT.to(next(self.parameters()).dtype)
        if self.training:
            mel_MFT = mask_spectrogram(mel_MFT, lengths_M, self.config)
        if mel_MFT.shape[-1] > self.config.piece(mel_MFT.shape[-1]):
            return self._in_pieces(mel_MFT, lengths_M)
        return self._encode(mel_MFT, lengths_M)

    def _in_pieces(self, mel_MFT: Tensor, lengths_M: Tensor) -> Tensor:
        """The features of each clip's pieces in a row; each but a clip's last is a whole number of features."""
        clips = [mel_FT[:, :length] for mel_FT, length in zip(mel_MFT, lengths_M.tolist(), strict=True)]
        pieces = [piece_FT for mel_FT in clips for piece_FT in mel_FT.split(self.config.piece(mel_FT.shape[1]), dim=1)]
        mel_PFT = pad_sequence([piece_FT.mT for piece_FT in pieces], batch_first=True).mT
        lengths_P = torch.tensor([piece_FT.shape[1] for piece_FT in pieces], device=mel_MFT.device)
        features_PND = self._encode(mel_PFT, lengths_P)
        counts = [self.config.num_tokens(piece_FT.shape) for piece_FT in pieces]
        row_XD = torch.cat([features_ND[:count] for features_ND, count in zip(features_PND, counts, strict=True)])
        features_MND = pad_sequence(row_XD.split([self.config.num_tokens(c.shape) for c in clips]), batch_first=True)
        return F.pad(features_MND, (0, 0, 0, self.config.num_tokens(mel_MFT.shape) - features_MND.shape[1]))

    def _encode(self, mel_MFT: Tensor, lengths_M: Tensor) -> Tensor:
        chunk = self.config.chunk
        if chunk and not self.training and mel_MFT.shape[-1] > chunk * self.config.subsampling:
            return self._in_chunks(mel_MFT, lengths_M, chunk)
        return self._at_once(mel_MFT, lengths_M)

    def _at_once(self, mel_MFT: Tensor, lengths_M: Tensor) -> Tensor:
        x_MND, counts_M = self.subsample(mel_MFT, lengths_M)
        if self.config.scale_stem:
            x_MND = x_MND * math.sqrt(self.config.width)
        real_MN = valid_mask(counts_M, x_MND.shape[1])
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
        stride, reach = self.config.subsampling, self.config.receptive_field
        assert reach is not None  # the config's validator holds it
        pieces = []
        for start in range(0, self.config.num_tokens(mel_MFT.shape), chunk):
            first = max(0, start - reach)
            window_MFT = mel_MFT[..., first * stride : (start + chunk + reach) * stride]
            inside_M = (lengths_M - first * stride).clamp(0, window_MFT.shape[-1])
            pieces.append(self._at_once(window_MFT, inside_M)[:, start - first : start - first + chunk])
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
            x_MCFT = x_MCFT * valid_mask(lengths_M, x_MCFT.shape[-1])[:, None, None]
            x_MCFT = F.gelu(convolution(x_MCFT))
            lengths_M = (lengths_M + 1) // 2
        out_MND: Tensor = self.project(rearrange(x_MCFT, "m c f n -> m n (c f)"))
        return out_MND, lengths_M


class SeparableSubsampling(nn.Module):
    """One 3x3 convolution of stride 2, then pairs of a depthwise one and a pointwise one, and a projection."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        halvings, stem = int(math.log2(config.subsampling)), config.stem
        self.first = nn.Conv2d(1, stem, 3, stride=2, padding=1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(stem, stem, 3, stride=2, padding=1, groups=stem) for _ in range(halvings - 1)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(stem, stem, 1) for _ in range(halvings - 1))
        self.project = nn.Linear(stem * math.ceil(config.mels / config.subsampling), config.width)

    def forward(self, mel_MFT: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor]:
        """Features (M, N, D) and their number (M,)."""
        x_MCTF = (mel_MFT * valid_mask(lengths_M, mel_MFT.shape[-1])[:, None]).mT[:, None]
        x_MCTF, lengths_M = self.first(x_MCTF), (lengths_M + 1) // 2
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x_MCTF = F.relu(x_MCTF) * valid_mask(lengths_M, x_MCTF.shape[2])[:, None, :, None]
            x_MCTF, lengths_M = pointwise(depthwise(x_MCTF)), (lengths_M + 1) // 2
        out_MND: Tensor = self.project(rearrange(F.relu(x_MCTF), "m c n f -> m n (c f)"))
        return out_MND, lengths_M


class Stack(nn.Module):
    """The mel frames of a feature joined, normed and projected to the width."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.frames = config.subsampling
        self.norm = nn.LayerNorm(config.mels * config.subsampling)
        self.project = nn.Linear(config.mels * config.subsampling, config.width)

    def forward(self, mel_MFT: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor]:
        """Features (M, N, D) and their number (M,); padding within the last one counts as silence."""
        mel_MFT = mel_MFT * valid_mask(lengths_M, mel_MFT.shape[-1])[:, None]
        mel_MFT = F.pad(mel_MFT, (0, -mel_MFT.shape[-1] % self.frames))
        stacked_MNK = rearrange(mel_MFT, "m f (n s) -> m n (s f)", s=self.frames)
        out_MND: Tensor = self.project(self.norm(stacked_MNK))
        return out_MND, -(-lengths_M // self.frames)


STEMS = {"conv": Subsampling, "separable": SeparableSubsampling, "stack": Stack}


class RelativeAttention(nn.Module):
    """Self-attention whose scores add a term for the distance between query and key."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout, self.limits = config.heads, config.dropout, config.distances
        width = config.width // config.heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.width, config.width, bias=config.bias) for _ in range(4)
        )
        if self.limits:
            self.distance_RE = nn.Parameter(torch.randn(sum(self.limits) + 1, width) * width**-0.5)
        else:
            self.distance = nn.Linear(config.width, config.width, bias=False)
            self.content_bias_HE = nn.Parameter(torch.zeros(config.heads, width))
            self.distance_bias_HE = nn.Parameter(torch.zeros(config.heads, width))

    def forward(self, x_MND: Tensor, visible_MNN: Tensor, distances_RD: Tensor) -> Tensor:
        """Attend where `visible` is True."""
        split = "m n (h e) -> m h n e"
        query, key, value = (rearrange(f(x_MND), split, h=self.heads) for f in (self.query, self.key, self.value))
        places_N = torch.arange(x_MND.shape[1], device=x_MND.device)
        ahead_NN = places_N - places_N[:, None]  # frames from the query to the key
        if self.limits:
            by_distance_MHNR = query @ self.distance_RE.mT
            index_NN = ahead_NN.clamp(-self.limits[0], self.limits[1]) + self.limits[0]
        else:
            distance_HRE = rearrange(self.distance(distances_RD), "r (h e) -> h r e", h=self.heads)
            by_distance_MHNR = (query + self.distance_bias_HE[:, None]) @ distance_HRE.mT
            index_NN = ahead_NN + x_MND.shape[1] - 1  # entry r of R is a key r - (length - 1) frames ahead
            query = query + self.content_bias_HE[:, None]
        score_MHNN = by_distance_MHNR.gather(3, index_NN.expand(*query.shape[:2], -1, -1)) * query.shape[-1] ** -0.5
        mixed_MHNE = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=score_MHNN.masked_fill(~visible_MNN[:, None], -math.inf),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_MND: Tensor = self.out(rearrange(mixed_MHNE, "m h n e -> m n (h e)"))
        return out_MND


class Affine(nn.Module):
    """A learned scale and shift of each channel: what a batch norm is once its statistics stand still."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x_MND: Tensor) -> Tensor:
        """Scale and shift."""
        return x_MND * self.weight + self.bias


class Convolution(nn.Module):
    """A gate, a depthwise convolution over time that sees zeros for padding, and a projection."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width, bias, reach = config.width, config.conv_bias, config.kernel - 1
        self.padding = (reach, 0) if config.causal else (reach // 2, reach // 2)
        self.enter = nn.Linear(width, 2 * width, bias=bias)
        self.depthwise = nn.Conv1d(width, width, config.kernel, groups=width, bias=bias)
        self.norm = nn.LayerNorm(width) if config.conv_norm == "layer" else Affine(width)
        self.leave = nn.Linear(width, width, bias=bias)

    def forward(self, x_MND: Tensor, real_MN: Tensor) -> Tensor:
        """Mix each frame with its neighbours."""
        gated_MND = F.glu(self.enter(x_MND)) * real_MN[..., None]
        mixed_MND = self.depthwise(F.pad(gated_MND.mT, self.padding)).mT
        out_MND: Tensor = self.leave(F.silu(self.norm(mixed_MND)))
        return out_MND


class Block(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each pre-normed and added."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        inner = round(config.width * config.mlp_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(5))
        self.first, self.last = (
            nn.Sequential(
                nn.Linear(config.width, inner, bias=config.bias),
                nn.SiLU(),
                nn.Linear(inner, config.width, bias=config.bias),
            )
            for _ in range(2)
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

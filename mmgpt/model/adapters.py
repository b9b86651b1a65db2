"""Adapters: encoder features to tokens of the decoder's width.

Shape letters: M media, N features, K tokens, D width of the encoder, W width of the decoder.
Every adapter is told how many features of each medium are real (M,); what it makes of the padding is not used.
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmgpt.config import Config
from mmgpt.encoders.sound import is_real

Grid = tuple[int, ...]  # how the features of a medium lie: (rows, columns) of a picture, (frames,) of a sound


class LinearConfig(Config):
    """One linear layer, a token a feature."""

    kind: Literal["linear"]

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of a medium whose features lie in `grid`."""
        return math.prod(grid)


class MLPConfig(Config):
    """Two layers with GELU (LLaVA-1.5, arXiv:2310.03744), each `stride` features in a row joined to one token."""

    kind: Literal["mlp"]
    stride: PositiveInt = 1
    inner: PositiveInt | None = None  # the decoder's width if not given

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of a medium whose features lie in `grid`; the last one may be padded with zeros."""
        return math.ceil(math.prod(grid) / self.stride)


class FoldConfig(Config):
    """Each square of `stride` x `stride` patches becomes one token (pixel unshuffle, arXiv:1609.05158), then an MLP."""

    kind: Literal["fold"]
    stride: PositiveInt = 2
    inner: PositiveInt | None = None  # the decoder's width if not given
    places: bool = False  # add a learned embedding of each token's place, so that the decoder can tell where it looks

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of a picture whose patches lie in `grid`.

        Raises:
            ValueError: if `stride` does not divide the grid, or it is no picture's.
        """
        if len(grid) != 2:
            raise ValueError("fold joins squares of a picture's patches; for a sound take mlp, which has a stride too")
        if any(side % self.stride for side in grid):
            shape = "x".join(map(str, grid))
            good = [s for s in range(1, min(grid) + 1) if all(side % s == 0 for side in grid)]
            raise ValueError(f"fold: stride={self.stride} does not divide the {shape} patch grid; use one of {good}")
        return math.prod(grid) // self.stride**2


class ResamplerConfig(Config):
    """A fixed number of learned queries attend to the features (Perceiver resampler, arXiv:2204.14198)."""

    kind: Literal["resampler"]
    queries: PositiveInt = 64
    depth: PositiveInt = 2
    heads: PositiveInt = 8

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of any medium: the number of queries."""
        return self.queries


AdapterConfig = Annotated[LinearConfig | MLPConfig | FoldConfig | ResamplerConfig, Field(discriminator="kind")]


class LinearAdapter(nn.Module):
    """See LinearConfig."""

    def __init__(self, config: LinearConfig, *, width: int, out_width: int, grid: Grid) -> None:
        super().__init__()
        self.project = nn.Linear(width, out_width)
        _scale_to_embeddings(self.project)

    def forward(self, features_MND: Tensor, counts_M: Tensor) -> Tensor:
        """Features (M, N, D) to tokens (M, N, W)."""
        out_MNW: Tensor = self.project(features_MND)
        return out_MNW


class MLPAdapter(nn.Module):
    """See MLPConfig."""

    def __init__(self, config: MLPConfig, *, width: int, out_width: int, grid: Grid) -> None:
        super().__init__()
        self.stride = config.stride
        self.project = _two_layers(config.stride * width, config.inner or out_width, out_width)

    def forward(self, features_MND: Tensor, counts_M: Tensor) -> Tensor:
        """Features (M, N, D) to tokens (M, ceil(N / stride), W)."""
        missing = -features_MND.shape[1] % self.stride
        padded_MND = F.pad(features_MND * is_real(counts_M, features_MND.shape[1])[..., None], (0, 0, 0, missing))
        out_MKW: Tensor = self.project(rearrange(padded_MND, "m (k s) d -> m k (s d)", s=self.stride))
        return out_MKW


class FoldAdapter(nn.Module):
    """See FoldConfig."""

    def __init__(self, config: FoldConfig, *, width: int, out_width: int, grid: Grid) -> None:
        super().__init__()
        count = config.num_tokens(grid)
        self.places = nn.Parameter(torch.randn(count, out_width) * out_width**-0.5) if config.places else None
        self.fold = {"h": grid[0] // config.stride, "s": config.stride, "t": config.stride}
        self.project = _two_layers(config.stride**2 * width, config.inner or out_width, out_width)

    def forward(self, features_MND: Tensor, counts_M: Tensor) -> Tensor:
        """Features (M, N, D) in row-major order to tokens (M, N / stride^2, W)."""
        folded_MKD = rearrange(features_MND, "m (h s w t) d -> m (h w) (s t d)", **self.fold)
        out_MKW: Tensor = self.project(folded_MKD)
        return out_MKW if self.places is None else out_MKW + self.places


class ResamplerAdapter(nn.Module):
    """See ResamplerConfig."""

    def __init__(self, config: ResamplerConfig, *, width: int, out_width: int, grid: Grid) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.queries, out_width) * out_width**-0.5)
        self.enter = nn.Linear(width, out_width)
        self.places = nn.Parameter(torch.randn(math.prod(grid), out_width) * out_width**-0.5)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                out_width,
                config.heads,
                4 * out_width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.depth)
        )
        self.leave = nn.Linear(out_width, out_width)
        _scale_to_embeddings(self.leave)

    def forward(self, features_MND: Tensor, counts_M: Tensor) -> Tensor:
        """Features (M, N, D) to tokens (M, queries, W)."""
        memory_MNW = self.enter(features_MND) + self.places[: features_MND.shape[1]]
        x_MKW = self.queries.expand(len(features_MND), -1, -1)
        padding_MN = ~is_real(counts_M, features_MND.shape[1])
        for layer in self.layers:
            x_MKW = layer(x_MKW, memory_MNW, memory_key_padding_mask=padding_MN)
        out_MKW: Tensor = self.leave(F.layer_norm(x_MKW, x_MKW.shape[-1:]))
        return out_MKW


def _two_layers(width: int, inner: int, out_width: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out_width))
    _scale_to_embeddings(layers[2])
    return layers


def _scale_to_embeddings(layer: Any) -> None:
    """Media tokens begin about as large as text embeddings, whose standard deviation is width^-0.5."""
    nn.init.normal_(layer.weight, std=(layer.in_features * layer.out_features) ** -0.5)
    nn.init.zeros_(layer.bias)


ADAPTERS: dict[str, type[nn.Module]] = {
    "linear": LinearAdapter,
    "mlp": MLPAdapter,
    "fold": FoldAdapter,
    "resampler": ResamplerAdapter,
}

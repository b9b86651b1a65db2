"""Adapters: encoder features to tokens of the decoder's width.

Shape letters: P pieces of media, N features, K tokens, D width of the encoder, W width of the decoder.
Every adapter is told the grid of each piece, so how many of its features are real; what it makes of the padding is not
used. It is built for the grid of the largest piece.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from mmgpt.config import Config
from mmgpt.encoders.audio_config import valid_mask
from mmgpt.encoders.feature_grids import EncoderSizes, FeatureGrid


class LinearConfig(Config):
    """One linear layer, a token a feature."""

    kind: Literal["linear"]

    def num_tokens(self, grid: FeatureGrid) -> int:
        """Tokens of a piece whose features lie in `grid`."""
        return math.prod(grid)


class MLPConfig(Config):
    """Two layers with GELU (LLaVA-1.5, arXiv:2310.03744), each `stride` features in a row joined to one token."""

    kind: Literal["mlp"]
    stride: PositiveInt = 1
    inner: PositiveInt | None = None  # the decoder's width if not given

    def num_tokens(self, grid: FeatureGrid) -> int:
        """Tokens of a piece whose features lie in `grid`; the last one may be padded with zeros."""
        return math.ceil(math.prod(grid) / self.stride)


class FoldConfig(Config):
    """Each square of `stride` x `stride` patches becomes one token (pixel unshuffle, arXiv:1609.05158).

    Two layers with GELU follow, or a single one without bias, as in Idefics3 (arXiv:2408.12637).
    """

    kind: Literal["fold"]
    stride: PositiveInt = 2
    inner: PositiveInt | None = None  # the decoder's width if not given
    layers: Literal[1, 2] = 2
    places: bool = False  # add a learned embedding of each token's place, so that the decoder can tell where it looks

    @model_validator(mode="after")
    def _inner_is_between_two(self) -> Self:
        if self.inner and self.layers == 1:
            raise ValueError(f"inner={self.inner} is a width between two layers; leave it out, or set layers: 2")
        return self

    def num_tokens(self, grid: FeatureGrid) -> int:
        """Tokens of a piece whose patches lie in `grid`.

        Raises:
            ValueError: if `stride` does not divide the grid, or it is no picture's.
        """
        if len(grid) != 2:
            raise ValueError(
                "fold joins squares of a picture's patches; for a sound take mlp, which has a stride too, and for an "
                "encoder's tokens: all"
            )
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

    def num_tokens(self, grid: FeatureGrid) -> int:
        """Tokens of any piece: the number of queries."""
        return self.queries


AdapterConfig = Annotated[LinearConfig | MLPConfig | FoldConfig | ResamplerConfig, Field(discriminator="kind")]


def check_grids(adapter: AdapterConfig, encoder: EncoderSizes) -> None:
    """Refuse an adapter that cannot take every grid of an encoder's pieces.

    Raises:
        ValueError: names the adapter's field and the remedy.
    """
    for grid in encoder.grids_of(encoder.max_shape):
        try:
            adapter.num_tokens(grid)
        except ValueError as error:
            raise ValueError(f"{error}{_sizes_that_fit(adapter, encoder)}") from None
    if encoder.grid_multiple is None:
        return
    if adapter.kind == "resampler" or (adapter.kind == "fold" and adapter.places):
        raise ValueError(
            f"{adapter.kind} learns the places of one grid, but this encoder's pictures keep their aspect ratio; "
            "take linear, mlp, or a fold with places: false"
        )
    if adapter.kind == "fold" and any(side % adapter.stride for side in encoder.grid_multiple):
        raise ValueError(
            f"fold: stride={adapter.stride} does not divide the encoder's multiple={encoder.grid_multiple[0]}, the "
            f"least side of its grids; set multiple: {adapter.stride}"
        )


def _sizes_that_fit(adapter: AdapterConfig, encoder: EncoderSizes) -> str:
    """Sizes of pictures whose grid a fold's stride divides: those beside the encoder's, and 224 as the usual one."""
    size, patch = getattr(encoder, "image_size", None), getattr(encoder, "patch_size", None)
    if adapter.kind != "fold" or size is None or patch is None or encoder.grid_multiple:
        return ""
    unit = adapter.stride * patch
    sizes = sorted({size // unit * unit, size // unit * unit + unit, *([224] if 224 % unit == 0 else [])} - {0})
    return "; or image_size " + ", ".join(f"{one}, which gives {one // patch} x {one // patch}" for one in sizes)


class LinearAdapter(nn.Module):
    """See LinearConfig."""

    def __init__(self, config: LinearConfig, *, width: int, out_width: int, grid: FeatureGrid) -> None:
        super().__init__()
        self.project = nn.Linear(width, out_width)
        _scale_to_embeddings(self.project)

    def forward(self, features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
        """Features (P, N, D) to tokens (P, N, W)."""
        out_PNW: Tensor = self.project(features_PND)
        return out_PNW


class MLPAdapter(nn.Module):
    """See MLPConfig."""

    def __init__(self, config: MLPConfig, *, width: int, out_width: int, grid: FeatureGrid) -> None:
        super().__init__()
        self.stride = config.stride
        self.project = _two_layers(config.stride * width, config.inner or out_width, out_width)

    def forward(self, features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
        """Features (P, N, D) to tokens (P, ceil(N / stride), W)."""
        missing = -features_PND.shape[1] % self.stride
        padded_PND = F.pad(features_PND * _is_real(features_PND, grids)[..., None], (0, 0, 0, missing))
        out_PKW: Tensor = self.project(rearrange(padded_PND, "p (k s) d -> p k (s d)", s=self.stride))
        return out_PKW


class FoldAdapter(nn.Module):
    """See FoldConfig."""

    def __init__(self, config: FoldConfig, *, width: int, out_width: int, grid: FeatureGrid) -> None:
        super().__init__()
        count = config.num_tokens(grid)
        self.places = nn.Parameter(torch.randn(count, out_width) * out_width**-0.5) if config.places else None
        self.stride = config.stride
        folded = config.stride**2 * width
        self.project: nn.Module
        if config.layers == 2:
            self.project = _two_layers(folded, config.inner or out_width, out_width)
        else:
            self.project = nn.Linear(folded, out_width, bias=False)
            _scale_to_embeddings(self.project)

    def forward(self, features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
        """Features (P, N, D), each piece's in row-major order of its own grid, to tokens (P, N / stride^2, W)."""
        out_PKW: Tensor = self.project(self._fold(features_PND, grids))
        return out_PKW if self.places is None else out_PKW + self.places

    def _fold(self, features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
        pattern, square = "p (h s w t) d -> p (h w) (s t d)", {"s": self.stride, "t": self.stride}
        kinds = set(grids)
        if len(kinds) == 1:
            return rearrange(features_PND, pattern, h=grids[0][0] // self.stride, **square)
        most = max(map(math.prod, kinds)) // self.stride**2
        folded_PKD = features_PND.new_zeros(len(grids), most, self.stride**2 * features_PND.shape[-1])
        for kind in kinds:
            at = torch.tensor([number for number, grid in enumerate(grids) if grid == kind], device=folded_PKD.device)
            alike_PND = features_PND[at, : math.prod(kind)]
            alike_PKD = rearrange(alike_PND, pattern, h=kind[0] // self.stride, **square)
            folded_PKD[at, : alike_PKD.shape[1]] = alike_PKD
        return folded_PKD


class ResamplerAdapter(nn.Module):
    """See ResamplerConfig."""

    def __init__(self, config: ResamplerConfig, *, width: int, out_width: int, grid: FeatureGrid) -> None:
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

    def forward(self, features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
        """Features (P, N, D) to tokens (P, queries, W)."""
        memory_PNW = self.enter(features_PND) + self.places[: features_PND.shape[1]]
        x_PKW = self.queries.expand(len(features_PND), -1, -1)
        padding_PN = ~_is_real(features_PND, grids)
        for layer in self.layers:
            x_PKW = layer(x_PKW, memory_PNW, memory_key_padding_mask=padding_PN)
        out_PKW: Tensor = self.leave(F.layer_norm(x_PKW, x_PKW.shape[-1:]))
        return out_PKW


def feature_counts(grids: Sequence[FeatureGrid], device: torch.device) -> Tensor:
    """Features (P,) of pieces that lie in these grids."""
    return torch.tensor([math.prod(grid) for grid in grids], device=device)


def _is_real(features_PND: Tensor, grids: Sequence[FeatureGrid]) -> Tensor:
    """Bool (P, N), False in the padding after each piece's features."""
    return valid_mask(feature_counts(grids, features_PND.device), features_PND.shape[1])


def _two_layers(width: int, inner: int, out_width: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out_width))
    _scale_to_embeddings(layers[2])
    return layers


def _scale_to_embeddings(layer: Any) -> None:
    """Media tokens begin about as large as text embeddings, whose standard deviation is width^-0.5."""
    nn.init.normal_(layer.weight, std=(layer.in_features * layer.out_features) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


ADAPTERS: dict[str, type[nn.Module]] = {
    "linear": LinearAdapter,
    "mlp": MLPAdapter,
    "fold": FoldAdapter,
    "resampler": ResamplerAdapter,
}

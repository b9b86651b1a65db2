"""What image towers of other libraries share: pixels as their checkpoints want them, tiles, and what is taken out.

Shape letters: M pictures, P pieces, C channels, H W pixels, N features, D width.
Resizing and cropping are timm's for evaluation (timm/data/transforms_factory.py), but of bytes by torch, as in
transformers' fast processors: on average within a few hundredths of a level of 255 of what Pillow makes.
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from pydantic import Field, NegativeInt, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from timm.data.naflex_transforms import get_image_size_for_seq
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.augment import PictureTransform, check_transforms, transform_picture
from mmgpt.encoders.feature_grids import EncoderSizes, FeatureGrid
from mmgpt.encoders.one_thread import in_one_thread

Interpolation = Literal["bicubic", "bilinear"]


class VisionTowerConfig(EncoderSizes):
    """What is fixed by a tower's checkpoint, and what is taken of its features."""

    image_size: PositiveInt  # pixels, square
    patch_size: PositiveInt  # pixels
    width: PositiveInt
    depth: PositiveInt  # blocks
    prefix_tokens: NonNegativeInt  # class and register tokens before the patches
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    interpolation: Interpolation
    # center: the ratio is kept and the longer side cut, half a pixel going to the even side, as torchvision cuts;
    # center_down: it goes to the start, as transformers cuts; squash: all is kept
    crop: Literal["center", "center_down", "squash"]
    crop_pct: float = Field(default=1.0, gt=0, le=1)  # share of the resized picture that the crop keeps
    layer: NegativeInt = -1  # whose output is taken: -1 the last block, -2 the one before (LLaVA, arXiv:2304.08485) ...
    post_norm: bool = True  # after the last block, the tower's last norm; there is none after the others
    tokens: Literal["patch", "all"] = "patch"  # all: with the class and register tokens, which come first
    tiles: PositiveInt | None = None  # a large picture is cut into up to so many tiles, which go before the whole of it
    augment: list[PictureTransform] = []  # while training: in this order, before the picture is resized

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.layer < -self.depth:
            raise ValueError(f"layer={self.layer}: the tower has {self.depth} blocks; give -1 to -{self.depth}")
        if self.augment:
            check_transforms(self.augment, self.image_size)
        return self

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of the largest picture's tensor, that of the most pieces."""
        return (3, self.image_size, (self.tiles or 1) * self.image_size)

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """The grid of each tile in row-major order, and of the whole picture if these are several."""
        tiles = shape[-2] // self.image_size * (shape[-1] // self.image_size)
        side = self.image_size // self.patch_size
        grid = (side, side) if self.tokens == "patch" else (self.prefix_tokens + side**2,)
        return (grid,) * (1 if tiles == 1 else tiles + 1)

    @in_one_thread
    def preprocess(self, picture: PIL.Image.Image, rng: random.Random | None = None) -> Tensor:
        """Resize and crop an RGB picture as its tower wants it: bytes (3, H, W), which the encoder normalises.

        Args:
            picture: of any size.
            rng: draws how this showing is augmented; None leaves the picture as it is.
        Raises:
            UserError: if a transform does not take a picture of this size.
        """
        if rng and self.augment:
            picture = transform_picture(picture, self.augment, self.image_size, rng)
        return self.resize_and_crop(torch.from_numpy(np.array(picture)).permute(2, 0, 1)).contiguous()

    def resize_and_crop(self, pixels_CHW: Tensor) -> Tensor:
        """A picture of any size in the size that the tower takes it in."""
        height, width = pixels_CHW.shape[1:]
        if self.tiles:
            rows, columns = best_tiles(height, width, self.image_size, self.tiles)
            return resize(pixels_CHW, (rows * self.image_size, columns * self.image_size), self.interpolation)
        before_crop = math.floor(self.image_size / self.crop_pct)
        size = (before_crop, before_crop)
        if self.crop != "squash":
            short = min(height, width)
            size = (before_crop * height // short, before_crop * width // short)
        resized_CHW = resize(pixels_CHW, size, self.interpolation)
        halves = ((side - self.image_size) / 2 for side in size)
        top, left = (math.floor(half) if self.crop == "center_down" else round(half) for half in halves)
        return resized_CHW[:, top : top + self.image_size, left : left + self.image_size]


def resize(pixels_CHW: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Bytes or floats of another height and width, antialiased."""
    if pixels_CHW.shape[1:] == size:
        return pixels_CHW
    return F.interpolate(pixels_CHW[None], size, mode=interpolation, antialias=True)[0]


def normalised(pixels_MCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels of 0 to 255, bytes or floats, less a mean and over a deviation of each channel: float32."""
    mean_C11, std_C11 = (pixels_MCHW.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
    return pixels_MCHW.float() / (255 * std_C11) - mean_C11 / std_C11


def best_tiles(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """Rows and columns of tiles, `most` at the most, that show a picture of this size best.

    Those which leave most of its pixels, of these the ones which waste fewest of their own (LLaVA-NeXT's
    select_best_resolution; Liu et al. 2023, arXiv:2310.03744), of these the lowest.
    """

    def pixels_kept_and_spared(grid: tuple[int, int]) -> tuple[float, float]:
        rows, columns = grid
        scale = min(rows * side / height, columns * side / width, 1.0)
        kept = scale**2 * height * width
        return kept, kept - rows * columns * side**2

    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    return max(grids, key=pixels_kept_and_spared)


def native_size(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """The largest size, in pixels, of at most so many patches that keeps a picture's ratio; whole patches (NaFlex)."""
    while height * width < 32**2:  # timm's search ends at a hundredfold
        height, width = 4 * height, 4 * width
    _, (rows, columns) = get_image_size_for_seq((height, width), patch, most)
    return rows, columns


class VisionTowerEncoder(nn.Module):
    """Pixels to features of every piece; `encode` is the tower's own."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        self.config: Any = config

    def encode(self, pixels_PCHW: Tensor) -> Tensor:
        """Normalised square pictures to features (P, N, D)."""
        raise NotImplementedError

    def normalise(self, pixels_MCHW: Tensor) -> Tensor:
        """Pixels of 0 to 255, bytes or floats, less the config's mean and over its deviation, in the weights' type."""
        return normalised(pixels_MCHW, self.config.mean, self.config.std).to(next(self.parameters()).dtype)

    def forward(self, pixels_MCHW: Tensor, shapes_M3: Tensor) -> Tensor:
        """Encode pictures, pixels of 0 to 255, to the features (P, N, D) of all their pieces.

        Args:
            pixels_MCHW: padded at the ends.
            shapes_M3: the shape of each picture without its padding.
        """
        pixels_MCHW = self.normalise(pixels_MCHW)
        if self.config.tiles:
            pictures = zip(pixels_MCHW, shapes_M3.tolist(), strict=True)
            pixels_MCHW = torch.cat([self._cut(one_CHW[:, :h, :w]) for one_CHW, (_, h, w) in pictures])
        return self.encode(pixels_MCHW)

    def _cut(self, pixels_CHW: Tensor) -> Tensor:
        side = self.config.image_size
        tiles_PCHW = rearrange(pixels_CHW, "c (r h) (s w) -> (r s) c h w", h=side, w=side)
        if len(tiles_PCHW) == 1:
            return tiles_PCHW
        return torch.cat([tiles_PCHW, resize(pixels_CHW, (side, side), self.config.interpolation)[None]])

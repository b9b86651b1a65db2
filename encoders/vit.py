"""Image encoder: a timm VisionTransformer of any size, one feature per patch.

Shape letters: M images, C channels, H W pixels, N patches, D width.
Source: Dosovitskiy et al. 2021, arXiv:2010.11929; the convolutional stem: Xiao et al. 2021, arXiv:2106.14881.
"""

import itertools
import math
import random
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import PIL.Image
import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.encoders.augment import PictureTransform, WarpConfig, check_transforms, transform_picture, warp_pictures
from mmgpt.encoders.feature_grids import EncoderSizes, FeatureGrid
from mmgpt.encoders.image_processing import normalised
from mmgpt.encoders.one_thread import in_one_thread


class ViTConfig(EncoderSizes):
    """Size and preprocessing of a ViT."""

    kind: Literal["vit"] = "vit"
    image_size: PositiveInt = 224  # pixels, square; every picture is resized to it
    patch_size: PositiveInt = 16  # pixels
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    stem: Literal["patch", "conv"] = "patch"  # conv: 3x3 convolutions of stride 2 down to the patch grid
    stem_convs: PositiveInt = 1  # convolutions of a conv stem at each size of the picture, the first of stride 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    augment: list[PictureTransform] = []  # while training: in this order, before the picture is resized
    warp: WarpConfig | None = None  # while training: each resized picture is laid differently, all of a batch at once

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.stem == "conv" and (self.patch_size & (self.patch_size - 1) or self.patch_size < 2):
            raise ValueError(
                f"stem=conv halves the picture step by step: patch_size={self.patch_size} must be 2, 4, 8, 16 ..."
            )
        if self.stem_convs > 1 and self.stem != "conv":
            raise ValueError(
                f"stem_convs={self.stem_convs} is for stem=conv, this is {self.stem}; change one of the two"
            )
        if self.augment:
            check_transforms(self.augment, self.image_size)
        return self

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of a picture's tensor."""
        return (3, self.image_size, self.image_size)

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """Rows and columns of the features of a picture whose tensor has the shape (C, H, W): one piece."""
        return ((shape[-2] // self.patch_size, shape[-1] // self.patch_size),)

    @in_one_thread
    def preprocess(self, picture: PIL.Image.Image, rng: random.Random | None = None) -> Tensor:
        """Resize an RGB picture (bicubic, aspect ratio not kept): bytes (3, image_size, image_size).

        The encoder normalises them: a batch on its way to the model is a quarter of what it would be in floats.

        Args:
            picture: of any size.
            rng: draws how this showing is augmented; None leaves the picture as it is.
        Raises:
            UserError: if a transform does not take a picture of this size.
        """
        if rng and self.augment:
            picture = transform_picture(picture, self.augment, self.image_size, rng)
        pixels_CHW = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        if picture.size != (self.image_size,) * 2:  # as bytes, which is three times as fast as with Pillow
            size = (self.image_size,) * 2
            pixels_CHW = F.interpolate(pixels_CHW[None], size, mode="bicubic", antialias=True)[0]
        return pixels_CHW.contiguous()


class ConvStem(PatchEmbed):
    """Patch embedding by 3x3 convolutions that halve the picture and double channels, up to the width."""

    def __init__(self, *, embed_dim: int, patch_size: int, in_chans: int = 3, convs: int = 1, **options: Any) -> None:
        super().__init__(embed_dim=embed_dim, patch_size=patch_size, in_chans=in_chans, **options)
        halvings = int(math.log2(patch_size))
        channels = [in_chans, *(max(16, embed_dim >> (halvings - i)) for i in range(1, halvings + 1))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
            for _ in range(convs - 1):
                layers += [nn.Conv2d(after, after, 3, padding=1), nn.GELU()]
        layers.append(nn.Conv2d(channels[-1], embed_dim, 1))
        for layer in layers:  # torch's default shrinks the picture to a thirtieth, below the position embedding
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
                nn.init.zeros_(layer.bias)
        self.proj = nn.Sequential(*layers)  # type: ignore[assignment]  # where PatchEmbed has a single convolution


class ViTEncoder(nn.Module):
    """Pixels to patch features; the token count is `config.num_tokens`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=0,
            global_pool="",
            class_token=False,
            embed_layer=partial(ConvStem, convs=config.stem_convs) if config.stem == "conv" else PatchEmbed,
        )

    def normalise(self, pixels_MCHW: Tensor) -> Tensor:
        """Pixels of 0 to 255, bytes or floats, as float32 values with the mean and deviation of the config."""
        return normalised(pixels_MCHW, self.config.mean, self.config.std)

    def forward(self, pixels_MCHW: Tensor, shapes_M3: Tensor | None = None) -> Tensor:
        """Encode pictures (M, 3, H, W), pixels of 0 to 255, to features (M, N, D), patches in row-major order.

        All pictures are of one size, so `shapes_M3`, which other encoders need, says nothing new.
        """
        pixels_MCHW = self.normalise(pixels_MCHW).to(next(self.parameters()).dtype)
        if self.training and self.config.warp:
            pixels_MCHW = warp_pictures(pixels_MCHW, self.config.warp)
        features_MND: Tensor = self.vit.forward_features(pixels_MCHW)
        return features_MND

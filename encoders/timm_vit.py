"""Image encoder: any ViT-like tower of timm, with the weights of its checkpoints.

CLIP, SigLIP and SigLIP 2, DINOv2 and 3, EVA, and NaFlex towers, which keep a picture's aspect ratio.
Shape letters: P pictures, C channels, H W pixels, R rows and S columns of patches, N features, K values of a patch,
D width.
Source: timm (github.com/huggingface/pytorch-image-models); NaFlex: NaViT, arXiv:2307.06304; SigLIP 2, arXiv:2502.14786.
"""

from collections.abc import Iterable
from typing import Any, Literal, Self

import timm
import torch
from einops import rearrange
from pydantic import PositiveInt, model_validator
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import UserError, did_you_mean
from mmgpt.encoders.audio_config import valid_mask
from mmgpt.encoders.feature_grids import FeatureGrid
from mmgpt.encoders.image_processing import VisionTowerConfig, VisionTowerEncoder, native_size, resize


class TimmConfig(VisionTowerConfig):
    """A tower of timm; all but what is taken of it comes from its checkpoint."""

    kind: Literal["timm"] = "timm"
    architecture: str  # timm's name, without a tag
    model_args: dict[str, Any] = {}  # other arguments of timm.create_model
    max_patches: PositiveInt | None = None  # NaFlex: keep a picture's ratio, in as large a size as gives so many
    multiple: PositiveInt = 1  # with max_patches: rows and columns of patches are multiples of it, for a fold's stride

    @model_validator(mode="after")
    def _tower_is_known(self) -> Self:
        if not timm.is_model(self.architecture):
            near = did_you_mean(self.architecture, timm.list_models())
            raise ValueError(f"architecture={self.architecture} is no model of timm; {near}")
        if self.max_patches is None:
            if self.multiple != 1:
                raise ValueError(f"multiple={self.multiple} is for pictures of any ratio; give max_patches too")
            return self
        if not self.architecture.startswith("naflexvit") and not self.model_args.get("use_naflex"):
            raise ValueError(
                f"max_patches={self.max_patches}: {self.architecture} takes pictures of one size; leave it out, or "
                "take a NaFlex tower"
            )
        for name, given in (("tiles", self.tiles), ("tokens", self.tokens == "all" and "all")):
            if given:
                raise ValueError(f"{name}={given} is for pictures of one size; leave it or max_patches out")
        if self.max_patches < self.multiple**2:
            raise ValueError(f"max_patches={self.max_patches} is below multiple={self.multiple} squared; raise it")
        return self

    @property
    def grid_multiple(self) -> FeatureGrid | None:
        """With max_patches, grids are of any ratio."""
        return (self.multiple, self.multiple) if self.max_patches else None

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of the largest picture's tensor; with max_patches, of a square one."""
        if self.max_patches is None:
            return super().max_shape
        return (3, *native_size(1024, 1024, self.patch_size * self.multiple, self.max_patches // self.multiple**2))

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """The grid of each piece of a picture whose tensor has the shape (C, H, W)."""
        if self.max_patches is None:
            return super().grids_of(shape)
        return ((shape[-2] // self.patch_size, shape[-1] // self.patch_size),)

    def resize_and_crop(self, pixels_CHW: Tensor) -> Tensor:
        """A picture of any size in the size that the tower takes it in."""
        if self.max_patches is None:
            return super().resize_and_crop(pixels_CHW)
        height, width = pixels_CHW.shape[1:]
        unit, most = self.patch_size * self.multiple, self.max_patches // self.multiple**2
        return resize(pixels_CHW, native_size(height, width, unit, most), self.interpolation)


class TimmEncoder(VisionTowerEncoder):
    """Pixels to the features of a tower's block; the token count is `config.num_tokens`."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__(config)
        self.tower: Any = build_tower(config.architecture, config.model_args)
        built = describe_tower(self.tower)
        wrong = [name for name, value in built.items() if getattr(config, name) != value]
        if wrong:
            name = wrong[0]
            raise UserError(
                f"{config.architecture} has {name}={built[name]}, the config says {getattr(config, name)}; "
                "leave it to the checkpoint, or mend model_args"
            )
        self.register_load_state_dict_post_hook(lambda module, _: init_missing_buffers(module))  # type: ignore[no-untyped-call]

    def forward(self, pixels_MCHW: Tensor, shapes_M3: Tensor) -> Tensor:
        """See TowerEncoder; with max_patches, pictures of many shapes are encoded side by side."""
        if self.config.max_patches is None:
            return super().forward(pixels_MCHW, shapes_M3)
        side = self.config.patch_size
        patches_PRSK = rearrange(self.normalise(pixels_MCHW), "m c (r p) (s q) -> m r s (p q c)", p=side, q=side)
        grids = [(height // side, width // side) for _, height, width in shapes_M3.tolist()]
        counts = [rows * columns for rows, columns in grids]
        rows_R, columns_S = (torch.arange(n, device=pixels_MCHW.device) for n in patches_PRSK.shape[1:3])
        places_RS2 = torch.stack(torch.meshgrid(rows_R, columns_S, indexing="ij"), dim=-1)
        inputs = {"patches": _pack(patches_PRSK, grids), "patch_coord": _pack([places_RS2] * len(grids), grids)}
        if min(counts) < max(counts):
            inputs["patch_valid"] = valid_mask(torch.tensor(counts, device=pixels_MCHW.device), max(counts))
        return self._taken(inputs)

    def encode(self, pixels_PCHW: Tensor) -> Tensor:
        """Normalised square pictures to features (P, N, D)."""
        return self._taken(pixels_PCHW)

    def _taken(self, inputs: Any) -> Tensor:
        config = self.config
        (taken,) = self.tower.forward_intermediates(
            inputs,
            indices=[config.depth + config.layer],
            norm=config.layer == -1 and config.post_norm,
            return_prefix_tokens=config.tokens == "all",
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        features_PND: Tensor = torch.cat(taken[::-1], dim=1) if isinstance(taken, tuple) else taken
        return features_PND


def _pack(laid_RSX: Iterable[Tensor], grids: list[tuple[int, int]]) -> Tensor:
    """What lies in the top left grid of each, in rows, padded to the longest: (P, N, X)."""
    return pad_sequence(
        [one_RSX[:rows, :columns].flatten(0, 1) for one_RSX, (rows, columns) in zip(laid_RSX, grids, strict=True)],
        batch_first=True,
    )


def build_tower(architecture: str, model_args: dict[str, Any]) -> Any:
    """A tower of timm with random weights, without what comes after its patch features.

    Raises:
        UserError: if it is no ViT, or does not take these arguments.
    """
    try:
        tower: Any = timm.create_model(architecture, **{"num_classes": 0, **model_args})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm cannot build {architecture} with {model_args}: {error}; mend model_args") from None
    if not all(hasattr(tower, name) for name in ("blocks", "num_prefix_tokens", "forward_intermediates")):
        raise UserError(f"{architecture} is no ViT, whose patches have features of one width; take one of timm's vit_*")
    tower.reset_classifier(0, "")
    tower.fc_norm = nn.Identity()
    return tower


def describe_tower(tower: Any) -> dict[str, int]:
    """The fields of the config that a built tower fixes."""
    is_flexible = isinstance(tower, NaFlexVit)
    fixed = {
        "patch_size": tower.embeds.patch_size[0] if is_flexible else tower.patch_embed.feat_ratio(as_scalar=True),
        "width": tower.embed_dim,
        "depth": len(tower.blocks),
        "prefix_tokens": tower.num_prefix_tokens,
    }
    return fixed if is_flexible else {**fixed, "image_size": tower.patch_embed.img_size[0]}


def init_missing_buffers(module: nn.Module) -> None:
    """After its weights came, compute what a tower built on the meta device lacks: buffers that are not saved."""
    device = next(module.parameters()).device
    part: Any
    for part in module.modules():
        absent = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        if absent and device.type != "meta":
            for name in absent:
                setattr(part, name, torch.empty_like(getattr(part, name), device=device))
            part.init_non_persistent_buffers()

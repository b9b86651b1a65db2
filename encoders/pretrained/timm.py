"""Towers in timm's layout: what a checkpoint fixes of a config, and its weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.encoders.timm_vit import TimmConfig, TimmEncoder, build_tower, describe_tower
from mmgpt.files import check_weights, load_weights, read_json

POOLING = ("head.", "fc_norm.", "attn_pool.")  # what comes after the patch features


def timm_fields(folder: Path) -> dict[str, Any]:
    """What a checkpoint in timm's layout fixes of a TimmConfig.

    Raises:
        UserError: if it is another, or says nothing of the pixels that the tower was trained on.
    """
    file = folder / "config.json"
    config_json = read_json(file)
    if "architecture" not in config_json:
        kind = config_json.get("model_type")
        raise UserError(
            f"{file}: names no architecture of timm, and its model_type {kind!r} is no CLIP, SigLIP or DINO; take "
            "timm's copy of this tower, from huggingface.co/timm"
        )
    pixels = {**config_json, **config_json.get("pretrained_cfg", {})}  # which lay beside it once
    absent = [name for name in ("mean", "std", "interpolation", "input_size", "crop_pct") if not pixels.get(name)]
    if absent:
        raise UserError(f"{file}: has no {absent[0]}, so the tower's pixels are unknown; write it into pretrained_cfg")
    height, width = pixels["input_size"][1:]
    if height != width:
        raise UserError(f"{file}: input_size {height}x{width} is no square; take a tower of square pictures")
    return fill_from_tower(
        {
            "architecture": config_json["architecture"],
            "model_args": {k: v for k, v in config_json.get("model_args", {}).items() if k != "num_classes"},
            "image_size": height,
            "mean": pixels["mean"],
            "std": pixels["std"],
            "interpolation": pixels["interpolation"],
            "crop": pixels.get("crop_mode") or "center",  # as in timm
            "crop_pct": pixels["crop_pct"],
        }
    )


def mlp_ratio(inner: int, width: int) -> float:
    """The mlp_ratio of which timm makes `inner`: it rounds the product down."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def resized_tower(fields: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The fields that a checkpoint fixes, for pictures of another size; its weights' positions are resampled to it.

    Raises:
        UserError: if no whole patches fill that size, or the tower takes pictures of any ratio.
    """
    patch = fields["patch_size"]
    if fields.get("max_patches"):
        raise UserError(f"image_size={image_size}: this tower takes pictures of any ratio; set max_patches instead")
    if image_size < patch or image_size % patch:
        below, above = (image_size // patch * patch + more for more in (0, patch))
        near = f"{below} or {above}" if below else str(above)
        raise UserError(f"image_size={image_size}: patch_size={patch} does not divide it; take {near}")
    return fill_from_tower({**fields, "model_args": {**fields["model_args"], "img_size": image_size}})


def fill_from_tower(named: dict[str, Any]) -> dict[str, Any]:
    """The fields that a checkpoint names with those that its tower, once built, is found to have."""
    with torch.device("meta"):
        return {**named, **describe_tower(build_tower(named["architecture"], named["model_args"]))}


def timm_weights(folder: Path, config: TimmConfig) -> dict[str, Tensor]:
    """A checkpoint's weights, in timm's layout, by the names of TimmEncoder.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    return check_tower_weights(load_weights(folder, pickles=config.pickles), config, str(folder))


def check_tower_weights(
    weights: Mapping[str, Tensor], config: TimmConfig, where: str, *, antialias: bool = True
) -> dict[str, Tensor]:
    """Weights by timm's names as those of TimmEncoder, without a tower's pooling and classes.

    Learned positions of another square grid are resampled to the config's, bicubic, as in timm with `antialias`, as in
    most of transformers without.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    given = {f"tower.{name}": weight for name, weight in weights.items() if not name.startswith(POOLING)}
    with torch.device("meta"):
        encoder = TimmEncoder(config)
    wanted, positions = encoder.state_dict(), "tower.pos_embed"
    if positions in wanted and positions in given and given[positions].ndim == 3:
        prefix = wanted[positions].shape[1] - (config.image_size // config.patch_size) ** 2
        given[positions] = _resampled(given[positions], config.image_size // config.patch_size, prefix, antialias)
    check_weights(wanted, given, where, f"is it a {config.architecture} with {config.model_args}?")
    return given


def _resampled(positions_1ND: Tensor, side: int, prefix: int, antialias: bool) -> Tensor:
    """Positions of a grid of `side` x `side` patches; those that are of no square grid are left to be refused."""
    count = positions_1ND.shape[1] - prefix
    if count < 1 or math.isqrt(count) ** 2 != count or count == side**2:
        return positions_1ND
    return resample_abs_pos_embed(positions_1ND, [side, side], num_prefix_tokens=prefix, antialias=antialias)

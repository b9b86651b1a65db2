"""Towers in timm's layout: what a checkpoint fixes of a config, and its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
            f"{file}: names no architecture of timm, and its model_type {kind!r} is no CLIP or SigLIP; take "
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


def check_tower_weights(weights: Mapping[str, Tensor], config: TimmConfig, where: str) -> dict[str, Tensor]:
    """Weights by timm's names as those of TimmEncoder, without a tower's pooling and classes.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    given = {f"tower.{name}": weight for name, weight in weights.items() if not name.startswith(POOLING)}
    with torch.device("meta"):
        wanted = TimmEncoder(config).state_dict()
    check_weights(wanted, given, where, f"is it a {config.architecture} with {config.model_args}?")
    return given

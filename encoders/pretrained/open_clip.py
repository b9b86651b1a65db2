"""Image towers in open_clip's layout, read into timm's modules.

open_clip's own ViT is timm's with other names; its towers that are timm's are taken as they are. Text towers and what
pools a picture's features are left out. Source: open_clip's model.py and timm_model.py.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.encoders.pretrained.timm import check_tower_weights, fill_from_tower
from mmgpt.encoders.timm_vit import TimmConfig
from mmgpt.files import load_weights, read_json
from mmgpt.weight_names import Rule, to_ours

CROPS = {"shortest": "center", "squash": "squash"}  # open_clip's resize_mode: ours
RULES = [
    Rule("conv1.weight", "patch_embed.proj.weight"),
    Rule("class_embedding", "cls_token"),
    Rule("positional_embedding", "pos_embed"),
    Rule("ln_pre.weight", "norm_pre.weight"),
    Rule("ln_pre.bias", "norm_pre.bias"),
    Rule("ln_post.weight", "norm.weight"),
    Rule("ln_post.bias", "norm.bias"),
    Rule("transformer.resblocks.{}.attn.in_proj_weight", "blocks.{}.attn.qkv.weight"),
    Rule("transformer.resblocks.{}.attn.in_proj_bias", "blocks.{}.attn.qkv.bias"),
    *[
        Rule(f"transformer.resblocks.{{}}.{theirs}.{kind}", f"blocks.{{}}.{ours}.{kind}")
        for theirs, ours in [
            ("ln_1", "norm1"),
            ("ln_2", "norm2"),
            ("attn.out_proj", "attn.proj"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ]
        for kind in ("weight", "bias")
    ],
    Rule("transformer.resblocks.{}.ls_1.gamma", "blocks.{}.ls1.gamma"),
    Rule("transformer.resblocks.{}.ls_2.gamma", "blocks.{}.ls2.gamma"),
]
POOLING = (r"proj", r"attn_pool.*")
READ_VISION_KEYS = {  # keys of a vision_cfg that are read, or that change nothing of the features
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "no_ln_pre"),
    *("patch_dropout", "pos_embed_type", "output_tokens", "pool_type", "attn_pooler_queries", "attn_pooler_heads"),
    *("attentional_pool", "final_ln_after_pool"),
}


class OpenClipConfig(TimmConfig):
    """A tower of open_clip; all but what is taken of it comes from its checkpoint."""

    kind: Literal["open_clip"] = "open_clip"  # type: ignore[assignment]


def open_clip_fields(folder: Path) -> dict[str, Any]:
    """What a checkpoint in open_clip's layout fixes of an OpenClipConfig.

    Raises:
        UserError: if its tower is no plain ViT, or it says nothing of its pixels.
    """
    file = folder / "open_clip_config.json"
    config_json = read_json(file)
    pixels, vision = config_json.get("preprocess_cfg", {}), config_json.get("model_cfg", {}).get("vision_cfg", {})
    absent = [name for name in ("mean", "std") if not pixels.get(name)]
    if absent:
        raise UserError(f"{file}: has no {absent[0]}, so the tower's pixels are unknown; write it into preprocess_cfg")
    size = vision.get("image_size", 224)
    size, *others = size if isinstance(size, list) else [size]
    if any(other != size for other in others):
        raise UserError(f"{file}: image_size {size}x{others[0]} is no square; take a tower of square pictures")
    crop = pixels.get("resize_mode", "shortest")  # open_clip's defaults, here and below
    if crop not in CROPS:
        raise UserError(f"{file}: resize_mode={crop} is not known; known: {', '.join(CROPS)}")
    if vision.get("timm_model_name"):
        architecture, args = _timm_backed(vision)
    else:
        architecture, args = _native(vision, bool(config_json["model_cfg"].get("quick_gelu")), file)
    return fill_from_tower(
        {
            "architecture": architecture,
            "model_args": args,
            "image_size": size,
            "mean": pixels["mean"],
            "std": pixels["std"],
            "interpolation": pixels.get("interpolation", "bicubic"),
            "crop": CROPS[crop],
            "crop_pct": 1.0,
        }
    )


def _native(vision: dict[str, Any], quick_gelu: bool, file: Path) -> tuple[str, dict[str, Any]]:
    unknown = [name for name, value in vision.items() if name not in READ_VISION_KEYS and value]
    if unknown or isinstance(vision.get("layers"), list):
        what = f"{unknown[0]}={vision[unknown[0]]}" if unknown else f"layers={vision['layers']}, a ResNet"
        raise UserError(f"{file}: vision_cfg has {what}, which is not read; take a tower that is a plain ViT")
    width, size = vision.get("width", 768), vision.get("image_size", 224)
    pooled_before_norm = bool(vision.get("attentional_pool") or vision.get("final_ln_after_pool"))
    args = {
        "img_size": size[0] if isinstance(size, list) else size,
        "patch_size": vision.get("patch_size", 16),
        "embed_dim": width,
        "depth": vision.get("layers", 12),
        "num_heads": width // vision.get("head_width", 64),
        "mlp_ratio": vision.get("mlp_ratio", 4.0),
        "init_values": vision.get("ls_init_value"),
        "pre_norm": not vision.get("no_ln_pre", False),
        "final_norm": not pooled_before_norm,
        "act_layer": "quick_gelu" if quick_gelu else "gelu",
    }
    return "vit_base_patch16_clip_224", {name: value for name, value in args.items() if value is not None}


def _timm_backed(vision: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """As open_clip's TimmModel does: the pooling, which says where the last norm stands, is given or timm's own."""
    own_head = vision.get("timm_proj", "linear") not in ("linear", "mlp")
    pool = vision.get("timm_pool", "avg")
    return vision["timm_model_name"], {"global_pool": pool} if own_head and not pool.endswith("_attn") else {}


def open_clip_weights(folder: Path, config: OpenClipConfig) -> dict[str, Tensor]:
    """A checkpoint's weights, in open_clip's layout, by the names of TimmEncoder.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    where = str(folder)
    given = load_weights(folder, stem="open_clip_model", pickles=config.pickles)
    visual = {name.removeprefix("visual."): w for name, w in given.items() if name.startswith("visual.")}
    if any(name.startswith("trunk.") for name in visual):
        trunk = {name.removeprefix("trunk."): w for name, w in visual.items() if name.startswith("trunk.")}
        return check_tower_weights(trunk, config, where)
    ignored = (*POOLING, r"ln_post\..*") if not config.model_args.get("final_norm", True) else POOLING
    renamed = to_ours(visual, RULES, where, ignored)
    shaped = {"cls_token": (1, 1, config.width), "pos_embed": (1, -1, config.width)}
    own = {k: w.reshape(shaped[k]) if k in shaped else w for k, w in renamed.items()}
    if not config.model_args.get("pre_norm", True):  # then timm's patches have a bias, which open_clip's never have
        own["patch_embed.proj.bias"] = torch.zeros(config.width)
    return check_tower_weights(own, config, where)

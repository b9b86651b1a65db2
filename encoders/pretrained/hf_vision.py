"""Image towers in Hugging Face layout, read into timm's modules; CLIP's, SigLIP's and SigLIP 2's also written back.

transformers keeps query, key and value apart where timm joins them; all else is a change of names.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmgpt.config import UserError
from mmgpt.encoders.pretrained import hf_dino
from mmgpt.encoders.pretrained.timm import (
    check_tower_weights,
    fill_from_tower,
    mlp_ratio,
    resized_tower,
    timm_fields,
    timm_weights,
)
from mmgpt.encoders.timm_vit import TimmConfig, build_tower
from mmgpt.files import load_weights, read_json
from mmgpt.weight_names import Rule, to_ours, to_theirs

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # theirs: timm's
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
ARCHITECTURES = {
    "clip": "vit_base_patch16_clip_224",
    "siglip": "vit_base_patch16_siglip_224",
    "siglip2": "naflexvit_base_patch16_siglip",  # of any ratio; the SigLIP 2 of fixed sizes are siglip's
}
SIGLIP = {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
DEFAULTS = {  # of transformers' configs, whose files leave out what is as here
    "clip": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": SIGLIP,
    "siglip2": {**SIGLIP, "num_patches": 256},
}
SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
}


def clip_rules(prefix: str = "") -> list[Rule]:
    """Names of a CLIP tower: timm's on the left of each rule, transformers' after `prefix` on the right."""
    return [
        *_shared_rules(prefix),
        Rule("cls_token", f"{prefix}embeddings.class_embedding"),
        Rule("norm_pre.weight", f"{prefix}pre_layrnorm.weight"),
        Rule("norm_pre.bias", f"{prefix}pre_layrnorm.bias"),
    ]


def siglip_rules(prefix: str = "") -> list[Rule]:
    """Names of a SigLIP tower: timm's on the left of each rule, transformers' after `prefix` on the right."""
    return [*_shared_rules(prefix), Rule("patch_embed.proj.bias", f"{prefix}embeddings.patch_embedding.bias")]


def siglip2_rules(prefix: str = "") -> list[Rule]:
    """Names of a SigLIP 2 tower of any ratio: timm's on the left, transformers' after `prefix` on the right."""
    return [
        Rule("embeds.proj.weight", f"{prefix}embeddings.patch_embedding.weight"),
        Rule("embeds.proj.bias", f"{prefix}embeddings.patch_embedding.bias"),
        Rule("embeds.pos_embed", f"{prefix}embeddings.position_embedding.weight"),
        *_block_rules(prefix),
    ]


def _shared_rules(prefix: str) -> list[Rule]:
    return [
        Rule("patch_embed.proj.weight", f"{prefix}embeddings.patch_embedding.weight"),
        Rule("pos_embed", f"{prefix}embeddings.position_embedding.weight"),
        *_block_rules(prefix),
    ]


def _block_rules(prefix: str) -> list[Rule]:
    layer, block = f"{prefix}encoder.layers.{{}}", "blocks.{}"
    alike = [("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj")]
    alike += [("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]
    return [
        *[Rule(f"norm.{kind}", f"{prefix}post_layernorm.{kind}") for kind in ("weight", "bias")],
        *[Rule(f"{block}.{a}.{kind}", f"{layer}.{b}.{kind}") for a, b in alike for kind in ("weight", "bias")],
        *[
            Rule(f"{block}.attn.qkv.{kind}", tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"))
            for kind in ("weight", "bias")
        ],
    ]


RULES = {"clip": clip_rules, "siglip": siglip_rules, "siglip2": siglip2_rules}


def family_of(vision: Mapping[str, Any]) -> str | None:
    """`clip`, `siglip` or `siglip2` where a config.json, or its vision_config, is such a tower's."""
    kind = str(vision.get("model_type", "")).removesuffix("_vision_model")
    return kind if kind in ARCHITECTURES else None


def tower_fields(folder: Path) -> dict[str, Any]:
    """What a checkpoint in timm's or transformers' layout fixes of a TimmConfig.

    Raises:
        UserError: if it is neither, or says nothing of the pixels that the tower was trained on.
    """
    config_json, where = read_json(folder / "config.json"), str(folder)
    is_dino = config_json.get("model_type") in hf_dino.ARCHITECTURES
    if not is_dino and family_of(config_json) is None:
        return timm_fields(folder)
    file = folder / "preprocessor_config.json"
    if file.is_file() or not (folder / "processor_config.json").is_file():
        preprocessor = read_json(file)
    else:
        together = read_json(folder / "processor_config.json")
        preprocessor = together.get("image_processor", together)
    if not is_dino:
        return hf_vision_fields(config_json, preprocessor, where)
    pixels = _normalisation(preprocessor, where) | _crop(preprocessor, None, where)
    return resized_tower(hf_dino.dino_fields(config_json, pixels, where), pixels["image_size"])


def tower_weights(folder: Path, config: TimmConfig) -> dict[str, Tensor]:
    """A checkpoint's weights, in timm's or transformers' layout, by the names of TimmEncoder.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    config_json = read_json(folder / "config.json")
    is_dino = config_json.get("model_type") in hf_dino.ARCHITECTURES
    if not is_dino and family_of(config_json) is None:
        return timm_weights(folder, config)
    weights = load_weights(folder, pickles=config.pickles)
    if is_dino:
        return hf_dino.dino_weights(weights, config_json["model_type"], config, str(folder))
    return hf_vision_weights(weights, config, str(folder))


def hf_vision_fields(config_json: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a TimmConfig that a transformers config fixes.

    Args:
        config_json: a tower's config, or one that holds it as vision_config.
        preprocessor: the content of preprocessor_config.json.
        where: what an error begins with.
    Raises:
        UserError: if it is another family's, or a value of it has no counterpart.
    """
    vision = config_json.get("vision_config", config_json)
    family = family_of({"model_type": vision.get("model_type", config_json.get("model_type"))})
    if family is None:
        raise UserError(
            f"{where}: the tower {vision.get('model_type')!r} is not read; known: {', '.join(ARCHITECTURES)}"
        )
    vision = {**SIZES, **DEFAULTS[family], **vision}
    if vision["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act={vision['hidden_act']} is not known; known: {', '.join(ACTIVATIONS)}")
    for name, only in (("layer_norm_eps", DEFAULTS[family]["layer_norm_eps"]), ("num_channels", 3)):
        if vision.get(name, only) != only:
            raise UserError(f"{where}: {name}={vision[name]}; a {family} tower is read with {only} alone")
    width = vision["hidden_size"]
    args = {
        "patch_size": vision["patch_size"],
        "embed_dim": width,
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "mlp_ratio": mlp_ratio(vision["intermediate_size"], width),
        "act_layer": ACTIVATIONS[vision["hidden_act"]],
    }
    if family == "siglip2":
        side = math.isqrt(vision["num_patches"])
        args["pos_embed_grid_size"] = [side, side]
        most = preprocessor.get("max_num_patches", 256)  # Siglip2ImageProcessor's default
        pixels = {**_normalisation(preprocessor, where), "image_size": side * vision["patch_size"], "max_patches": most}
        pixels |= {"crop": "squash", "crop_pct": 1.0}
    else:
        args["img_size"] = vision["image_size"]
        pixels = _normalisation(preprocessor, where) | _crop(preprocessor, vision["image_size"], where)
    return fill_from_tower({"architecture": ARCHITECTURES[family], "model_args": args, **pixels})


def _share(size: int, before: int) -> float:
    """The crop_pct with which `size` makes `before`: the quotient is rounded down."""
    share = size / before
    return share if math.floor(size / share) == before else math.nextafter(share, 0)


def _normalisation(preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
    absent = [name for name in ("image_mean", "image_std", "resample") if preprocessor.get(name) is None]
    if absent:
        raise UserError(f"{where}: the image processor has no {absent[0]}; write it into preprocessor_config.json")
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not preprocessor.get(name, True)]
    if off:
        raise UserError(f"{where}: the image processor has {off[0]}: false, but pictures come as they are; set it true")
    if preprocessor["resample"] not in RESAMPLING:
        raise UserError(f"{where}: resample={preprocessor['resample']}; known: 2 (bilinear), 3 (bicubic)")
    return {
        "mean": preprocessor["image_mean"],
        "std": preprocessor["image_std"],
        "interpolation": RESAMPLING[preprocessor["resample"]],
    }


def _crop(preprocessor: Mapping[str, Any], image_size: int | None, where: str) -> dict[str, Any]:
    """How pictures become squares of `image_size`; of what the processor makes, where it is None."""
    size = preprocessor.get("size") or {}
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = preprocessor.get("crop_size") if preprocessor.get("do_center_crop", "shortest_edge" in size) else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    keeps_ratio = "shortest_edge" in size
    before = {size["shortest_edge"]} if keeps_ratio else {size.get("height", 0), size.get("width", 0)}
    after = {crop["height"], crop["width"]} if crop else before
    image_size = max(after) if image_size is None else image_size
    if after != {image_size} or len(before) > 1 or min(before) < image_size or (keeps_ratio and not crop):
        raise UserError(
            f"{where}: size={size}, crop_size={crop} make no square of image_size={image_size}; "
            "mend preprocessor_config.json"
        )
    return {
        "image_size": image_size,
        "crop": "center_down" if keeps_ratio else "squash",
        "crop_pct": _share(image_size, before.pop()),
    }


def hf_vision_weights(weights: Mapping[str, Tensor], config: TimmConfig, where: str) -> dict[str, Tensor]:
    """A tower's weights by the names of TimmEncoder, from those of any transformers model that holds it.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    anchor = "embeddings.patch_embedding.weight"
    prefixes = [name.removesuffix(anchor) for name in weights if name.endswith(anchor)]
    if len(prefixes) != 1:
        raise UserError(f"{where}: holds {len(prefixes)} weights named {anchor}; a CLIP or SigLIP tower has one")
    (prefix,) = prefixes
    parts = tuple(prefix + part for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm."))
    own = {k: w for k, w in weights.items() if k.startswith(parts) and not k.endswith("position_ids")}
    family = next(name for name, architecture in ARCHITECTURES.items() if architecture == config.architecture)
    try:
        renamed = to_theirs(own, RULES[family](prefix))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    side = config.image_size // config.patch_size
    shaped = {"cls_token": (1, 1, -1), "pos_embed": (1, -1, config.width), "embeds.pos_embed": (1, side, side, -1)}
    return check_tower_weights(
        {k: w.reshape(shaped[k]) if k in shaped else w for k, w in renamed.items()}, config, where, antialias=False
    )


def to_hf_vision(weights: Mapping[str, Tensor], config: TimmConfig, prefix: str = "") -> dict[str, Tensor]:
    """Weights by the names of TimmEncoder as a transformers tower's, each name after `prefix`.

    Raises:
        UserError: if transformers has no such tower; see hf_vision_config.
    """
    rules = RULES[_family_of_tower(config)[0]](prefix)
    named = {name.removeprefix("tower."): weight for name, weight in weights.items()}
    shaped = {"cls_token": (-1,), "pos_embed": (-1, config.width), "embeds.pos_embed": (-1, config.width)}
    return to_ours({k: w.reshape(shaped[k]) if k in shaped else w for k, w in named.items()}, rules, "the tower")


def hf_vision_config(config: TimmConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The vision_config and the preprocessor_config.json of a tower.

    Raises:
        UserError: if transformers' CLIP and SigLIP are other than this tower; names it.
    """
    family, activation, tower = _family_of_tower(config)
    vision = {
        "model_type": f"{family}_vision_model",
        "hidden_size": config.width,
        "intermediate_size": tower.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": config.depth,
        "num_attention_heads": tower.blocks[0].attn.num_heads,
        "num_channels": 3,
        "patch_size": config.patch_size,
        "hidden_act": activation,
        "layer_norm_eps": DEFAULTS[family]["layer_norm_eps"],
    }
    if family == "siglip2":
        vision["num_patches"] = (config.image_size // config.patch_size) ** 2
    else:
        vision["image_size"] = config.image_size
    if family != "clip":
        vision["vision_use_head"] = False
    return vision, _processor(config)


def _processor(config: TimmConfig) -> dict[str, Any]:
    shared = {
        "do_resize": True,
        "resample": next(number for number, name in RESAMPLING.items() if name == config.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": True,
    }
    if config.max_patches:
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": config.patch_size,
            "max_num_patches": config.max_patches,
            **shared,
        }
    before = math.floor(config.image_size / config.crop_pct)
    return {
        "image_processor_type": "SiglipImageProcessor" if config.crop == "squash" else "CLIPImageProcessor",
        "size": {"height": before, "width": before} if config.crop == "squash" else {"shortest_edge": before},
        "do_center_crop": config.crop != "squash" or before != config.image_size,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        **shared,
    }


def _family_of_tower(config: TimmConfig) -> tuple[str, str, Any]:
    """Its family, its activation in transformers' words, and the tower without weights."""
    with torch.device("meta"):
        tower = build_tower(config.architecture, config.model_args)
    kinds = ["siglip2"] if _keeps_ratio_as_siglip2(tower, config) else []
    kinds = ["clip", "siglip"] if type(tower) is VisionTransformer else kinds
    for family in kinds:
        try:
            to_ours(tower.state_dict(), RULES[family](), "the tower")
        except UserError:
            continue
        activation = _activation(tower.get_submodule("blocks.0.mlp.act"))
        norms = [part for part in tower.modules() if isinstance(part, nn.LayerNorm)]
        has_all = len(tower.state_dict()) == (7 if family == "clip" else 5) + 12 * config.depth
        if activation and has_all and all(norm.eps == DEFAULTS[family]["layer_norm_eps"] for norm in norms):
            return family, activation, tower
    raise UserError(f"{config.architecture}: transformers' CLIP and SigLIPs are no such tower; save it as mmgpt's own")


def _keeps_ratio_as_siglip2(tower: Any, config: TimmConfig) -> bool:
    """Whether it resizes its places as transformers does, to the grid of any picture."""
    if not isinstance(tower, NaFlexVit) or not config.max_patches or config.multiple > 1:
        return False
    embeds: Any = tower.embeds
    side = config.image_size // config.patch_size
    return (
        embeds.pos_embed_interp_mode == "bilinear"
        and embeds.pos_embed_antialias
        and not (embeds.pos_embed_ar_preserving or embeds.pos_embed_align_corners)
        and tower.rope is None
        and tuple(embeds.pos_embed.shape[1:3]) == (side, side)
    )


def _activation(module: nn.Module) -> str | None:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, GELUTanh):
        return "gelu_pytorch_tanh"
    return "gelu" if isinstance(module, nn.GELU | GELU) else None

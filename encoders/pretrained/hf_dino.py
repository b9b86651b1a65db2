"""DINO towers in Hugging Face layout: DINOv2, with registers or without, and DINOv3, read into timm's modules.

Sources: Oquab et al. 2023, arXiv:2304.07193; registers: Darcet et al. 2023, arXiv:2309.16588; DINOv3: Simeoni et al.
2025, arXiv:2508.10104.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmgpt.config import UserError
from mmgpt.encoders.pretrained.timm import check_tower_weights, fill_from_tower, mlp_ratio
from mmgpt.encoders.timm_vit import TimmConfig
from mmgpt.weight_names import Rule, to_theirs

ARCHITECTURES = {  # of timm, without and with a gated feed-forward
    "dinov2": ("vit_small_patch14_dinov2", "vit_giant_patch14_dinov2"),
    "dinov2_with_registers": ("vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"),
    "dinov3_vit": ("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"),
}
ANTIALIAS = {"dinov2": False, "dinov2_with_registers": True, "dinov3_vit": False}  # how positions are resampled there
DINOV2 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {  # of transformers' configs, whose files leave out what is as here
    "dinov2": DINOV2,
    "dinov2_with_registers": {**DINOV2, "num_register_tokens": 4},
    "dinov3_vit": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "layerscale_value": 1.0,
        "use_gated_mlp": False,
        "num_register_tokens": 0,
    },
}
ONLY: dict[str, dict[str, Any]] = {  # what timm's modules are alone built with
    "dinov2": {"layer_norm_eps": 1e-6, "num_channels": 3, "hidden_act": "gelu"},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6, "num_channels": 3, "hidden_act": "gelu"},
    "dinov3_vit": {"layer_norm_eps": 1e-5, "num_channels": 3, "key_bias": False, "proj_bias": True, "mlp_bias": True},
}


def dino_fields(config_json: Mapping[str, Any], pixels: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a TimmConfig that a DINO tower's config.json fixes.

    Args:
        config_json: its content.
        pixels: the fields that its image processor fixes.
        where: what an error begins with.
    Raises:
        UserError: if a value of it has no counterpart in timm's towers.
    """
    family = config_json["model_type"]
    given = {**DEFAULTS[family], **config_json}
    for name, only in ONLY[family].items():
        if given[name] != only:
            raise UserError(f"{where}: {name}={given[name]}; a {family} tower is read with {only} alone")
    if family == "dinov3_vit":
        is_gated, args = given["use_gated_mlp"], _dinov3_args(given, where)
    else:
        is_gated, args = given["use_swiglu_ffn"], _dinov2_args(given)
    args |= {
        "img_size": given["image_size"],
        "patch_size": given["patch_size"],
        "embed_dim": given["hidden_size"],
        "depth": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "init_values": given["layerscale_value"],
    }
    return fill_from_tower({"architecture": ARCHITECTURES[family][is_gated], "model_args": args, **pixels})


def _dinov2_args(given: Mapping[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {"mlp_ratio": given["mlp_ratio"], "qkv_bias": given["qkv_bias"]}
    if given["use_swiglu_ffn"]:  # two thirds of the width, in eights; timm counts the gate besides
        width = given["hidden_size"]
        inner = (int(int(width * given["mlp_ratio"]) * 2 / 3) + 7) // 8 * 8
        args["mlp_ratio"] = mlp_ratio(2 * inner, width)
    if "num_register_tokens" in given:
        args["reg_tokens"] = given["num_register_tokens"]
    return args


def _dinov3_args(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    is_gated = given["use_gated_mlp"]
    if given["query_bias"] != given["value_bias"]:
        raise UserError(
            f"{where}: query_bias={given['query_bias']}, value_bias={given['value_bias']}; timm's towers have both or "
            "none of them"
        )
    if given["hidden_act"] != ("silu" if is_gated else "gelu"):
        raise UserError(f"{where}: hidden_act={given['hidden_act']}; read are gelu, and silu with use_gated_mlp")
    return {
        "mlp_ratio": mlp_ratio(given["intermediate_size"], given["hidden_size"]),
        "qkv_bias": given["query_bias"],
        "num_reg_tokens": given["num_register_tokens"],
        "rope_temperature": given["rope_theta"],
    }


def dino_weights(
    weights: Mapping[str, Tensor], family: str, config: TimmConfig, where: str, *, prefix: str = ""
) -> dict[str, Tensor]:
    """A tower's weights by the names of TimmEncoder.

    Raises:
        UserError: if any is missing, unexpected or of another shape.
    """
    given = {
        name.removeprefix(prefix).replace("model.layer.", "layer."): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
    given = {name: weight for name, weight in given.items() if not name.endswith(("mask_token", ".inv_freq"))}
    is_gated = config.architecture == ARCHITECTURES[family][True]
    rules = _dinov3_rules(is_gated) if family == "dinov3_vit" else _dinov2_rules(is_gated, given)
    try:
        renamed = to_theirs(given, rules)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if family == "dinov2_with_registers":  # there the class token has a position, in timm it is added to it
        positions_1ND = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions_1ND[:, :1]
        renamed["pos_embed"] = positions_1ND[:, 1:]
    if not config.prefix_tokens > 1:
        renamed.pop("reg_token", None)  # there, a tensor of no tokens
    return check_tower_weights(renamed, config, where, antialias=ANTIALIAS[family])


def _dinov2_rules(is_gated: bool, given: Mapping[str, Tensor]) -> list[Rule]:
    layer, block = "encoder.layer.{}", "blocks.{}"
    alike = [("norm1", "norm1"), ("norm2", "norm2"), ("attn.proj", "attention.output.dense")]
    if not is_gated:
        alike += [("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]
    elif any(".mlp.weights_in." in name for name in given):
        alike += [("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out")]
    else:
        alike.append(("mlp.fc2", "mlp.down_proj"))
    joined = [("attn.qkv", tuple(f"attention.attention.{part}" for part in ("query", "key", "value")))]
    if is_gated and ("mlp.fc2", "mlp.down_proj") in alike:
        joined.append(("mlp.fc1", ("mlp.gate_proj", "mlp.up_proj")))
    return [
        Rule("cls_token", "embeddings.cls_token"),
        Rule("reg_token", "embeddings.register_tokens"),
        Rule("pos_embed", "embeddings.position_embeddings"),
        *[Rule(f"patch_embed.proj.{kind}", f"embeddings.patch_embeddings.projection.{kind}") for kind in KINDS],
        *[Rule(f"norm.{kind}", f"layernorm.{kind}") for kind in KINDS],
        *[Rule(f"{block}.ls{n}.gamma", f"{layer}.layer_scale{n}.lambda1") for n in (1, 2)],
        *[Rule(f"{block}.{a}.{kind}", f"{layer}.{b}.{kind}") for a, b in alike for kind in KINDS],
        *[
            Rule(f"{block}.{a}.{kind}", tuple(f"{layer}.{b}.{kind}" for b in some))
            for a, some in joined
            for kind in KINDS
        ],
    ]


def _dinov3_rules(is_gated: bool) -> list[Rule]:
    layer, block = "layer.{}", "blocks.{}"
    alike = [("norm1", "norm1"), ("norm2", "norm2"), ("attn.proj", "attention.o_proj")]
    plain = [("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj")]
    gated = [("mlp.fc1_g", "mlp.gate_proj"), ("mlp.fc1_x", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj")]
    alike += gated if is_gated else plain
    return [
        Rule("cls_token", "embeddings.cls_token"),
        Rule("reg_token", "embeddings.register_tokens"),
        *[Rule(f"patch_embed.proj.{kind}", f"embeddings.patch_embeddings.{kind}") for kind in KINDS],
        *[Rule(f"norm.{kind}", f"norm.{kind}") for kind in KINDS],
        *[Rule(f"{block}.gamma_{n}", f"{layer}.layer_scale{n}.lambda1") for n in (1, 2)],
        *[Rule(f"{block}.{a}.{kind}", f"{layer}.{b}.{kind}") for a, b in alike for kind in KINDS],
        Rule(f"{block}.attn.qkv.weight", tuple(f"{layer}.attention.{part}_proj.weight" for part in "qkv")),
        *[Rule(f"{block}.attn.{part}_bias", f"{layer}.attention.{part}_proj.bias") for part in "qv"],
    ]


KINDS = ("weight", "bias")

"""Conformers of outside checkpoints in transformers' layout: their settings and weights in ours.

Parakeet (NVIDIA's FastConformer, arXiv:2305.05084) and wav2vec2-BERT (Meta's w2v-BERT 2.0, arXiv:2312.05187).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmgpt.config import UserError, did_you_mean
from mmgpt.encoders.conformer_config import ConformerConfig
from mmgpt.encoders.pretrained.settings import Settings, preprocessor_of
from mmgpt.files import load_weights, read_json
from mmgpt.weight_names import Rule, to_ours

BATCH_NORM_EPS = 1e-5  # torch's default, which transformers' Parakeet keeps


class Family(NamedTuple):
    """How one family's checkpoints are read.

    Attributes:
        fields: the config's fields, of the settings of the encoder and of its preprocessor.
        part: the key of config.json under which the encoder's settings lie, if there is one.
        prefixes: what the names of an encoder's weights may begin with; others of the file are not the encoder's.
        rules: names after the prefix.
        ignored: regular expressions of names after the prefix that are not used.
    """

    fields: Callable[[Settings, Settings], dict[str, Any]]
    part: str | None
    prefixes: tuple[str, ...]
    rules: list[Rule]
    ignored: tuple[str, ...] = ()


def conformer_fields(folder: Path) -> dict[str, Any]:
    """What a checkpoint in transformers' layout fixes of a `ConformerConfig`.

    Raises:
        UserError: if it is of no family that is known here, lacks a setting, or has one that is not supported.
    """
    family, config = _family(folder)
    return family.fields(config, preprocessor_of(folder))


def conformer_weights(folder: Path, config: ConformerConfig) -> dict[str, Tensor]:
    """That checkpoint's encoder by the names of a `ConformerEncoder`; what it holds besides is left out.

    A batch norm comes as the scale and shift that it is with the statistics it was saved with.

    Raises:
        UserError: if the files cannot be read or hold weights that the family does not have.
    """
    family, _ = _family(folder)
    weights = load_weights(folder, pickles=config.pickles)
    prefix = next((one for one in family.prefixes if any(name.startswith(one) for name in weights)), "")
    encoder = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    return to_ours(_folded(encoder, str(folder)), family.rules, str(folder), family.ignored)


def _family(folder: Path) -> tuple[Family, Settings]:
    file = folder / "config.json"
    settings = read_json(file)
    kind = str(settings.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(f"{file}: model_type={kind} is no conformer that is known here; {did_you_mean(kind, FAMILIES)}")
    family = FAMILIES[kind]
    if family.part and not isinstance(settings.get(family.part), dict):
        raise UserError(f"{file}: {family.part} is missing; take a whole checkpoint")
    return family, Settings(settings[family.part] if family.part else settings, str(file))


def _parakeet(config: Settings, sound: Settings) -> dict[str, Any]:
    config.require("hidden_act", "silu", "swish")
    config.require("subsampling_conv_kernel_size", 3)
    config.require("subsampling_conv_stride", 2)
    sound.require("feature_extractor_type", "ParakeetFeatureExtractor")
    sound.require("feature_size", config.number("num_mel_bins"))
    rate, width = sound.number("sampling_rate"), config.number("hidden_size")
    return {
        "rate": rate,
        "mels": config.number("num_mel_bins"),
        "feature_extractor": {
            "kind": "mel",
            "window_seconds": sound.number("win_length") / rate,
            "hop_seconds": sound.number("hop_length") / rate,
            "fft": sound.number("n_fft"),
            "symmetric": True,
            "preemphasis": sound.read("preemphasis") or 0.0,  # null switches it off
            "scale": "slaney",
            "log_floor": 2.0**-24,
            "last_frame": False,
            "normalise": "band",
        },
        "subsampling": config.number("subsampling_factor"),
        "stem_kind": "separable",
        "stem": config.number("subsampling_conv_channels"),
        "scale_stem": config.read("scale_input"),
        "width": width,
        "depth": config.number("num_hidden_layers"),
        "heads": config.number("num_attention_heads"),
        "mlp_ratio": config.number("intermediate_size") / width,
        "kernel": config.number("conv_kernel_size"),
        "causal": False,
        "bias": config.read("attention_bias"),
        "conv_bias": config.read("convolution_bias"),
        "conv_norm": "affine",
        "distances": None,
    }


def _wav2vec2_bert(config: Settings, sound: Settings) -> dict[str, Any]:
    config.require("hidden_act", "swish", "silu")
    config.require("position_embeddings_type", "relative_key")
    config.require("layer_norm_eps", 1e-5)
    config.require("add_adapter", False)
    config.require("use_intermediate_ffn_before_adapter", False)
    sound.require("feature_extractor_type", "SeamlessM4TFeatureExtractor")
    sound.require("sampling_rate", 16_000)  # the extractor's windows are of 400 samples at any rate
    config.require("feature_projection_input_dim", sound.number("num_mel_bins") * sound.number("stride"))
    width = config.number("hidden_size")
    return {
        "rate": 16_000,
        "mels": sound.number("num_mel_bins"),
        "feature_extractor": {"kind": "kaldi"},
        "subsampling": sound.number("stride"),
        "stem_kind": "stack",
        "scale_stem": False,
        "width": width,
        "depth": config.number("num_hidden_layers"),
        "heads": config.number("num_attention_heads"),
        "mlp_ratio": config.number("intermediate_size") / width,
        "kernel": config.number("conv_depthwise_kernel_size"),
        "causal": True,
        "bias": True,
        "conv_bias": False,
        "conv_norm": "layer",
        "distances": (
            config.number("left_max_position_embeddings"),
            config.number("right_max_position_embeddings"),
        ),
    }


def _folded(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Convolutions over single frames as matrices, and batch norms as the scale and shift of their statistics."""
    folded = {}
    for name, weight in weights.items():
        if re.search(r"\.pointwise_conv\d\.weight$", name):
            folded[name] = weight.squeeze(-1)
        elif name.endswith("conv.norm.weight"):
            stem = name.removesuffix("weight")
            parts = [stem + part for part in ("running_var", "running_mean", "bias")]
            absent = [part for part in parts if part not in weights]
            if absent:
                raise UserError(f"{where}: {absent[0]} is missing: a batch norm without it cannot stand still")
            variance, mean, bias = (weights[part].float() for part in parts)
            folded[name] = weight.float() * (variance + BATCH_NORM_EPS).rsqrt()
            folded[stem + "bias"] = bias - mean * folded[name]
        else:
            folded.setdefault(name, weight)
    return folded


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def _block(names: Mapping[str, str]) -> list[Rule]:
    """Rules of a layer's linear layers and norms, each with a bias where the checkpoint has one."""
    return [rule for theirs, ours in names.items() for rule in _linear(f"layers.{{}}.{theirs}", f"blocks.{{}}.{ours}")]


PARAKEET = [
    *_linear("subsampling.layers.0", "subsample.first"),
    *(rule for i in range(2) for rule in _linear(f"subsampling.layers.{2 + 3 * i}", f"subsample.depthwise.{i}")),
    *(rule for i in range(2) for rule in _linear(f"subsampling.layers.{3 + 3 * i}", f"subsample.pointwise.{i}")),
    *_linear("subsampling.linear", "subsample.project"),
    *_block(
        {
            "norm_feed_forward1": "norms.0",
            "norm_self_att": "norms.1",
            "norm_conv": "norms.2",
            "norm_feed_forward2": "norms.3",
            "norm_out": "norms.4",
            "feed_forward1.linear1": "first.0",
            "feed_forward1.linear2": "first.2",
            "feed_forward2.linear1": "last.0",
            "feed_forward2.linear2": "last.2",
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.o_proj": "attention.out",
            "conv.pointwise_conv1": "convolution.enter",
            "conv.depthwise_conv": "convolution.depthwise",
            "conv.norm": "convolution.norm",
            "conv.pointwise_conv2": "convolution.leave",
        }
    ),
    Rule("layers.{}.self_attn.relative_k_proj.weight", "blocks.{}.attention.distance.weight"),
    Rule("layers.{}.self_attn.bias_u", "blocks.{}.attention.content_bias_HE"),
    Rule("layers.{}.self_attn.bias_v", "blocks.{}.attention.distance_bias_HE"),
]
WAV2VEC2_BERT = [
    *_linear("feature_projection.layer_norm", "subsample.norm"),
    *_linear("feature_projection.projection", "subsample.project"),
    *(
        rule._replace(theirs=f"encoder.{rule.theirs}")
        for rule in _block(
            {
                "ffn1_layer_norm": "norms.0",
                "self_attn_layer_norm": "norms.1",
                "conv_module.layer_norm": "norms.2",
                "ffn2_layer_norm": "norms.3",
                "final_layer_norm": "norms.4",
                "ffn1.intermediate_dense": "first.0",
                "ffn1.output_dense": "first.2",
                "ffn2.intermediate_dense": "last.0",
                "ffn2.output_dense": "last.2",
                "self_attn.linear_q": "attention.query",
                "self_attn.linear_k": "attention.key",
                "self_attn.linear_v": "attention.value",
                "self_attn.linear_out": "attention.out",
                "conv_module.pointwise_conv1": "convolution.enter",
                "conv_module.depthwise_conv": "convolution.depthwise",
                "conv_module.depthwise_layer_norm": "convolution.norm",
                "conv_module.pointwise_conv2": "convolution.leave",
            }
        )
    ),
    Rule("encoder.layers.{}.self_attn.distance_embedding.weight", "blocks.{}.attention.distance_RE"),
]
STATISTICS = (r".*\.conv\.norm\.(running_mean|running_var|num_batches_tracked)",)
IN_A_MODEL = Family(_parakeet, "encoder_config", ("encoder.",), PARAKEET, STATISTICS)
FAMILIES = {
    "parakeet_encoder": IN_A_MODEL._replace(part=None, prefixes=("encoder.", "")),
    "parakeet_ctc": IN_A_MODEL,
    "parakeet_rnnt": IN_A_MODEL,
    "parakeet_tdt": IN_A_MODEL,
    "wav2vec2-bert": Family(_wav2vec2_bert, None, ("wav2vec2_bert.", ""), WAV2VEC2_BERT, ("masked_spec_embed",)),
}

"""Decoders of other projects: their config.json and weights read from files, and written back.

What each family calls its parts stands in `hf_decoder_tables.py`; rotary positions as in transformers 4 and 5.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgpt.checkpoints.hf_decoder_tables import (
    FAMILIES,
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    ConfigJson,
    Family,
    rotated_layers,
)
from mmgpt.config import UserError, build, did_you_mean
from mmgpt.files import check_weights, load_weights, read_json, save_weights, write_json
from mmgpt.model.decoder import Decoder
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.meta import on_meta_device
from mmgpt.weight_names import Rule, to_ours, to_theirs

FREE = {"family", "pretrained", "revision", "pickles", "zero_init", "dropout"}  # fields that no checkpoint fixes
ROPE_KEYS = {  # settings of rotary positions and our fields, by kind
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "low_freq_factor": "slow",
        "high_freq_factor": "fast",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "beta_slow": "slow",
        "beta_fast": "fast",
        "attention_factor": "attention_factor",
        "truncate": "whole",
    },
}
ROPE_OTHERS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


def decoder_fields(folder: Path) -> dict[str, Any]:
    """The fields of a DecoderConfig that a checkpoint's folder fixes; see `fields_of`."""
    config_json = read_json(folder / "config.json")
    text = config_json.get("text_config")
    return fields_of(text if isinstance(text, dict) else config_json, str(folder / "config.json"))


def decoder_weights(folder: Path, config: DecoderConfig) -> dict[str, Tensor]:
    """A checkpoint's weights by the names of `Decoder`; see `weights_of`."""
    return weights_of(load_weights(folder, pickles=config.pickles), config, str(folder))


def fields_of(config_json: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a DecoderConfig that a config.json (or the part of one about text) fixes.

    Args:
        config_json: what config.json holds.
        where: what an error begins with.
    Raises:
        UserError: if its family is not known, or one of its settings is not supported.
    """
    kind = config_json.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"{where}: model_type={kind!r} is no known family of decoders; {did_you_mean(str(kind), FAMILIES)}"
        )
    family = FAMILIES[kind]
    given = {**family.defaults, **config_json}
    absent = [key for key in family.keys if key not in given]
    if absent:
        raise UserError(f"{where}: has no {absent[0]}; take the config.json that came with the weights")
    for key, values in {**family.only, "quantization_config": ()}.items():
        if given.get(key) is not None:
            _among(given[key], key, values, where)
    name, activations = family.activation
    fields: dict[str, Any] = {
        "family": kind,
        **family.fixed,
        **{ours: given[theirs] for theirs, ours in family.keys.items() if given[theirs] is not None},
        "mlp": activations[_among(given[name], name, activations, where)],
    }
    if "attention_bias" in family.defaults:
        fields["bias"] = _read_bias(given, where)
    if "rope_theta" in family.defaults:
        fields |= _read_rope(given, where)
    if family.layer_types is not None:
        fields |= _read_layers(given, family, where)
    config = build(DecoderConfig, fields, where)
    return config.model_dump(mode="json", exclude=FREE - {"family"})


def _among(value: Any, name: str, known: Sequence[Any] | Mapping[Any, Any], where: str) -> Any:
    if value not in list(known):
        rule = f"known: {', '.join(map(str, known))}" if known else "convert the checkpoint to one without it"
        raise UserError(f"{where}: {name}={value!r} is not supported; {rule}")
    return value


def _read_bias(given: ConfigJson, where: str) -> bool | str:
    attention, mlp = given["attention_bias"], given.get("mlp_bias", False)
    if mlp and not attention:
        raise UserError(f"{where}: mlp_bias=True is not supported without attention_bias=True")
    return bool(mlp) or ("attention" if attention else False)


def _read_rope(given: ConfigJson, where: str) -> dict[str, Any]:
    stated: dict[str, Any] = given.get("rope_parameters") or given.get("rope_scaling") or {}
    kind = stated.get("rope_type") or stated.get("type") or "default"
    _among(kind, "rope_type", ["default", *ROPE_KEYS], where)
    share = stated.get("partial_rotary_factor", given.get("partial_rotary_factor", 1.0))
    _among(share, "partial_rotary_factor", [1.0], where)
    keys = ROPE_KEYS.get(kind, {})
    known = {*keys, *ROPE_OTHERS, *(("mscale", "mscale_all_dim") if kind == "yarn" else ())}
    for key in stated:
        _among(key, "rope_scaling", sorted(known), where)
    theta = stated.get("rope_theta") or given["rope_theta"]
    if kind == "default":
        return {"rope_theta": theta}
    context = given["max_position_embeddings"]
    original = (
        given.get("original_max_position_embeddings") or stated.get("original_max_position_embeddings") or context
    )
    settings = {**stated, "original_max_position_embeddings": original}
    if kind == "yarn":
        settings["factor"] = settings.get("factor") or context / original
        settings["attention_factor"] = settings.get("attention_factor") or _yarn_attention_factor(settings)
    scaling = {ours: settings[theirs] for theirs, ours in keys.items() if settings.get(theirs) is not None}
    return {"rope_theta": theta, "rope_scaling": {"kind": kind, **scaling}}


def _yarn_attention_factor(settings: ConfigJson) -> float:
    """How much sharper scores become, by YaRN's rule and by DeepSeek's variant of it with two factors."""

    def factor(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0 if settings["factor"] > 1 else 1.0

    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    return factor(above) / factor(below) if above and below else factor(1.0)


def _read_layers(given: ConfigJson, family: Family, where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "no_rope_layer_interval" in family.defaults:
        fields["unrotated_layers"] = [layer for layer, rotated in enumerate(rotated_layers(given)) if not rotated]
    assert family.layer_types is not None
    kinds = given.get("layer_types") if family is not FAMILIES["mistral"] else None  # which ignores it
    kinds = kinds or family.layer_types(given)
    for kind in kinds:
        _among(kind, "layer_types", [FULL_ATTENTION, SLIDING_ATTENTION], where)
    if given.get("use_sliding_window", True) and given["sliding_window"] is not None and SLIDING_ATTENTION in kinds:
        fields["window"] = given["sliding_window"]
        fields["global_layers"] = [layer for layer, kind in enumerate(kinds) if kind == FULL_ATTENTION]
    return fields


def family_rules(config: DecoderConfig, body: str | None = None, head: str = "lm_head") -> list[Rule]:
    """The table of a decoder's weights.

    Args:
        config: names the family, or is like one.
        body: what the outside names begin with, if not as in the family's own files.
        head: the outside name of the output layer.
    Raises:
        UserError: if no family has such decoders.
    """
    family = FAMILIES[family_of(config)]
    start = family.body if body is None else body
    return [
        *(rule._replace(theirs=start + rule.theirs) for rule in family.rules),
        Rule(f"{head}.weight", "head.weight"),
    ]


def weights_of(given: Mapping[str, Tensor], config: DecoderConfig, where: str) -> dict[str, Tensor]:
    """Weights by the names of `Decoder`, those of a tied output layer left out; where nothing is turned, not copied.

    Args:
        given: by outside name: of a language model, with or without its output layer, or within a multimodal one.
        config: the whole config, as `fields_of` gave it.
        where: what an error begins with.
    Raises:
        UserError: if any is missing, unexpected or of another shape; names them as the checkpoint does.
    """
    family = FAMILIES[family_of(config)]
    first = family.rules[0].theirs
    layouts = {  # in a language model, in one saved without its head, in multimodal ones of transformers 4 and 5
        family.body: "lm_head",
        "": "lm_head",
        f"language_model.{family.body}": "language_model.lm_head",
        "model.language_model.": "lm_head",
    }
    body = next((body for body in layouts if body + first in given), None)
    if body is None:
        raise UserError(f"{where}: holds no {family.body}{first}; is it of the family {config.family}?")
    head, embedding = f"{layouts[body]}.weight", given[body + first]
    rules = family_rules(config, body, layouts[body])
    is_whole = "language_model" not in body  # else there are other parts, whose weights are not looked at
    own = {
        name: weight
        for name, weight in given.items()
        if (is_whole or name.startswith(body) or name == head)
        and not any(re.fullmatch(pattern, name) for pattern in family.ignored)
    }
    if config.tied and head in own and not torch.equal(own.pop(head), embedding):
        raise UserError(f"{where}: {head} is not the embedding, though config.json says so by tie_word_embeddings")
    with on_meta_device():
        wanted = Decoder(config, len(embedding)).state_dict()
    if config.tied:
        del wanted["head.weight"]
    check_weights(to_theirs(wanted, rules), own, where, "take the files of one and the same checkpoint")
    return to_ours(own, rules, where)


def family_of(config: DecoderConfig) -> str:
    """The family a decoder is of, or the first that has such decoders.

    Raises:
        UserError: if there is none; names what it lacks.
    """
    if config.family is None:
        kind = next((kind for kind in FAMILIES if not _differences(config, kind)), "llama")
    else:
        kind = str(_among(config.family, "family", FAMILIES, "decoder"))
    faults = _differences(config, kind)
    if faults:
        raise UserError(f"decoder: {kind} has no place for {', '.join(faults)}; it can be saved as mmgpt's own only")
    return kind


def _differences(config: DecoderConfig, kind: str) -> list[str]:
    """The fields that get lost on the way to a family's config.json and back."""
    try:
        back = build(DecoderConfig, fields_of(_settings(config, kind), "decoder"), "decoder")
    except UserError as error:
        return [str(error).removeprefix("decoder: ")]
    wanted, given = _resolved(config), _resolved(back)
    return [f"{name}={value}" for name, value in wanted.items() if given[name] != value]


def _resolved(config: DecoderConfig) -> dict[str, Any]:
    """The fields that a checkpoint fixes, with what follows from others in the place of None."""
    return {
        **config.model_dump(mode="json", exclude=FREE),
        "kv_heads": config.num_kv_heads,
        "head_width": config.num_per_head,
        "ffn_width": config.num_inner,
        "attention_scale_width": config.attention_scale_width or config.num_per_head,
        "rope_theta": config.rope_theta if config.position == "rope" else None,
    }


def _settings(config: DecoderConfig, kind: str) -> dict[str, Any]:
    """A family's config.json, without what is not of the decoder alone."""
    family, fields = FAMILIES[kind], _resolved(config)
    fields["attention_scale_width"] = (
        int(fields["attention_scale_width"])
        if fields["attention_scale_width"] % 1 == 0
        else fields["attention_scale_width"]
    )
    name, activations = family.activation
    unsaid = [  # None here and in the family's own files
        theirs
        for theirs, ours in family.keys.items()
        if family.defaults.get(theirs, ours) is None and getattr(config, ours) is None
    ]
    settings = {
        "architectures": [family.architecture],
        "model_type": kind,
        **{theirs: fields[ours] for theirs, ours in family.keys.items() if theirs not in unsaid},
        name: next((theirs for theirs, ours in activations.items() if ours == config.mlp), config.mlp),
    }
    if "attention_bias" in family.defaults:
        settings["attention_bias"] = config.bias in (True, "attention")
    if "mlp_bias" in family.defaults:
        settings["mlp_bias"] = config.bias is True
    if "rope_theta" in family.defaults:
        settings |= {"rope_theta": config.rope_theta, "rope_scaling": _rope_settings(config)}
    if "no_rope_layer_interval" in family.defaults:
        settings["no_rope_layers"] = [int(layer not in config.unrotated_layers) for layer in range(config.depth)]
    if family.layer_types is not None:
        settings |= _layer_settings(config, family)
    return settings


def _rope_settings(config: DecoderConfig) -> dict[str, Any] | None:
    """`rope_scaling` as transformers 4 spells it, which 5 reads too."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    keys = ROPE_KEYS[scaling.kind]
    return {"rope_type": scaling.kind, **{theirs: getattr(scaling, ours) for theirs, ours in keys.items()}}


def _layer_settings(config: DecoderConfig, family: Family) -> dict[str, Any]:
    is_local = [config.is_local(layer) for layer in range(config.depth)]
    settings: dict[str, Any] = {"sliding_window": config.window}
    if family is not FAMILIES["mistral"]:
        settings["layer_types"] = [SLIDING_ATTENTION if local else FULL_ATTENTION for local in is_local]
    if "use_sliding_window" in family.defaults:
        settings["use_sliding_window"] = config.window is not None
    if "max_window_layers" in family.defaults:  # all that transformers looked at before 4.53
        settings["max_window_layers"] = is_local.index(True) if any(is_local) else config.depth
    return settings


def describe(config: DecoderConfig, vocab_size: int, dtype: torch.dtype, special: Mapping[str, Any]) -> dict[str, Any]:
    """What a family's config.json holds.

    Args:
        config: names the family, or is like one.
        vocab_size: rows of the embedding.
        dtype: of the weights.
        special: bos_token_id, eos_token_id, pad_token_id, where there are such tokens.
    Raises:
        UserError: if no family has such decoders.
    """
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **special}
    facts = {"vocab_size": vocab_size, "torch_dtype": str(dtype).removeprefix("torch."), **ids}
    return {**_settings(config, family_of(config)), **facts}


def write_decoder(
    folder: Path, config: DecoderConfig, weights: Mapping[str, Tensor], special: Mapping[str, Any] | None = None
) -> None:
    """Write config.json and safetensors as the decoder's family has them, into an existing folder.

    Args:
        folder: where.
        config: names the family, or is like one.
        weights: the state dict of a `Decoder`, a tied output layer in it or not.
        special: bos_token_id, eos_token_id, pad_token_id.
    Raises:
        UserError: if no family has such decoders.
    """
    rules = family_rules(config)
    own = {name: weight for name, weight in weights.items() if not (config.tied and name == "head.weight")}
    embedding = own["embedding.weight"]
    write_json(folder / "config.json", describe(config, len(embedding), embedding.dtype, special or {}))
    save_weights(to_theirs(own, rules), folder)

"""Multimodal models of transformers read as mmgpt's: LLaVA, Idefics3 and SmolVLM, Qwen2-Audio."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights, family_rules, fields_of
from mmgpt.checkpoints.hf_multimodal_tables import EXPORT_FORMATS, FORMAT_OF_MODEL_TYPE, ExportFormat
from mmgpt.checkpoints.pretrained_parts import tokenizer_of, vocab_size_of
from mmgpt.config import UserError, build
from mmgpt.files import first_of, load_weights, read_json
from mmgpt.inputs.templates import read_template
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.model.config import ModelConfig
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.meta import on_meta_device
from mmgpt.weight_names import to_ours

EXTRA_CONFIG = "mmgpt.json"  # beside an export: what its form has no place for
LLAMA = {  # transformers' LlamaConfig, whose values the config.json of LLaVA-1.5 leaves out
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def read_language_model(folder: Path) -> tuple[ModelBundle, dict[str, Tensor]]:
    """A language model in Hugging Face layout: its bundle on the meta device, and its weights.

    Raises:
        UserError: if its family is not known, or files are absent or damaged.
    """
    fields = {"pretrained": str(folder), **decoder_fields(folder)}
    config = ModelConfig(decoder=build(DecoderConfig, fields, str(folder / "config.json")))
    tokenizer = tokenizer_of(config)
    assert tokenizer is not None  # the decoder is pretrained
    own = _own(folder)
    with on_meta_device():
        bundle = new_bundle(config, tokenizer, own["template"], vocab_size_of(folder))
    bundle.system = own["system"]
    weights = decoder_weights(folder, config.decoder)
    return bundle, {f"decoder.{name}": weight for name, weight in weights.items()}


def read_multimodal(folder: Path) -> tuple[ModelBundle, dict[str, Tensor]]:
    """A model in one of the forms of TARGETS: its bundle on the meta device, and its weights.

    Raises:
        UserError: if a part is none that mmgpt has, or files are absent or damaged, or weights are left over.
    """
    config_json = read_json(folder / "config.json")
    where = str(folder / "config.json")
    target = EXPORT_FORMATS[FORMAT_OF_MODEL_TYPE[config_json["model_type"]]]
    own = _own(folder)
    encoder = {**target.tower.read(folder, config_json), **own.get("encoder", {})}
    stride = {"stride": config_json["scale_factor"]} if "scale_factor" in config_json else {}
    tree = {
        "decoder": _decoder(config_json, where),
        "encoders": {target.modality: encoder},
        "adapters": {target.modality: {**target.adapter.model_dump(), **stride}},
    }
    config = build(ModelConfig, tree, where)
    tokenizer, rows = Tokenizer.load(folder), config_json["text_config"].get("vocab_size", 32_000)
    number = _slot(config_json, target, where)
    slot = tokenizer.core.id_to_token(number)
    if slot is None:
        raise UserError(f"{folder}: its tokenizer has no token {number}, which stands for a medium in config.json")
    with on_meta_device():
        bundle = new_bundle(config, tokenizer.renamed(slot, PLACEHOLDER_TOKENS[target.modality]), own["template"], rows)
    bundle.system, bundle.media_markup = own["system"], _media_markup(own, target)
    return bundle, _weights(load_weights(folder), config, target, str(folder))


def _own(folder: Path) -> dict[str, Any]:
    """Template, system turn and more, from our file beside an export, or as far as its chat template tells."""
    if (folder / EXTRA_CONFIG).is_file():
        return read_json(folder / EXTRA_CONFIG)
    template, system = read_template(folder)
    return {"template": template, "system": system}


def _media_markup(own: Mapping[str, Any], target: ExportFormat) -> dict[str, tuple[str, str]]:
    """The markup around a medium; LLaVA-1.5's template writes a line's end after a picture."""
    given = own.get("media_markup", own.get("wraps"))
    if given is None:
        wrap = target.wrap or (("", "\n") if own["template"] == "vicuna" else ("", ""))
        given = {target.modality: wrap} if any(wrap) else {}
    return {modality: (before, after) for modality, (before, after) in given.items()}


def _decoder(config_json: Mapping[str, Any], where: str) -> dict[str, Any]:
    text = config_json.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{where}: has no text_config; take the config.json that came with the weights")
    tied = {"tie_word_embeddings": config_json["tie_word_embeddings"]} if "tie_word_embeddings" in config_json else {}
    return fields_of({**(LLAMA if text.get("model_type") == "llama" else {}), **tied, **text}, where)


def _slot(config_json: Mapping[str, Any], target: ExportFormat, where: str) -> int:
    keys = {target.slot_key, target.slot_key.replace("_index", "_id")}
    found = [config_json[key] for key in keys if isinstance(config_json.get(key), int)]
    if not found:
        raise UserError(f"{where}: has no {target.slot_key}; take the config.json that came with the weights")
    return int(found[0])


def _weights(given: Mapping[str, Tensor], config: ModelConfig, target: ExportFormat, where: str) -> dict[str, Tensor]:
    """All of a checkpoint's weights by our names."""
    modality = target.modality
    named = {_as_on_the_hub(name, target): weight for name, weight in given.items()}
    text_rules = family_rules(config.decoder, target.body, target.head)
    text = {name: weight for name, weight in named.items() if name.startswith((target.body, target.head))}
    if config.decoder.tied:
        text.pop(f"{target.head}.weight", None)
    joints = [rule.theirs for rule in target.rules]
    joint = {name: weight for name, weight in named.items() if name in joints}
    own = (target.body, target.head, target.tower.weight_prefix)
    left = [name for name in named if name not in joints and not name.startswith(own)]
    if left:
        raise UserError(
            f"{where}: {len(left)} weights are of no part of it: {first_of(left)}; is it a {target.kinds[0]}?"
        )
    tower = target.tower.unpack(named, config.encoders[modality], where)
    return {
        **{f"decoder.{name}": weight for name, weight in to_ours(text, text_rules, where).items()},
        **{f"encoders.{modality}.{name}": weight for name, weight in tower.items()},
        **{f"adapters.{modality}.{name}": weight for name, weight in to_ours(joint, target.rules, where).items()},
    }


def _as_on_the_hub(name: str, target: ExportFormat) -> str:
    """A weight's name as it was before transformers 4.52, and is on the hub; later releases write either."""
    for later, before in (("model.language_model.", target.body), ("lm_head.", f"{target.head}.")):
        if name.startswith(later):
            return before + name.removeprefix(later)
    return re.sub(r"^model\.(?=vision_tower\.|audio_tower\.|multi_modal_projector\.)", "", name)

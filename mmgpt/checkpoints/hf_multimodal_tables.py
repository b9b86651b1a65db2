"""The outside forms of a multimodal model: the parts that each can express, and its names and settings for them.

Names are those of the checkpoints on the hub, which transformers 4 and 5 and vLLM read alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmgpt.config import UserError
from mmgpt.encoders.pretrained.hf_vision import hf_vision_config, hf_vision_fields, hf_vision_weights, to_hf_vision
from mmgpt.encoders.pretrained.whisper import (
    whisper_config_dict,
    whisper_fields,
    whisper_preprocessor_dict,
    whisper_rules,
    whisper_weights_of,
)
from mmgpt.files import read_json
from mmgpt.model.adapters import AdapterConfig, FoldConfig, LinearConfig, MLPConfig
from mmgpt.weight_names import Rule, to_theirs

ConfigJson = dict[str, Any]


@dataclass(frozen=True)
class Tower:
    """How a form has its encoder.

    Attributes:
        kind: the encoder's kind here.
        part: where config.json has its settings.
        weight_prefix: what the names of its weights begin with; `prefix` as they are written.
        describe: its settings, those of its preprocessor, and what config.json says of it beside them; UserError if
            the form has no such encoder.
        read: an encoder's config as a mapping, from the folder and its config.json.
        pack: weights by their names after the prefix, from ours.
        unpack: ours, from all weights of a checkpoint.
    """

    kind: str
    part: str
    weight_prefix: str
    prefix: str
    describe: Callable[[Any], tuple[ConfigJson, ConfigJson, ConfigJson]]
    read: Callable[[Path, ConfigJson], ConfigJson]
    pack: Callable[[Mapping[str, Tensor], Any, str], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor], Any, str], dict[str, Tensor]]


@dataclass(frozen=True)
class ExportFormat:
    """A form: one tower, one adapter, one language model.

    Attributes:
        kinds: `model_type` in its config.json; the first is written.
        architecture: its class in transformers.
        processor: the class that prepares its inputs there, and its settings.
        modality: what its tower reads.
        slot: its name for a medium's placeholder; config.json has the id at `slot_key`.
        families: of language models that it is known with.
        adapter: the only adapter it has, up to the fields in `unconstrained`; `rules` name its weights.
        body: what the names of the decoder's weights begin with; `head` is that of its output layer.
        wrap: the markup around a medium that its processor always writes; None where its template may write any.
    """

    kinds: tuple[str, ...]
    architecture: str
    processor: str
    modality: str
    slot: str
    slot_key: str
    families: tuple[str, ...]
    adapter: AdapterConfig
    unconstrained: tuple[str, ...]
    rules: tuple[Rule, ...]
    tower: Tower
    body: str
    head: str
    wrap: tuple[str, str] | None = None


def _llava_tower(encoder: Any) -> tuple[ConfigJson, ConfigJson, ConfigJson]:
    vision, pixels = _picture_tower(encoder)
    if encoder.layer == -1 and encoder.post_norm:
        raise UserError("an encoder whose last norm is taken; hf-llava takes a block's output, as with layer: -2")
    beside = {
        "vision_feature_layer": encoder.layer,
        "vision_feature_select_strategy": "default" if encoder.prefix_tokens and encoder.tokens == "patch" else "full",
        "image_seq_length": encoder.num_tokens(encoder.max_shape),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    }
    return vision, pixels, beside


def _smolvlm_tower(encoder: Any) -> tuple[ConfigJson, ConfigJson, ConfigJson]:
    vision, pixels = _picture_tower(encoder)
    if encoder.layer != -1 or not encoder.post_norm or encoder.prefix_tokens or encoder.crop != "squash":
        raise UserError(
            "an encoder other than a SigLIP with its last norm (layer: -1), no class token and pictures squashed"
        )
    size = {"longest_edge": encoder.image_size}
    pixels |= {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_resize": False,  # to a longest side, before the square is made, which is made in any case
        "do_image_splitting": False,
        "size": size,
        "max_image_size": size,
    }
    for name in ("do_center_crop", "crop_size"):
        del pixels[name]
    return {**vision, "model_type": "idefics3_vision"}, pixels, {}


def _picture_tower(encoder: Any) -> tuple[ConfigJson, ConfigJson]:
    if encoder.kind != "timm":
        raise UserError(f"a {encoder.kind} encoder, not a CLIP or SigLIP tower of kind timm")
    if encoder.tiles or encoder.max_patches:
        option = "tiles" if encoder.tiles else "max_patches (NaFlex)"
        raise UserError(f"an encoder with {option}; it takes pictures of one size")
    return hf_vision_config(encoder)


def _read_llava(folder: Path, config_json: ConfigJson) -> ConfigJson:
    pixels = read_json(folder / "preprocessor_config.json")
    strategy = config_json.get("vision_feature_select_strategy", "default")
    return {
        "kind": "timm",
        **hf_vision_fields(config_json, pixels, str(folder)),
        "layer": config_json.get("vision_feature_layer", -2),
        "post_norm": False,
        "tokens": "patch" if strategy == "default" else "all",
    }


def _read_smolvlm(folder: Path, config_json: ConfigJson) -> ConfigJson:
    vision = {**config_json["vision_config"], "model_type": "siglip_vision_model"}
    pixels = read_json(folder / "preprocessor_config.json")
    side = vision["image_size"]
    squashed = {**pixels, "do_resize": True, "size": {"height": side, "width": side}}
    return {"kind": "timm", **hf_vision_fields(vision, squashed, str(folder))}


def _whisper_tower(encoder: Any) -> tuple[ConfigJson, ConfigJson, ConfigJson]:
    if encoder.kind != "whisper":
        raise UserError(f"a {encoder.kind} encoder, not a whisper one")
    if encoder.max_seconds * encoder.rate > encoder.window:
        limit = encoder.window / encoder.rate
        raise UserError(f"sounds of up to {encoder.max_seconds:g} s, where a window of {limit:g} s is all it takes")
    return whisper_config_dict(encoder), whisper_preprocessor_dict(encoder), {}


def _read_whisper(folder: Path, config_json: ConfigJson) -> ConfigJson:
    fields = whisper_fields(folder)
    return {"kind": "whisper", **fields, "max_seconds": 2 * fields["positions"] * fields["hop"] / fields["rate"]}


def _pack_whisper(weights: Mapping[str, Tensor], encoder: Any, prefix: str) -> dict[str, Tensor]:
    return to_theirs(weights, whisper_rules(prefix))


def _picture(weight_prefix: str, inside: str, describe: Any, read: Any) -> Tower:
    return Tower(
        "timm", "vision_config", weight_prefix, weight_prefix + inside, describe, read, to_hf_vision, hf_vision_weights
    )


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "hf-llava": ExportFormat(
        kinds=("llava",),
        architecture="LlavaForConditionalGeneration",
        processor="LlavaProcessor",
        modality="image",
        slot="<image>",
        slot_key="image_token_index",
        families=("llama", "mistral", "qwen2"),
        adapter=MLPConfig(kind="mlp"),
        unconstrained=(),
        rules=tuple(
            Rule(f"multi_modal_projector.{theirs}.{kind}", f"project.{ours}.{kind}")
            for theirs, ours in (("linear_1", 0), ("linear_2", 2))
            for kind in ("weight", "bias")
        ),
        tower=_picture("vision_tower.", "vision_model.", _llava_tower, _read_llava),
        body="language_model.model.",
        head="language_model.lm_head",
    ),
    "hf-smolvlm": ExportFormat(
        kinds=("idefics3", "smolvlm"),
        architecture="Idefics3ForConditionalGeneration",
        processor="Idefics3Processor",
        modality="image",
        slot="<image>",
        slot_key="image_token_id",
        families=("llama",),
        adapter=FoldConfig(kind="fold", layers=1),
        unconstrained=("stride",),
        rules=(Rule("model.connector.modality_projection.proj.weight", "project.weight"),),
        tower=_picture("model.vision_model.", "", _smolvlm_tower, _read_smolvlm),
        body="model.text_model.",
        head="lm_head",
        wrap=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    ),
    "hf-qwen2-audio": ExportFormat(
        kinds=("qwen2_audio",),
        architecture="Qwen2AudioForConditionalGeneration",
        processor="Qwen2AudioProcessor",
        modality="audio",
        slot="<|AUDIO|>",
        slot_key="audio_token_index",
        families=("qwen2",),
        adapter=LinearConfig(kind="linear"),
        unconstrained=(),
        rules=tuple(Rule(f"multi_modal_projector.linear.{kind}", f"project.{kind}") for kind in ("weight", "bias")),
        tower=Tower(
            "whisper",
            "audio_config",
            "audio_tower.",
            "audio_tower.",
            _whisper_tower,
            _read_whisper,
            _pack_whisper,
            whisper_weights_of,
        ),
        body="language_model.model.",
        head="language_model.lm_head",
    ),
}
FORMAT_OF_MODEL_TYPE = {kind: name for name, target in EXPORT_FORMATS.items() for kind in target.kinds}

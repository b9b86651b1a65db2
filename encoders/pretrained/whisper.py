"""Whisper's encoder of a checkpoint in transformers' layout: its settings and weights in ours, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmgpt.config import UserError, did_you_mean
from mmgpt.encoders.pretrained.settings import Settings, preprocessor_of
from mmgpt.encoders.whisper import WhisperConfig
from mmgpt.files import load_weights, read_json
from mmgpt.weight_names import Rule, to_ours

SOURCES: dict[str, tuple[str | None, Literal[1, 2], bool]] = {  # model_type to where config.json has the encoder's
    "whisper": (None, 1, False),  # settings, its `pool`, and if it is `masked`
    "qwen2_audio_encoder": (None, 2, False),
    "qwen2_audio": ("audio_config", 2, True),
}


def whisper_fields(folder: Path) -> dict[str, Any]:
    """What a checkpoint in transformers' layout fixes of a `WhisperConfig`.

    Raises:
        UserError: if it is no Whisper or Qwen2-Audio, lacks a setting, or has one that is not supported.
    """
    file = folder / "config.json"
    settings = read_json(file)
    kind = str(settings.get("model_type"))
    if kind not in SOURCES:
        raise UserError(f"{file}: model_type={kind} has no Whisper encoder; {did_you_mean(kind, SOURCES)}")
    part, pool, masked = SOURCES[kind]
    if part and not isinstance(settings.get(part), dict):
        raise UserError(f"{file}: {part} is missing; take a whole checkpoint")
    config, sound = Settings(settings[part] if part else settings, str(file)), preprocessor_of(folder)
    config.require("activation_function", "gelu")
    sound.require("feature_extractor_type", "WhisperFeatureExtractor")
    sound.require("feature_size", config.number("num_mel_bins"))
    sound.require("padding_value", 0.0)
    if sound.settings.get("dither"):
        sound.require("dither", 0.0)  # checkpoints from before there was one do not name it
    fields = {
        "rate": sound.number("sampling_rate"),
        "mels": config.number("num_mel_bins"),
        "hop": sound.number("hop_length"),
        "fft": sound.number("n_fft"),
        "positions": config.number("max_source_positions"),
        "width": config.number("d_model"),
        "depth": config.number("encoder_layers"),
        "heads": config.number("encoder_attention_heads"),
        "inner": config.number("encoder_ffn_dim"),
        "pool": pool,
        "masked": masked,
    }
    window = 2 * fields["positions"] * fields["hop"]
    if sound.number("chunk_length") * fields["rate"] != window:
        raise UserError(
            f"{sound.where}: chunk_length={sound.read('chunk_length')} s is not the window of {window} samples that "
            f"max_source_positions={fields['positions']} needs; the files are not of one checkpoint"
        )
    return fields


def whisper_weights(folder: Path, config: WhisperConfig) -> dict[str, Tensor]:
    """That checkpoint's encoder by the names of a `WhisperEncoder`; see `whisper_weights_of`."""
    return whisper_weights_of(load_weights(folder, pickles=config.pickles), config, str(folder))


def whisper_weights_of(weights: Mapping[str, Tensor], config: WhisperConfig, where: str) -> dict[str, Tensor]:
    """The encoder among a whole model's weights, by the names of a `WhisperEncoder`; what else there is is left out.

    Raises:
        UserError: if there is none, or it holds weights that Whisper's does not have.
    """
    first = next((name for name in weights if name.endswith("conv1.weight")), None)
    if first is None:
        raise UserError(f"{where}: holds no conv1.weight of a Whisper encoder; take another checkpoint")
    prefix = first.removesuffix("conv1.weight")
    encoder = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    return to_ours(encoder, whisper_rules(prefix), where)


def whisper_rules(prefix: str) -> list[Rule]:
    """The table between transformers' names, after a prefix such as `model.encoder.`, and those here."""
    names = {
        "self_attn_layer_norm": "norms.0",
        "final_layer_norm": "norms.1",
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "out",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
    }
    modules = {"conv1": "convolutions.0", "conv2": "convolutions.1", "layer_norm": "norm"}
    modules |= {f"layers.{{}}.{theirs}": f"blocks.{{}}.{ours}" for theirs, ours in names.items()}
    return [
        Rule(f"{prefix}embed_positions.weight", "position_ND"),
        *(
            Rule(f"{prefix}{theirs}.{part}", f"{ours}.{part}")
            for theirs, ours in modules.items()
            for part in ("weight", "bias")
        ),
    ]


def whisper_config_dict(config: WhisperConfig) -> dict[str, Any]:
    """The config as transformers' audio_config of a Qwen2-Audio.

    Raises:
        UserError: if it does not pool pairs of features, which Qwen2-Audio always does.
    """
    if config.pool != 2:
        raise UserError(f"pool={config.pool}: Qwen2-Audio always averages pairs of features; train with pool=2")
    if not config.masked:
        raise UserError("masked=False: Qwen2-Audio never attends to the silence after a sound; train with masked=True")
    return {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": config.mels,
        "max_source_positions": config.positions,
        "d_model": config.width,
        "encoder_layers": config.depth,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.inner,
        "activation_function": "gelu",
        "scale_embedding": False,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
    }


def whisper_preprocessor_dict(config: WhisperConfig) -> dict[str, Any]:
    """The config as transformers' preprocessor_config.json.

    Raises:
        UserError: if a window is no whole number of seconds, in which transformers gives it.
    """
    if config.window % config.rate:
        raise UserError(
            f"positions={config.positions}: a window of {config.window / config.rate:g} s; transformers takes whole "
            "seconds only, so change positions, hop or rate"
        )
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.mels,
        "sampling_rate": config.rate,
        "hop_length": config.hop,
        "n_fft": config.fft,
        "chunk_length": config.window // config.rate,
        "n_samples": config.window,
        "nb_max_frames": 2 * config.positions,
        "padding_side": "right",
        "padding_value": 0.0,
        "dither": 0.0,
        "return_attention_mask": True,
    }

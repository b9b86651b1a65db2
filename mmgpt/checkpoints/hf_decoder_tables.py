"""Families of decoders: the names of their weights and of their settings, as tables that are read in both directions.

A family is what config.json calls model_type. Source of every default: transformers, models/*/configuration_*.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmgpt.weight_names import Rule

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
ConfigJson = Mapping[str, Any]  # a config.json, with the family's defaults for what it leaves out


def _rules(names: Mapping[str, str | tuple[str, ...]], transposed: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """A rule for the weight and one for the bias of each module; some modules' weights are stored (in, out)."""
    rules = []
    for theirs, ours in names.items():
        pieces = (ours,) if isinstance(ours, str) else ours
        rules.append(Rule(f"{theirs}.weight", tuple(f"{name}.weight" for name in pieces), theirs in transposed))
        rules.append(Rule(f"{theirs}.bias", tuple(f"{name}.bias" for name in pieces)))
    return tuple(rules)


_LLAMA_NAMES = {
    "embed_tokens": "embedding",
    "norm": "norm",
    "layers.{}.input_layernorm": "blocks.{}.attention_norm",
    "layers.{}.self_attn.q_proj": "blocks.{}.attention.query",
    "layers.{}.self_attn.k_proj": "blocks.{}.attention.key",
    "layers.{}.self_attn.v_proj": "blocks.{}.attention.value",
    "layers.{}.self_attn.o_proj": "blocks.{}.attention.out",
    "layers.{}.self_attn.q_norm": "blocks.{}.attention.query_norm",
    "layers.{}.self_attn.k_norm": "blocks.{}.attention.key_norm",
    "layers.{}.post_attention_layernorm": "blocks.{}.mlp_norm",
    "layers.{}.mlp.gate_proj": "blocks.{}.mlp.gate",
    "layers.{}.mlp.up_proj": "blocks.{}.mlp.up",
    "layers.{}.mlp.down_proj": "blocks.{}.mlp.down",
}
_GEMMA_NAMES = {
    **_LLAMA_NAMES,
    "layers.{}.post_attention_layernorm": "blocks.{}.attention_post_norm",
    "layers.{}.pre_feedforward_layernorm": "blocks.{}.mlp_norm",
    "layers.{}.post_feedforward_layernorm": "blocks.{}.mlp_post_norm",
}
_GPT2_NAMES: dict[str, str | tuple[str, ...]] = {
    "wte": "embedding",
    "wpe": "positions",
    "ln_f": "norm",
    "h.{}.ln_1": "blocks.{}.attention_norm",
    "h.{}.attn.c_attn": tuple(f"blocks.{{}}.attention.{name}" for name in ("query", "key", "value")),
    "h.{}.attn.c_proj": "blocks.{}.attention.out",
    "h.{}.ln_2": "blocks.{}.mlp_norm",
    "h.{}.mlp.c_fc": "blocks.{}.mlp.up",
    "h.{}.mlp.c_proj": "blocks.{}.mlp.down",
}
_GPT2_TURNED = ("h.{}.attn.c_attn", "h.{}.attn.c_proj", "h.{}.mlp.c_fc", "h.{}.mlp.c_proj")
_LLAMA_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "ffn_width",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
}
_GEMMA_KEYS = {
    **_LLAMA_KEYS,
    "query_pre_attn_scalar": "attention_scale_width",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
}
_GPT2_KEYS = {
    "n_embd": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "n_inner": "ffn_width",
    "n_positions": "context",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tied",
}
_GATES = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}


class Family(NamedTuple):
    """One family; what is not given is as in Llama.

    Attributes:
        architecture: the class that transformers builds of it.
        defaults: settings that may be left out.
        fixed: fields that the whole family shares.
        keys: setting and field, where both hold the same value.
        activation: the setting that names it, and our feed-forward for each of its values.
        only: settings that must hold one of these values where they are given.
        layer_types: what each layer sees where `layer_types` is not given; None if no layer has a window.
        body: what the names of its weights begin with, but for the output layer's.
        rules: the names below that; the first is the embedding's.
        ignored: names of saved tensors that hold nothing learned, as regular expressions.
    """

    architecture: str
    defaults: dict[str, Any]
    fixed: dict[str, Any] = {}
    keys: dict[str, str] = _LLAMA_KEYS
    activation: tuple[str, dict[str, str]] = ("hidden_act", _GATES)
    only: dict[str, tuple[Any, ...]] = {}
    layer_types: Callable[[ConfigJson], list[str]] | None = None
    body: str = "model."
    rules: tuple[Rule, ...] = _rules(_LLAMA_NAMES)
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)


def _later_slide(config_json: ConfigJson) -> list[str]:
    depth, first = config_json["num_hidden_layers"], config_json["max_window_layers"]
    return [SLIDING_ATTENTION if layer >= first else FULL_ATTENTION for layer in range(depth)]


def _evens_slide(config_json: ConfigJson) -> list[str]:
    return [FULL_ATTENTION if layer % 2 else SLIDING_ATTENTION for layer in range(config_json["num_hidden_layers"])]


def _all_slide(config_json: ConfigJson) -> list[str]:
    return [SLIDING_ATTENTION] * int(config_json["num_hidden_layers"])


def _unrotated_slide(config_json: ConfigJson) -> list[str]:
    return [FULL_ATTENTION if rotated else SLIDING_ATTENTION for rotated in rotated_layers(config_json)]


def rotated_layers(config_json: ConfigJson) -> list[int]:
    """SmolLM3's list with 1 for every layer that has rotary positions and 0 for every one that has none."""
    depth, interval = config_json["num_hidden_layers"], config_json["no_rope_layer_interval"]
    return config_json.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(depth)]


_PLAIN = {
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
_BIASES = {"attention_bias": False, "mlp_bias": False}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_CAPS = {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", {**_PLAIN, **_BIASES, "num_key_value_heads": None}),
    "qwen2": Family("Qwen2ForCausalLM", {**_PLAIN, **_WINDOWS}, {"bias": "qkv"}, layer_types=_later_slide),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**_PLAIN, **_WINDOWS, "head_dim": 128, "attention_bias": False},
        {"qk_norm": True},
        layer_types=_later_slide,
    ),
    "mistral": Family(
        "MistralForCausalLM", {**_PLAIN, "sliding_window": 4096, "num_key_value_heads": 8}, layer_types=_all_slide
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        {
            **_PLAIN,
            **_BIASES,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
        },
        layer_types=_unrotated_slide,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {
            **_PLAIN,
            **_CAPS,
            "head_dim": 256,
            "attention_bias": False,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        {"norm": "rms_plus_one", "post_norms": True, "scaled_embedding": True},
        _GEMMA_KEYS,
        ("hidden_activation", _GATES),
        only={"use_bidirectional_attention": (False,)},
        layer_types=_evens_slide,
        rules=_rules(_GEMMA_NAMES),
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "n_inner": None,
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "activation_function": "gelu_new",
        },
        {"norm": "layer", "position": "learned", "bias": True},
        _GPT2_KEYS,
        ("activation_function", {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}),
        only={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        body="transformer.",
        rules=_rules(_GPT2_NAMES, _GPT2_TURNED),
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    ),
}

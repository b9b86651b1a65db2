"""Families of decoders: the names of their weights and of their settings, as tables that are read in both directions.

A family is what config.json calls model_type. Source of every default: transformers, models/*/configuration_*.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmgpt.renaming import Rule

FULL, SLIDING = "full_attention", "sliding_attention"
Described = Mapping[str, Any]  # a config.json, with the family's defaults for what it leaves out


class Family(NamedTuple):
    """One family.

    Attributes:
        architecture: the class that transformers builds of it.
        body: what the names of its weights begin with, but for the output layer's.
        rules: the names below that; the first is the embedding's.
        keys: setting and field, where both hold the same value.
        defaults: settings that may be left out.
        fixed: fields that the whole family shares.
        activation: the setting that names it, and our feed-forward for each of its values.
        only: settings that must hold one of these values where they are given.
        layer_types: what each layer sees where `layer_types` is not given; None if no layer has a window.
        ignored: names of saved tensors that hold nothing learned, as regular expressions.
    """

    architecture: str
    body: str
    rules: tuple[Rule, ...]
    keys: dict[str, str]
    defaults: dict[str, Any]
    fixed: dict[str, Any]
    activation: tuple[str, dict[str, str]]
    only: dict[str, tuple[Any, ...]] = {}
    layer_types: Callable[[Described], list[str]] | None = None
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)


def _rules(
    names: Mapping[str, str | tuple[str, ...]], block: str, blocks: Mapping[str, str | tuple[str, ...]], transposed: str
) -> tuple[Rule, ...]:
    """A rule for the weight and one for the bias of each module; matrices named `transposed`... are stored turned."""
    inside = {
        f"{block}.{{}}.{theirs}": tuple(f"blocks.{{}}.{name}" for name in ([ours] if isinstance(ours, str) else ours))
        for theirs, ours in blocks.items()
    }
    return tuple(
        Rule(
            f"{theirs}.{kind}",
            tuple(f"{name}.{kind}" for name in ((ours,) if isinstance(ours, str) else ours)),
            bool(transposed) and kind == "weight" and theirs.split(".")[-1].startswith(transposed),
        )
        for theirs, ours in {**names, **inside}.items()
        for kind in ("weight", "bias")
    )


_LLAMA_BLOCK: dict[str, str | tuple[str, ...]] = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_LLAMA_TOP = {"embed_tokens": "embedding", "norm": "norm"}
_LLAMA_RULES = _rules(_LLAMA_TOP, "layers", {**_LLAMA_BLOCK, "post_attention_layernorm": "mlp_norm"}, "")
_GEMMA_NORMS = {
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_GEMMA_RULES = _rules(_LLAMA_TOP, "layers", {**_LLAMA_BLOCK, **_GEMMA_NORMS}, "")
_GPT2_BLOCK: dict[str, str | tuple[str, ...]] = {
    "ln_1": "attention_norm",
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": "attention.out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
_GPT2_RULES = _rules({"wte": "embedding", "wpe": "positions", "ln_f": "norm"}, "h", _GPT2_BLOCK, "c_")
_LLAMA_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "inner",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
}
_GEMMA_KEYS = {
    **_LLAMA_KEYS,
    "query_pre_attn_scalar": "score_width",
    "attn_logit_softcapping": "attention_cap",
    "final_logit_softcapping": "logit_cap",
}
_GPT2_KEYS = {
    "n_embd": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "n_inner": "inner",
    "n_positions": "context",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tied",
}
_PLAIN = {"head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
_BIASES = {"attention_bias": False, "mlp_bias": False}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_CAPS = {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GATES = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}


def _later_slide(described: Described) -> list[str]:
    depth, first = described["num_hidden_layers"], described["max_window_layers"]
    return [SLIDING if layer >= first else FULL for layer in range(depth)]


def _evens_slide(described: Described) -> list[str]:
    return [FULL if layer % 2 else SLIDING for layer in range(described["num_hidden_layers"])]


def _all_slide(described: Described) -> list[str]:
    return [SLIDING] * int(described["num_hidden_layers"])


def _unrotated_slide(described: Described) -> list[str]:
    return [FULL if rotated else SLIDING for rotated in rotated_layers(described)]


def rotated_layers(described: Described) -> list[int]:
    """SmolLM3's list with 1 for every layer that has rotary positions and 0 for every one that has none."""
    depth, interval = described["num_hidden_layers"], described["no_rope_layer_interval"]
    return described.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(depth)]


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        "model.",
        _LLAMA_RULES,
        _LLAMA_KEYS,
        {**_PLAIN, **_BIASES, "num_key_value_heads": None, "hidden_act": "silu"},
        {},
        ("hidden_act", _GATES),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "model.",
        _LLAMA_RULES,
        _LLAMA_KEYS,
        {**_PLAIN, **_WINDOWS, "hidden_act": "silu"},
        {"bias": "qkv"},
        ("hidden_act", _GATES),
        layer_types=_later_slide,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "model.",
        _LLAMA_RULES,
        _LLAMA_KEYS,
        {**_PLAIN, **_WINDOWS, "head_dim": 128, "attention_bias": False, "hidden_act": "silu"},
        {"qk_norm": True},
        ("hidden_act", _GATES),
        layer_types=_later_slide,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "model.",
        _LLAMA_RULES,
        _LLAMA_KEYS,
        {**_PLAIN, "sliding_window": 4096, "num_key_value_heads": 8, "hidden_act": "silu"},
        {},
        ("hidden_act", _GATES),
        layer_types=_all_slide,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "model.",
        _LLAMA_RULES,
        _LLAMA_KEYS,
        {
            **_PLAIN,
            **_BIASES,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
        },
        {},
        ("hidden_act", _GATES),
        layer_types=_unrotated_slide,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "model.",
        _GEMMA_RULES,
        _GEMMA_KEYS,
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
        ("hidden_activation", _GATES),
        only={"use_bidirectional_attention": (False,)},
        layer_types=_evens_slide,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "transformer.",
        _GPT2_RULES,
        _GPT2_KEYS,
        {
            "n_inner": None,
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "activation_function": "gelu_new",
        },
        {"norm": "layer", "position": "learned", "bias": True},
        ("activation_function", {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}),
        only={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    ),
}

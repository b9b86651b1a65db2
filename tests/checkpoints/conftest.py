from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

VOCAB, WINDOW = 97, 7
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "eos_token_id": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama, tied, biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    ),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 12}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window": ("qwen2", {**SLIDING, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3, window": ("smollm3", {**SLIDING, "no_rope_layers": [1, 0, 1], "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gpt2": ("gpt2", {}),
}


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., Any]:
    """A random model of transformers, its weights far from the initial ones, so that no scale of 1 hides a mistake."""

    def make(case: str, **changes: Any) -> Any:
        kind, settings = CASES[case]
        sizes = GPT2_SIZES if kind == "gpt2" else SIZES
        config = transformers.AutoConfig.for_model(kind, **{**sizes, **settings, **changes})
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def references(
    make_reference: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """Each case's model and the folder it was saved to, made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(case: str) -> tuple[Any, Path]:
        if case not in made:
            model, folder = make_reference(case), tmp_path_factory.mktemp("reference")
            model.save_pretrained(folder)
            made[case] = model, folder
        return made[case]

    return get


@pytest.fixture(params=list(CASES))
def reference(request: pytest.FixtureRequest, references: Callable[[str], tuple[Any, Path]]) -> tuple[Any, Path]:
    return references(request.param)

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights, fields_of
from mmgpt.config import UserError, build
from mmgpt.files import read_json
from mmgpt.model.layers import DecoderConfig

UP = "model.layers.1.mlp.up_proj.weight"


def read(folder: Path, **changes: Any) -> dict[str, Tensor]:
    return decoder_weights(folder, build(DecoderConfig, {**decoder_fields(folder), **changes}, str(folder)))


def changed(references: Callable[[str], tuple[Any, Path]], case: str, folder: Path, **weights: Tensor | None) -> Path:
    """A copy of a case's checkpoint with some weights replaced, added, or taken out."""
    source = references(case)[1]
    kept = {**load_file(source / "model.safetensors"), **weights}
    save_file({name: weight for name, weight in kept.items() if weight is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def line_of(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("case", "weights", "rule"),
    [
        ("llama", {UP: None}, f"1 missing: {UP}"),
        ("llama", {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}, "1 unexpected: model.layers.0.mlp.up_proj.bias"),
        ("llama", {"model.layers.3.mlp.up_proj.weight": torch.ones(48, 32)}, "1 unexpected: model.layers.3.mlp"),
        ("llama", {UP: torch.ones(48, 31)}, f"1 of another shape: {UP} (48, 31) instead of (48, 32)"),
        ("llama", {"lm_head.weight": None}, "1 missing: lm_head.weight"),
        (
            "llama",
            {"model.embed_tokens.weight": None},
            "holds no model.embed_tokens.weight; is it of the family llama?",
        ),
        ("gpt2", {"transformer.h.0.attn.c_attn.weight": torch.ones(96, 32)}, "(96, 32) instead of (32, 96)"),
        ("qwen2", {"lm_head.weight": torch.ones(97, 32)}, "lm_head.weight is not the embedding"),
        ("qwen2", {"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}, "1 unexpected"),
    ],
)
def test_weights_that_do_not_fit_are_named_as_the_checkpoint_names_them(case, weights, rule, references, tmp_path):
    with pytest.raises(UserError) as error:
        read(changed(references, case, tmp_path, **weights))
    assert rule in line_of(error)
    assert str(tmp_path) in line_of(error)


def test_an_output_layer_that_repeats_the_tied_embedding_is_left_out(references, tmp_path):
    embedding = load_file(references("qwen2")[1] / "model.safetensors")["model.embed_tokens.weight"]
    changed(references, "qwen2", tmp_path, **{"lm_head.weight": embedding.clone()})
    assert "head.weight" not in read(tmp_path)


@pytest.mark.parametrize(
    ("case", "settings", "rule"),
    [
        (
            "qwen3",
            {"model_type": "qwen3_moe"},
            "model_type='qwen3_moe' is no known family of decoders; did you mean qwen3?",
        ),
        ("gemma2", {"model_type": "gemma3_text"}, "known: gemma2, gpt2"),
        ("llama", {"model_type": None}, "known: gemma2, gpt2, llama, mistral, qwen2, qwen3, smollm3"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu' is not supported; known: silu"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function='gelu' is not supported; known: gelu_new"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported without attention_bias=True"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported; convert"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "default", "mrope_section": [2]}}, "rope_scaling='mrope_section'"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "rope_scaling='full_attention'",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types='chunked_attention'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("llama", {"num_key_value_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ("llama", {"hidden_size": "wide"}, "width='wide'"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(case, settings, rule, references):
    described = {**read_json(references(case)[1] / "config.json"), **settings}
    with pytest.raises(UserError) as error:
        fields_of(described, "here/config.json")
    assert rule in line_of(error)
    assert line_of(error).startswith("here/config.json: ")


def test_a_config_without_a_size_is_refused(references):
    described = read_json(references("llama")[1] / "config.json")
    del described["hidden_size"]
    with pytest.raises(UserError, match=r"here: has no hidden_size; take the config.json that came with the weights"):
        fields_of(described, "here")


@pytest.mark.parametrize(
    ("index", "rule"),
    [
        ({"weight_map": ["a"]}, "its weight_map is no list of files beside it"),
        ({"weight_map": {"lm_head.weight": "../model.safetensors"}}, "its weight_map is no list of files beside it"),
        ({"weight_map": {"lm_head.weight": "model-2.safetensors"}}, "model-2.safetensors: no such file"),
        ({"weight_map": {"other.weight": "model.safetensors"}}, "names other.weight, which its files do not hold"),
    ],
)
def test_a_corrupt_index_is_refused(index, rule, references, tmp_path):
    folder = changed(references, "llama", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as error:
        read(folder)
    assert rule in line_of(error)


def test_a_truncated_file_is_refused(references, tmp_path):
    file = changed(references, "llama", tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: damaged or truncated"):
        read(tmp_path)


def test_a_pickle_is_read_only_where_it_is_allowed_and_gives_the_same_weights(references, tmp_path):
    expected = read(references("llama")[1])
    file = changed(references, "llama", tmp_path) / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin: a pickle, .* allow it by name with pickles: true"):
        read(tmp_path)
    given = read(tmp_path, pickles=True)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], weight) for name, weight in expected.items())

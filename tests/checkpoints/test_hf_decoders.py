import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights, family_rules, fields_of, write_decoder
from mmgpt.config import UserError, build
from mmgpt.files import load_weights, read_json, save_weights
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.engine import Engine
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.batch import collate, collate_packed
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.config import ModelConfig
from mmgpt.model.decoder import Decoder
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.weight_names import their_name

VOCAB, LENGTH = 97, 40
EXACT = {"atol": 1e-5, "rtol": 1e-5}
WINDOWED = ["qwen2, window", "mistral", "smollm3, window", "gemma2"]


def config_of(folder: Path) -> DecoderConfig:
    return build(DecoderConfig, decoder_fields(folder), str(folder))


def read(folder: Path, dtype: torch.dtype = torch.float32) -> MultimodalModel:
    config = config_of(folder)
    model = MultimodalModel(ModelConfig(decoder=config), VOCAB, {})
    weights = decoder_weights(folder, config)
    if config.tied:
        weights["head.weight"] = weights["embedding.weight"]
    model.decoder.load_state_dict(weights)
    return model.to(dtype).eval()


@torch.no_grad()
def logits_of(decoder: Decoder, ids_BT: Tensor) -> Tensor:
    positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    return decoder.logits(decoder(decoder.embed(ids_BT), positions_BT))


@torch.no_grad()
def theirs_of(model, ids_BT: Tensor) -> Tensor:
    return model(ids_BT).logits.float()


def prompt_of(ids: list[int]) -> Rendered:
    return Rendered(ids, list(ids), [0] * len(ids), list(range(len(ids))), [], "prompt", "")


def random_ids(*shape: int) -> Tensor:
    return torch.randint(3, VOCAB, shape)


def test_a_checkpoint_gives_the_logits_of_its_own_library(reference):
    theirs, folder = reference
    ids_BT = random_ids(2, LENGTH)
    logits_BTV = theirs_of(theirs, ids_BT)
    assert logits_BTV.std() > 0.3
    torch.testing.assert_close(logits_of(read(folder).decoder, ids_BT), logits_BTV, **EXACT)


def test_greedy_cached_answers_are_those_of_its_own_library_token_for_token(reference, tokenizer):
    theirs, folder = reference
    prompts = [random_ids(length).tolist() for length in (5, 19)]
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    expected = [theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]
    asked = [(prompt_of(ids), GenerateConfig(max_new_tokens=64)) for ids in prompts]
    replies = Engine(read(folder), tokenizer, -1).generate(asked, len(asked))
    assert [reply.tokens for reply in replies] == expected


def test_every_step_of_cached_decoding_gives_the_logits_of_a_full_pass_of_its_own_library(reference):
    theirs, folder = reference
    model, texts = read(folder), [random_ids(5 + 64), random_ids(19 + 64)]
    expected = [theirs_of(theirs, ids_T[None])[0, -65:] for ids_T in texts]
    cache, logits_BV = prefill(model, [prompt_of(ids_T[:-64].tolist()) for ids_T in texts], room=64)
    steps = [logits_BV]
    for step in range(64):
        steps.append(decode_one(model, cache, torch.stack([ids_T[-64 + step] for ids_T in texts])))
    for row, expected_SV in enumerate(expected):
        torch.testing.assert_close(torch.stack(steps)[:, row], expected_SV, **EXACT)


def test_written_in_its_family_and_read_by_its_own_library_nothing_has_changed(reference, tmp_path):
    theirs, folder = reference
    config, model = config_of(folder), read(folder)
    write_decoder(tmp_path, config, model.decoder.state_dict(), {"eos_token_id": 2})
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert config_of(tmp_path) == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids_BT = random_ids(2, LENGTH)
    assert torch.equal(theirs_of(again, ids_BT), theirs_of(theirs, ids_BT))


def test_saved_as_a_plain_state_dict_and_read_again_nothing_has_changed(references, tmp_path):
    decoder = read(references("gemma2")[1]).decoder
    weights = {name: weight for name, weight in decoder.state_dict().items() if name != "head.weight"}
    save_weights(weights, tmp_path)
    with torch.device("meta"):
        again = Decoder(DecoderConfig(**decoder.config.model_dump()), VOCAB)
    loaded = load_weights(tmp_path)
    again.load_state_dict(loaded | {"head.weight": loaded["embedding.weight"]}, assign=True)
    ids_BT = random_ids(2, LENGTH)
    assert torch.equal(logits_of(again, ids_BT), logits_of(decoder, ids_BT))


@pytest.mark.parametrize("case", WINDOWED)
@torch.no_grad()
def test_packed_and_branched_tokens_see_what_they_see_alone_within_a_window(case, references):
    model = read(references(case)[1])
    first, second, context = (random_ids(length).tolist() for length in (23, 17, 15))
    branches = [random_ids(9).tolist() for _ in range(2)]
    places = [*range(15), *range(15, 24), *range(15, 24)]
    ids = [*context, *branches[0], *branches[1]]
    branched = Rendered(ids, list(ids), [0] * 15 + [1] * 9 + [2] * 9, places, [], "branched", "")
    packed = collate_packed([[prompt_of(first), branched, prompt_of(second)]])
    logits_TV = model.decoder.logits(model.hidden(packed))[0]

    def alone(ids: list[int]) -> Tensor:
        return model.decoder.logits(model.hidden(collate([prompt_of(ids)])))[0]

    torch.testing.assert_close(logits_TV[:23], alone(first), **EXACT)
    torch.testing.assert_close(logits_TV[-17:], alone(second), **EXACT)
    torch.testing.assert_close(logits_TV[23 : 23 + 24], alone([*context, *branches[0]]), **EXACT)
    torch.testing.assert_close(logits_TV[23 + 24 : -17], alone([*context, *branches[1]])[15:], **EXACT)


@pytest.mark.parametrize("case", WINDOWED)
@torch.no_grad()
def test_wanted_tokens_get_what_a_full_pass_gives_within_a_window(case, references):
    decoder = read(references(case)[1]).decoder
    x_BTD, output_positions_BW = decoder.embed(random_ids(2, LENGTH)), torch.tensor([[3, 39, 20], [0, 11, 38]])
    positions_BT = torch.arange(LENGTH).expand(2, -1)
    whole_BTD = decoder(x_BTD, positions_BT)
    expected_BWD = torch.stack([row[at] for row, at in zip(whole_BTD, output_positions_BW, strict=True)])
    torch.testing.assert_close(
        decoder(x_BTD, positions_BT, output_positions_BW=output_positions_BW), expected_BWD, **EXACT
    )


@torch.no_grad()
def test_a_window_hides_what_lies_before_it_and_nothing_else(references):
    decoder = read(references("mistral")[1]).decoder
    decoder.blocks = decoder.blocks[:1]
    ids_BT = random_ids(1, LENGTH)
    changed_BT = ids_BT.clone()
    changed_BT[:, 10] = 1 + changed_BT[:, 10] % 50
    moved_T = (logits_of(decoder, ids_BT) != logits_of(decoder, changed_BT)).any(dim=-1)[0]
    assert moved_T.nonzero().flatten().tolist() == list(range(10, 17))


def test_a_masked_objective_sees_as_far_ahead_as_back(references):
    decoder = read(references("mistral")[1]).decoder
    decoder.blocks = decoder.blocks[:1]
    x_BTD, positions_BT = decoder.embed(random_ids(1, LENGTH)), torch.arange(LENGTH)[None]
    x_BTD = x_BTD.detach().requires_grad_()
    attention_mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    decoder(x_BTD, positions_BT, attention_mask)[0, 20].sum().backward()
    assert x_BTD.grad.any(dim=-1)[0].nonzero().flatten().tolist() == list(range(14, 27))


def test_the_loss_of_a_training_step_is_that_of_its_own_library_with_capped_logits(references):
    theirs, folder = references("gemma2")
    ids = random_ids(LENGTH)
    model = read(folder)
    ours = model(collate([prompt_of(ids.tolist())], "causal"))
    loss = theirs(ids[None], labels=ids[None]).loss * (LENGTH - 1)
    torch.testing.assert_close(ours.total, loss, **EXACT)
    ours.total.backward()
    theirs.zero_grad()
    loss.backward()
    torch.testing.assert_close(
        model.decoder.blocks[0].attention.query.weight.grad,
        theirs.model.layers[0].self_attn.q_proj.weight.grad,
        atol=1e-4,
        rtol=1e-4,
    )


def test_in_bf16_a_decoder_is_as_near_to_float32_as_its_own_library(reference):
    theirs, folder = reference
    ids_BT = random_ids(2, LENGTH)
    exact_BTV = theirs_of(theirs, ids_BT)
    library = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    rounded_BTV = theirs_of(library.eval(), ids_BT)
    ours_BTV = logits_of(read(folder, torch.bfloat16).decoder, ids_BT)
    scale = exact_BTV.std()
    theirs_off, ours_off = ((x_BTV - exact_BTV).square().mean().sqrt() / scale for x_BTV in (rounded_BTV, ours_BTV))
    assert ours_off < 1.2 * theirs_off + 1e-4


def test_old_and_new_spellings_of_rotary_positions_are_the_same(references):
    described = read_json(references("llama 3")[1] / "config.json")
    assert "rope_theta" not in described
    new = fields_of(described, "new")
    stated = described.pop("rope_parameters")
    theta = stated.pop("rope_theta")
    assert fields_of({**described, "rope_theta": theta, "rope_scaling": stated}, "old") == new
    older = {("type" if key == "rope_type" else key): value for key, value in stated.items()}
    assert fields_of({**described, "rope_theta": theta, "rope_scaling": older}, "older") == new
    assert new["rope_scaling"] == {"kind": "llama3", "factor": 8.0, "original_context": 24, "slow": 1.0, "fast": 4.0}


def test_a_sparse_config_means_what_the_family_takes_for_granted():
    llama = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields = fields_of({**llama, "intermediate_size": 96, "max_position_embeddings": 2048}, "llama 1")
    assert (fields["kv_heads"], fields["rope_theta"], fields["tied"], fields["window"]) == (None, 10_000.0, False, None)


def test_a_decoder_within_a_multimodal_checkpoint_is_read_from_its_text_config(references, tmp_path):
    theirs, folder = references("qwen2")
    weights = load_file(folder / "model.safetensors")
    described = {"model_type": "llava", "text_config": read_json(folder / "config.json")}
    ids_BT = random_ids(1, LENGTH)
    for number, (old, new) in enumerate([("model.", "language_model.model."), ("model.", "model.language_model.")]):
        inside = {name.replace(old, new, 1): weight for name, weight in weights.items()}
        place = tmp_path / str(number)
        place.mkdir()
        save_file({**inside, "vision_tower.weight": torch.ones(3)}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(described))
        torch.testing.assert_close(logits_of(read(place).decoder, ids_BT), theirs_of(theirs, ids_BT), **EXACT)


def test_gpt2_as_first_published_without_a_prefix_and_with_its_masks_is_read(references, tmp_path):
    theirs, folder = references("gpt2")
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(3)}
    save_file({**bare, **masks}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ids_BT = random_ids(1, LENGTH)
    torch.testing.assert_close(logits_of(read(tmp_path).decoder, ids_BT), theirs_of(theirs, ids_BT), **EXACT)


def test_names_of_weights_are_those_that_other_tools_know(references):
    assert their_name("blocks.1.mlp.gate.weight", family_rules(config_of(references("gemma2")[1]))) == (
        "model.layers.1.mlp.gate_proj.weight"
    )
    inside = family_rules(config_of(references("qwen2")[1]), "language_model.model.", "language_model.lm_head")
    assert their_name("head.weight", inside) == "language_model.lm_head.weight"
    assert their_name("blocks.2.attention.key.bias", inside) == "language_model.model.layers.2.self_attn.k_proj.bias"


def test_a_decoder_of_our_own_is_written_as_the_family_it_is_like(tmp_path):
    config = DecoderConfig(width=32, depth=2, heads=4, kv_heads=2, context=64, zero_init=False, qk_norm=True)
    decoder = Decoder(config, VOCAB).eval()
    write_decoder(tmp_path, config, decoder.state_dict())
    assert read_json(tmp_path / "config.json")["model_type"] == "qwen3"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids_BT = random_ids(1, LENGTH)
    torch.testing.assert_close(logits_of(decoder, ids_BT), theirs_of(theirs, ids_BT), **EXACT)
    odd = DecoderConfig(width=32, depth=2, heads=4, token_shift=True)
    with pytest.raises(UserError, match="has no place for token_shift=True"):
        write_decoder(tmp_path, odd, Decoder(odd, VOCAB).state_dict())


@torch.no_grad()
def test_prefill_of_a_prompt_longer_than_the_window_equals_a_full_pass(references):
    model = read(references("gemma2")[1])
    prompts = [prompt_of(random_ids(length).tolist()) for length in (31, 4)]
    _, logits_BV = prefill(model, prompts, room=1)
    for row, prompt in enumerate(prompts):
        alone_TV = model.decoder.logits(model.hidden(collate([prompt])))[0]
        torch.testing.assert_close(logits_BV[row], alone_TV[-1], **EXACT)


PUBLISHED = {  # what model cards' config.json say that differs in kind from what transformers writes today
    "llama": (
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "pretraining_tp": 1, "mlp_bias": False},
        {"rope_theta": 500000.0, "bias": False, "window": None,
         "rope_scaling": {"kind": "llama3", "factor": 32.0, "original_context": 8192, "slow": 1.0, "fast": 4.0}},
    ),
    "qwen2": (
        {"rope_theta": 1000000.0, "sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False},
        {"rope_theta": 1000000.0, "bias": "qkv", "window": None, "global_layers": []},
    ),
    "mistral": ({"sliding_window": None, "rope_theta": 1000000.0}, {"window": None, "bias": False}),
    "smollm3": (
        {"no_rope_layers": [1, 1, 1, 0], "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None},
        {"unrotated_layers": [3], "rope_theta": 5000000.0, "tied": True, "window": None},
    ),
    "gemma2": (
        {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "head_dim": 256, "sliding_window": 4096},
        {"mlp": "geglu", "tied": True, "window": 4096, "global_layers": [1, 3], "attention_scale_width": 256.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_settings_as_published_before_transformers_5_mean_what_they_meant(kind):
    settings, expected = PUBLISHED[kind]
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"intermediate_size": 96, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    fields = fields_of({"model_type": kind, **sizes, **rest, **settings}, kind)
    assert {name: fields[name] for name in expected} == expected

import json
import shutil

import peft
import pytest
import torch
import transformers
import yaml

import mmgpt
from mmgpt.checkpoints.pretrained_parts import load_parts, resize_embedding
from mmgpt.config import UserError
from mmgpt.files import load_weights, save_weights
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import new_bundle
from mmgpt.training.loop import train
from mmgpt.training.recipe import load_recipe
from mmgpt.training.run_tokenizer import new_tokens

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT = {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    """A tiny random Llama as its own library saves it, with the tokenizer of these tests less its `<|image|>`."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=400, num_key_value_heads=2, max_position_embeddings=320, **SIZES)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|image|>", "<|picture|>"))
    return folder


@pytest.fixture
def write_recipe(tmp_path, llama):
    def write(**changes):
        tree = {
            "name": "tiny",
            "model": {
                "decoder": {"pretrained": str(llama)},
                "encoders": {"image": VIT},
                "adapters": {"image": {"kind": "fold"}},
            },
            "stages": [
                {
                    "name": "align",
                    "train": ["adapters.*"],
                    "data": [{"reader": "world", "name": "scenes"}],
                    "steps": 2,
                    "batch_size": 2,
                }
            ],
            **changes,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file

    return write


def test_a_run_begins_with_the_checkpoints_weights_and_trains_the_adapter_alone(write_recipe, llama, tmp_path):
    records: list[dict] = []
    train(write_recipe(), out=tmp_path / "run", on_record=records.append)
    told = next(record for record in records if record["event"] == "pretrained")
    assert told["parts"]["decoder"]["from"] == str(llama)
    assert told["new_tokens"] == 1
    theirs, ours = load_weights(llama), load_weights(tmp_path / "run" / "final")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        part = {"self_attn.q_proj": "attention.query", "mlp.down_proj": "mlp.down"}[name]
        assert torch.equal(ours[f"decoder.blocks.1.{part}.weight"], theirs[f"model.layers.1.{name}.weight"])
    recipe = load_recipe(write_recipe())
    assert recipe.model.decoder.family == "llama"
    assert recipe.model.decoder.context == 320
    assert torch.equal(ours["decoder.embedding.weight"][:400], theirs["model.embed_tokens.weight"])


def test_the_rows_of_new_tokens_are_the_mean_and_the_embedding_grows_to_a_multiple_of_64(write_recipe, llama, tmp_path):
    train(write_recipe(), out=tmp_path / "run")
    model = mmgpt.load(tmp_path / "run")
    assert model.tokenizer.special("<|image|>") == 400
    assert model.bundle.new_tokens == (400,)
    assert model.model.vocab_size == 448
    theirs = load_weights(llama)
    for name, ours in (("embed_tokens", model.model.decoder.embedding), ("lm_head", model.model.decoder.head)):
        key = f"model.{name}.weight" if name == "embed_tokens" else f"{name}.weight"
        mean = theirs[key].mean(dim=0)
        assert torch.allclose(ours.weight[400:], mean.expand(48, -1), atol=1e-6)
    assert model.ask("Hello").tokens


def test_growing_keeps_what_is_there_and_counts_no_new_row_into_the_mean():
    weight = torch.randn(6, 4)
    larger = resize_embedding(weight, 8, [5])
    assert torch.equal(larger[:5], weight[:5])
    assert torch.allclose(larger[5:], weight[:5].mean(dim=0).expand(3, -1))
    assert resize_embedding(weight, 6, []) is weight


def test_a_stopped_run_goes_on_without_reading_the_checkpoints_weights_again(write_recipe, tmp_path, llama):
    stage = {"data": [{"reader": "world", "name": "scenes"}], "batch_size": 2, "save_every": 1, "keep_last": 9}
    stages = [{"name": "align", "steps": 3, **stage}]
    train(write_recipe(stages=stages), out=tmp_path / "straight")
    straight = load_weights(tmp_path / "straight" / "final")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "straight" / "align" / f"checkpoint-{step}")
    shutil.rmtree(tmp_path / "straight" / "final")
    train(write_recipe(stages=stages), out=tmp_path / "straight")
    resumed = load_weights(tmp_path / "straight" / "final")
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    assert not torch.equal(straight["decoder.norm.weight"], load_weights(llama)["model.norm.weight"])


def test_a_recipe_that_says_otherwise_than_the_checkpoint_is_refused(write_recipe, llama):
    decoder = {"pretrained": str(llama), "width": 64}
    model = {"decoder": decoder, "encoders": {}, "adapters": {}}
    with pytest.raises(UserError, match=r"model.decoder.width=64 disagrees with .*, where it is 32; leave it out"):
        load_recipe(write_recipe(model=model))
    agreed = load_recipe(write_recipe(model={**model, "decoder": {**decoder, "width": 32, "context": 128}}))
    assert agreed.model.decoder.context == 128


def test_what_a_resolved_config_says_agrees_with_itself(write_recipe, tmp_path):
    train(write_recipe(), out=tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "config.yaml") == load_recipe(write_recipe())


def test_an_encoder_that_begins_from_nothing_known_is_refused(write_recipe, llama):
    model = {"decoder": {"pretrained": str(llama)}, "adapters": {"image": {"kind": "fold"}}}
    with pytest.raises(UserError, match=r"model.encoders.image.kind=vit does not begin from a checkpoint"):
        load_recipe(write_recipe(model={**model, "encoders": {"image": {**VIT, "pretrained": str(llama)}}}))


def test_a_tokenizer_larger_than_the_embedding_or_given_twice_is_refused(write_recipe, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "copy")
    Tokenizer.load(copy).extended(["<a>", "<b>"]).save(copy)
    model = {"decoder": {"pretrained": str(copy)}}
    with pytest.raises(UserError, match=r"its tokenizer has 402 tokens, its embedding 400 rows; take the tokenizer"):
        train(write_recipe(model=model), out=tmp_path / "run")
    given = {"path": str(llama / "tokenizer.json")}
    with pytest.raises(UserError, match=r"brings one of its own, whose ids .*; leave it out"):
        train(write_recipe(tokenizer=given), out=tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


def test_the_checkpoints_chat_template_is_the_recipes_unless_it_names_one(write_recipe, llama, tmp_path):
    assert load_recipe(write_recipe()).template is None
    copy = shutil.copytree(llama, tmp_path / "copy")
    program = "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": program}))
    model = {"decoder": {"pretrained": str(copy)}}
    assert load_recipe(write_recipe(model=model)).system == "Be kind."
    assert load_recipe(write_recipe(model=model, template="plain", system=None)).template == "plain"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": "[INST]"}))
    with pytest.raises(UserError, match="name the one to use in `template`"):
        load_recipe(write_recipe(model=model))


def test_nothing_is_loaded_where_a_weight_is_wrong(write_recipe, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "copy")
    recipe = load_recipe(write_recipe(model={"decoder": {"pretrained": str(copy)}}))
    weights = load_weights(copy)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_weights(weights, copy)
    bundle = new_bundle(recipe.model, Tokenizer.load(copy), "plain")
    before = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
    with pytest.raises(UserError, match=r"1 missing: model.layers.1.mlp.up_proj.weight"):
        load_parts(bundle.model)
    assert all(torch.equal(before[name], weight) for name, weight in bundle.model.state_dict().items())


def test_a_language_model_opens_by_itself_and_answers_as_its_own_library(llama):
    model = mmgpt.load(llama, device="cpu")
    reference = transformers.LlamaForCausalLM.from_pretrained(llama)
    head, tail = model.tokenizer.encode("How many"), model.tokenizer.encode(" circles")
    logits = reference(torch.tensor([[*head, *tail]])).logits[0].log_softmax(dim=-1)
    expected = [logits[len(head) + at - 1, token].item() for at, token in enumerate(tail)]
    assert model.score("How many", " circles") == pytest.approx(expected, abs=1e-5)
    assert mmgpt.load(llama, dtype="bfloat16").model.decoder.embedding.weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"this model has no image encoder"):
        model.ask(mmgpt.Image("a.png"), "What?")
    with pytest.raises(UserError, match=r"dtype bfloat: is not known; did you mean bfloat16"):
        mmgpt.load(llama, dtype="bfloat")


def test_new_tokens_are_those_of_the_run_that_were_not_given(write_recipe, llama):
    recipe = load_recipe(write_recipe())
    given = Tokenizer.load(llama)
    assert new_tokens(recipe, given.extended(["<x>", "<y>"])) == (400, 401)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_learned_here_is_loaded_by_peft_on_the_transformers_model(dora, write_recipe, llama, tmp_path):
    stage = {
        "name": "tune",
        "train": [],
        "lora": {"targets": ["decoder.blocks.*.attention", "decoder.blocks.1.mlp.down"], "rank": 2, "dora": dora},
        "data": [{"reader": "world", "name": "stories"}],
        "steps": 3,
        "batch_size": 2,
    }
    file = write_recipe(model={"decoder": {"pretrained": str(llama)}}, stages=[stage], template="plain")
    train(file, out=tmp_path / "run")
    tuned = mmgpt.load(tmp_path / "run", device="cpu").model
    ids = torch.randint(400, (2, 30))
    ours = tuned.decoder.logits(tuned.decoder(tuned.decoder.embed(ids), torch.arange(30).expand(2, -1)))
    base = transformers.LlamaForCausalLM.from_pretrained(llama)
    before = base(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "tune" / "adapter-llama").eval()
    torch.testing.assert_close(adapted(ids).logits, ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, ours, atol=1e-5, rtol=0)
    assert (ours - before).abs().max() > 1e-3

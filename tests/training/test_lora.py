import json
import re
import sys

import peft
import pytest
import torch
from resuming import Stopped, assert_same_weights, train_in_two
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmgpt.checkpoints.save_load import load_bundle
from mmgpt.config import UserError
from mmgpt.inputs.batch import collate
from mmgpt.run_log import read_log
from mmgpt.training import lora
from mmgpt.training.loop import train
from mmgpt.training.lora import LoraConfig, adapted, add_adapters, merge_adapters, merged, save_adapter, unmerged_state
from mmgpt.training.muon import Muon
from mmgpt.training.optim import freeze_except, make_optimizers
from mmgpt.training.recipe import StageConfig
from mmgpt.training.train_state import load_checkpoint, save_checkpoint

TARGETS = ["decoder.blocks.*.attention.*", "encoders.image"]
ATTENTION = ("query", "key", "value", "out")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_adapted(make_bundle):
    """A tiny model whose adapters have an effect."""

    def make(dora=False, targets=TARGETS, **decoder):
        bundle = make_bundle(**decoder)
        freeze_except(bundle.model, [])
        add_adapters(bundle.model, LoraConfig(targets=targets, rank=4, alpha=6, dora=dora))
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if ".lora_" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        bundle.model.eval()
        return bundle

    return make


@pytest.fixture
def logits_of(scenes):
    @torch.no_grad()
    def compute(bundle, model=None):
        batch = collate([bundle.renderer.render(scenes[0])])
        return bundle.model.decoder.logits((model or bundle.model).hidden(batch))

    return compute


def adapted_recipe(make_recipe, *stages, **options):
    """Stages of five steps that learn nothing but adapters, on a model without weights of zero."""
    tree = make_recipe().model_dump(mode="json")["model"]
    tree["decoder"] |= {"zero_init": False}
    base = {"train": [], "steps": 5, "save_every": 1, "learning_rate": 0.01, **options}
    return make_recipe(*({**base, **stage} for stage in stages or [{}]), model=tree)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_merged_gives_the_logits_of_unmerged(dora, bias, make_adapted, make_bundle, logits_of):
    bundle = make_adapted(dora, bias=bias)
    before = logits_of(bundle)
    assert (before - logits_of(make_bundle(bias=bias))).abs().max() > 0.1
    assert merge_adapters(bundle) < 1e-5
    torch.testing.assert_close(logits_of(bundle), before, atol=1e-5, rtol=0)
    assert bundle.model.state_dict().keys() == make_bundle(bias=bias).model.state_dict().keys()


def test_a_layer_with_an_adapter_is_the_layer_and_its_scaled_product(make_adapted):
    layer = adapted(make_adapted().model)["decoder.blocks.1.attention.key"]
    x = torch.randn(3, 32)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + 6 / 4 * product).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
def test_after_a_look_at_the_merged_model_it_is_what_it_was_bit_for_bit(dora, make_adapted, make_bundle, logits_of):
    bundle = make_adapted(dora)
    before, logits = {name: w.clone() for name, w in bundle.model.state_dict().items()}, logits_of(bundle)
    with merged(bundle.model):
        assert bundle.model.state_dict().keys() == make_bundle().model.state_dict().keys()
    after = bundle.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits_of(bundle), logits)


@pytest.mark.parametrize("dora", [False, True])
def test_a_checkpoint_opens_with_the_adapters_effect_and_goes_on_without_a_bits_loss(
    dora, make_adapted, logits_of, tmp_path
):
    bundle = make_adapted(dora)
    held = {name: weight.clone() for name, weight in unmerged_state(bundle.model).items()}
    save_checkpoint(bundle, [], tmp_path / "checkpoint", {})
    loaded = load_bundle(tmp_path / "checkpoint")
    torch.testing.assert_close(logits_of(loaded), logits_of(bundle), atol=1e-5, rtol=0)
    other = make_adapted(dora)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.normal_()
    load_checkpoint(other, [], tmp_path / "checkpoint")
    again = unmerged_state(other.model)
    assert all(torch.equal(held[name], again[name]) for name in held)
    assert torch.equal(logits_of(other), logits_of(bundle))


@pytest.mark.train
@pytest.mark.parametrize(
    "options",
    [
        {"lora": {"targets": TARGETS, "dropout": 0.2}, "optimizer": {"kind": "muon", "weight_decay": 0.1}},
        {"lora": {"targets": TARGETS, "dora": True}, "ema": 0.5, "layer_decay": 0.7},
        {"lora": {"targets": ["decoder.blocks"]}, "train": ["adapters.*"], "optimizer": {"kind": "sgd"}},
    ],
    ids=["muon-dropout", "dora-ema-layers", "sgd-besides"],
)
@pytest.mark.parametrize("stop", [("stage0", 2), ("stage1", 3)], ids=["first-stage", "second-stage"])
def test_stopped_and_resumed_is_straight_bit_for_bit(options, stop, make_recipe, tmp_path):
    recipe = adapted_recipe(make_recipe, {}, {}, **options)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(recipe, out=straight, device="cpu")
    train_in_two(stop[1], recipe, stop[0], out=broken)
    for file in ("final/model.safetensors", *(f"stage{n}/adapter/adapter_model.safetensors" for n in (0, 1))):
        assert_same_weights(straight, broken, file)


@pytest.mark.train
def test_a_run_that_stopped_between_its_last_step_and_the_merge_merges_when_it_goes_on(
    make_recipe, tmp_path, monkeypatch
):
    recipe = adapted_recipe(make_recipe, lora={"targets": TARGETS}, ema=0.5)
    train(recipe, out=tmp_path / "straight", device="cpu")

    def die(stage):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("mmgpt.training.stage.StageRun._finish", die)
        with pytest.raises(Stopped):
            train(recipe, out=tmp_path / "broken", device="cpu")
    assert not (tmp_path / "broken" / "stage0" / "adapter").exists()
    train(recipe, out=tmp_path / "broken", device="cpu")
    for file in ("final/model.safetensors", "stage0/adapter/adapter_model.safetensors"):
        assert_same_weights(tmp_path / "straight", tmp_path / "broken", file)


@pytest.mark.train
def test_a_stage_moves_what_it_adapts_and_no_other_weight(make_recipe, tmp_path):
    first = {"train": ["*"], "steps": 1}
    recipe = adapted_recipe(make_recipe, first, {"lora": {"targets": ["decoder.blocks.1.mlp.*"], "rank": 2}})
    train(recipe, out=tmp_path, device="cpu")
    before, after = (load_file(tmp_path / at / "model.safetensors") for at in ("stage0/checkpoint-1", "final"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"decoder.blocks.1.mlp.{name}.weight" for name in ("up", "gate", "down")}
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 2 for name in moved)
    started = next(r for r in read_log(tmp_path / "log.jsonl") if r["stage"] == "stage1")
    rows = {row["part"]: row["trained"] for row in started["parts"]}
    assert rows == {"decoder": 3 * 2 * (32 + 96), "encoders.image": 0, "adapters.image": 0}


@pytest.mark.train
@pytest.mark.parametrize("dora", [False, True])
def test_peft_puts_the_kept_adapter_on_the_model_it_was_learnt_on(dora, make_recipe, logits_of, tmp_path):
    recipe = adapted_recipe(
        make_recipe, {"train": ["*"], "steps": 1}, {"lora": {"targets": TARGETS, "dora": dora, "alpha": 40}}
    )
    train(recipe, out=tmp_path, device="cpu")
    base, final = load_bundle(tmp_path / "stage0" / "checkpoint-1"), load_bundle(tmp_path)
    plain = logits_of(base)
    model = peft.PeftModel.from_pretrained(base.model, tmp_path / "stage1" / "adapter").eval()
    expected = logits_of(final)
    assert (plain - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(final, model.base_model.model), expected, atol=1e-5, rtol=0)


def test_an_adapter_under_outside_names_loads_on_the_outside_model(make_adapted, tmp_path):
    bundle = make_adapted(targets=TARGETS)

    def outside_name(name):
        found = re.fullmatch(r"decoder\.blocks\.(\d+)\.attention\.(\w+)", name)
        projection = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        return f"model.layers.{found[1]}.self_attn.{projection[found[2]]}" if found else None

    save_adapter(bundle.model, tmp_path, outside_name)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], len(described["target_modules"])) == (4, 6, 8)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=40, intermediate_size=16, **sizes))
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    after = peft.PeftModel.from_pretrained(llama, tmp_path).merge_and_unload().state_dict()
    for name, layer in adapted(bundle.model).items():
        if outside_name(name) is not None:
            weight = f"{outside_name(name)}.weight"
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            torch.testing.assert_close(after.pop(weight), before[weight] + 6 / 4 * product, atol=1e-6, rtol=0)
    assert len(after) == len(before) - 8
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_muon_leaves_adapters_to_adamw(make_adapted):
    model = make_adapted(dora=True).model
    model.get_parameter("decoder.blocks.0.mlp.up.weight").requires_grad_(True)
    options = {"optimizer": {"kind": "muon", "weight_decay": 0.1}, "learning_rates": {"*.lora_B.*": 0.5}}
    stage = StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=10, **options)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        (type(o), g, names[p]) for o in make_optimizers(model, stage) for g in o.param_groups for p in g["params"]
    ]
    assert [name for kind, _, name in groups if kind is Muon] == ["decoder.blocks.0.mlp.up.weight"]
    rest = {name: group for kind, group, name in groups if kind is not Muon}
    assert rest.keys() == {name for name in names.values() if ".lora_" in name}
    assert all((group["peak"] == 0.5) == (".lora_B." in name) for name, group in rest.items())
    assert all((group["weight_decay"] == 0) == ("magnitude" in name) for name, group in rest.items())


@pytest.mark.parametrize(
    ("targets", "train_patterns", "told"),
    [
        (["decoder.blocks.*.atention.*"], [], r"'decoder.blocks.\*.atention.\*' matches no linear layer; did you mean"),
        (["decoder.norm"], [], r"target 'decoder.norm' matches no linear layer"),
        (["decoder.head"], [], r"decoder.head cannot be adapted; name it in train"),
        (["decoder.blocks.0.mlp"], ["decoder"], r"adapts decoder.blocks.0.mlp.up, .* whose weights train lets learn"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(targets, train_patterns, told, make_bundle):
    model = make_bundle().model
    freeze_except(model, train_patterns)
    with pytest.raises(UserError, match=told):
        add_adapters(model, LoraConfig(targets=targets))


def test_dora_on_weights_of_zero_is_refused_by_name(make_bundle):
    model = make_bundle(zero_init=True).model
    freeze_except(model, [])
    add_adapters(model, LoraConfig(targets=["decoder.blocks"], dora=True))
    with pytest.raises(
        UserError, match=r"length of a weight's rows, and decoder.blocks.0.attention.out, .* has rows of"
    ):
        lora.check_magnitudes(model)


@pytest.mark.train
def test_without_peft_a_run_stops_before_its_folder_is_made(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"lora needs peft; install it with pip install 'mmgpt\[train\]'"):
        train(adapted_recipe(make_recipe, lora={"targets": TARGETS}), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_merge_that_moves_the_logits_stops_the_run(make_adapted, monkeypatch):
    real_merge = lora._merge

    def merge_wrongly(model, layers):
        real_merge(model, layers)
        model.decoder.norm.weight.data *= 1.01

    monkeypatch.setattr(lora, "_merge", merge_wrongly)
    with pytest.raises(FloatingPointError, match=r"merging the adapters moved a logit by [\d.e-]+, more than"):
        merge_adapters(make_adapted())


def test_a_stage_in_which_nothing_would_learn_is_refused(make_recipe):
    with pytest.raises(UserError, match=r"train=\[\]: nothing would learn; name what trains, or give lora"):
        make_recipe({"train": []})

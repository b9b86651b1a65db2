import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mmgpt
from mmgpt.checkpoints.convert import convert, export
from mmgpt.checkpoints.golden import golden_logits
from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import UserError
from mmgpt.files import write_folder
from mmgpt.inputs.batch import collate
from mmgpt.model.quantize import (
    EXACT,
    GROUP,
    Quantization,
    QuantizedLinear,
    _product,
    quantize_model,
    quantized_layers,
)
from mmgpt.processor import has_int8_units
from mmgpt.training.loop import train

CPU = torch.device("cpu")

SCHEMES = ["int8", "int4", "int8-dynamic"]
# A processor with such units that is told to do without takes a kernel of oneDNN that saturates; we then take none.
HAS_UNITS = (True, False) if has_int8_units(CPU) or not torch.cpu._is_vnni_supported() else (False,)
EVERYWHERE = ["decoder.*", "encoders.*", "adapters.*"]


def layer_of(linear, scheme):
    layer = QuantizedLinear(linear, scheme)
    layer.fill(linear.weight)
    return layer


def spread(model):
    """Every weight of a model with real spread, so that no part is nothing."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)


@pytest.fixture
def folder(make_bundle, tmp_path):
    bundle = make_bundle(width=64, mlp="swiglu", ffn_width=128)
    spread(bundle.model)
    write_folder(tmp_path / "model", lambda draft: save_bundle(bundle, draft))
    return tmp_path / "model"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_weight_is_further_off_than_half_a_step(scheme):
    linear = nn.Linear(96, 48)
    linear.weight.data[3] = 0
    layer = layer_of(linear, scheme)
    rows = linear.weight.detach().unflatten(1, (-1, GROUP if scheme == "int4" else 96))
    span = rows.amax(2) - rows.amin(2) if scheme == "int4" else 2 * rows.abs().amax(2)
    step = span / (15 if scheme == "int4" else 254)
    # int4's scales and zeros are bfloat16, which moves a group's end by a share of its reach
    slack = 0.02 * rows.abs().amax(2) if scheme == "int4" else 1e-7
    off = (layer.weight - linear.weight).detach().abs().unflatten(1, (-1, rows.shape[2])).amax(2)
    assert (off <= step / 2 + slack).all()
    assert (layer.weight[3] == 0).all()


def test_int8_gives_the_product_with_the_rounded_weight_to_16_bits_of_its_inputs():
    layer, x = layer_of(nn.Linear(64, 33), "int8"), torch.randn(5, 7, 64)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=2e-4, rtol=0)


def test_int8_dynamic_rounds_its_inputs_to_8_bits():
    layer, x = layer_of(nn.Linear(64, 33), "int8-dynamic"), torch.randn(5, 64)
    scale = x.abs().amax(1, keepdim=True) / 127
    expected = nn.functional.linear((x / scale).round() * scale, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_int4_gives_the_product_with_the_rounded_weight_in_bfloat16():
    layer, x = layer_of(nn.Linear(64, 48), "int4"), torch.randn(5, 64)
    expected = nn.functional.linear(x.bfloat16().float(), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_alone_is_bitwise_the_row_among_others(scheme):
    layer, x = layer_of(nn.Linear(128, 64), scheme), torch.randn(70, 128)
    together = layer(x)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 14)):
        assert torch.equal(layer(x[rows]), together[rows])


@pytest.mark.parametrize("inputs", [64, EXACT - 1, EXACT, EXACT + 1, 3000])
def test_sums_are_exact_with_and_without_units_for_int8(inputs, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(-127, 128, (5, inputs), generator=generator)
    values = torch.randint(-127, 128, (16, inputs), generator=generator)
    digits[0], values[0] = 127, 127  # the largest sum there is
    expected = (digits @ values.T).float()
    for has_units in HAS_UNITS:
        monkeypatch.setattr("mmgpt.model.quantize.has_int8_units", lambda device, answer=has_units: answer)
        assert torch.equal(_product(digits.float(), values.to(torch.int8)), expected)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_a_layer_gives_the_same_with_and_without_units_for_int8(scheme, monkeypatch):
    layer, x = layer_of(nn.Linear(2000, 32), scheme), torch.randn(7, 2000)
    found = []
    for has_units in HAS_UNITS:
        monkeypatch.setattr("mmgpt.model.quantize.has_int8_units", lambda device, answer=has_units: answer)
        found.append(layer(x))
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_a_layer_is_one_graph_when_it_is_compiled(scheme):
    layer, x = layer_of(nn.Linear(64, 32), scheme), torch.randn(3, 64)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))


def test_int8_is_within_two_steps_of_torchaos():
    quantization = pytest.importorskip("torchao.quantization")
    linear = nn.Linear(64, 32, bias=False)
    ours, theirs = layer_of(linear, "int8"), nn.Sequential(linear)
    quantization.quantize_(theirs, quantization.Int8WeightOnlyConfig())
    torch.testing.assert_close(theirs[0].weight.scale.flatten(), ours.scales, rtol=0.01, atol=0)  # theirs: of 127.5
    torch.testing.assert_close(theirs[0].weight.dequantize(), ours.weight, rtol=0, atol=2 * float(ours.scales.max()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_folder_is_smaller_and_answers_as_the_model_quantised_in_memory(scheme, folder, tmp_path):
    out = convert(folder, tmp_path / "small", quantize=scheme)
    assert json.loads((out / "config.json").read_text())["quantization"]["scheme"] == scheme
    before, after = (load_file(one / "model.safetensors") for one in (folder, out))
    blocks = [sum(w.nbytes for name, w in one.items() if name.startswith("decoder.blocks.")) for one in (before, after)]
    assert blocks[1] < blocks[0] * (0.17 if scheme == "int4" else 0.27)
    opened, made = mmgpt.load(out, device="cpu", verify=True), mmgpt.load(folder, device="cpu", quantize=scheme)
    assert all(torch.equal(opened.model.state_dict()[name], w) for name, w in made.model.state_dict().items())
    picture = mmgpt.Image(torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy())
    replies = [one.ask([picture, "What?"], ["Why?"], max_new_tokens=6) for one in (opened, made)]
    assert [r.tokens for r in replies[0]] == [r.tokens for r in replies[1]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_stay_near_those_of_float32(scheme, folder):
    bundle = load_bundle(folder)
    messages = mmgpt.datasets.sample.parse_messages([{"role": "user", "content": "What is red?"}])
    before = golden_logits(bundle, messages)
    bundle.quantize(Quantization(scheme=scheme))
    gap = (golden_logits(bundle, messages) - before).abs().max() / before.abs().max()
    assert 0 < gap < (0.2 if scheme == "int4" else 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_encoders_adapters_and_the_output_layer_are_quantised_when_asked_for(scheme, make_bundle, tmp_path, scenes):
    bundle = make_bundle(width=64, tied=True)
    batch = collate([bundle.renderer.render(sample) for sample in scenes[:2]])
    with torch.no_grad():
        before = float(bundle.model(batch).total)
    names = [n for n in ("decoder.head", "decoder.blocks.*", "encoders.image.*", "adapters.*")]
    if scheme == "int4":
        names = names[1:3]  # 400 tokens and more need not be a multiple of 16
    bundle.quantize(Quantization(scheme=scheme, layers=names))
    assert any(name.startswith("encoders.image") for name in quantized_layers(bundle.model))
    with torch.no_grad():
        after = float(bundle.model(batch).total)
    assert after == pytest.approx(before, rel=0.05)
    assert after != before
    export(bundle, tmp_path / "all", "mmgpt")
    with torch.no_grad():
        assert load_bundle(tmp_path / "all").model(batch).total.item() == after
        load_bundle(tmp_path / "all", dtype=torch.bfloat16).model(batch)


def test_weights_of_bfloat16_are_held_in_float32_where_there_are_no_units_for_them(folder, tmp_path, monkeypatch):
    convert(folder, tmp_path / "half", dtype="bfloat16", quantize="int4")
    for has_units, dtype in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr("mmgpt.generation.assistant.has_bf16_units", lambda device, answer=has_units: answer)
        model = mmgpt.load(tmp_path / "half").model
        stored = load_bundle(tmp_path / "half").model.state_dict()
        assert model.decoder.embedding.weight.dtype == dtype
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, stored[name])  # as numbers; those of few bits keep their type too
            assert weight.dtype == (stored[name].dtype if name.endswith((".values", ".scales", ".zeros")) else dtype)
        assert model.decoder.blocks[0].mlp.up.weight.dtype == dtype


def test_a_quantised_model_in_bfloat16_keeps_its_numbers(folder, tmp_path):
    out = convert(folder, tmp_path / "small", quantize="int8")
    state = load_bundle(out, dtype=torch.bfloat16).model.state_dict()
    assert state["decoder.embedding.weight"].dtype == torch.bfloat16
    assert state["decoder.blocks.0.mlp.up.scales"].dtype == torch.float32
    assert state["decoder.blocks.0.mlp.up.values"].dtype == torch.int8


def test_a_quantised_folder_is_not_quantised_again_exported_or_trained(folder, tmp_path, make_recipe):
    out = convert(folder, tmp_path / "small", quantize="int8")
    with pytest.raises(UserError, match="quantize int4: the weights are int8 already"):
        convert(out, tmp_path / "again", quantize="int4")
    with pytest.raises(UserError, match="hf-lm has no place for weights in int8; this model can be mmgpt"):
        convert(out, tmp_path / "hf", to="hf-lm")
    with pytest.raises(UserError, match="holds weights in int8, which are for answering; start from the model"):
        train(make_recipe(init_from=str(out)), out=tmp_path / "run", device="cpu")


def test_layers_without_gradients_say_so():
    layer = layer_of(nn.Linear(32, 32), "int8")
    with pytest.raises(UserError, match="int8 layers give no gradients"):
        layer(torch.randn(1, 32, requires_grad=True))


def damage(out, change):
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors")


SCALES = "decoder.blocks.0.mlp.up.scales"
VALUES = "decoder.blocks.0.mlp.up.values"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop(SCALES), f"1 missing: {SCALES}"),
        (lambda w: w.update({VALUES: w[VALUES].float()}), f"{VALUES} float32 instead of int8"),
        (lambda w: w.update({VALUES: w[VALUES][:, 1:].clone()}), "1 of another shape"),
        (lambda w: w.update({SCALES: w[SCALES] * 3}), "golden.json's logits are off"),
    ],
    ids=["missing", "type", "shape", "numbers"],
)
def test_a_damaged_quantised_folder_is_an_error(change, told, folder, tmp_path):
    out = convert(folder, tmp_path / "small", quantize="int8")
    damage(out, change)
    with pytest.raises(UserError, match=told):
        load_bundle(out, verify=True)


def test_a_folder_whose_scheme_is_not_known_is_an_error(folder, tmp_path):
    out = convert(folder, tmp_path / "small", quantize="int8")
    described = json.loads((out / "config.json").read_text())
    described["quantization"]["scheme"] = "int3"
    (out / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="quantization: scheme='int3'"):
        load_bundle(out)


def test_what_cannot_be_quantised_is_refused_by_name(folder, make_bundle, tmp_path):
    with pytest.raises(UserError, match="quantize in8: is not known; did you mean int8"):
        mmgpt.load(folder, device="cpu", quantize="in8")
    with pytest.raises(UserError, match=r"matches no linear layer; did you mean decoder\.blocks\.\*\.mlp"):
        convert(folder, tmp_path / "out", quantize="int8", layers=["decoder.block.*.mlp"])
    with pytest.raises(UserError, match="matches no linear layer"):
        convert(folder, tmp_path / "out", quantize="int8", layers=["decoder.embedding"])
    with pytest.raises(UserError, match=r"do not divide decoder\.blocks\.0\.attention\.query \(40 to 40\)"):
        make_bundle(width=40).quantize(Quantization(scheme="int4"))
    with pytest.raises(UserError, match="quantize int8-dynamic: runs on a cpu, not on cuda"):
        load_bundle(convert(folder, tmp_path / "small", quantize="int8-dynamic"), "cuda")


def test_the_command_line_writes_a_quantised_folder(folder, tmp_path, mmgpt_says):
    code, said, _ = mmgpt_says(
        "convert", folder, tmp_path / "small", "--quantize", "int4", "--layers", "decoder.blocks.*.mlp"
    )
    assert code == 0
    assert str(tmp_path / "small") in said
    layers = [type(m) for m in load_bundle(tmp_path / "small").model.modules()]
    assert layers.count(QuantizedLinear) == 6


def test_quantising_replaces_a_layer_at_a_time():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    quantize_model(model, Quantization(scheme="int8", layers=["*"]))
    assert [type(one) for one in model] == [QuantizedLinear, nn.ReLU, QuantizedLinear]
    assert not list(model.parameters())

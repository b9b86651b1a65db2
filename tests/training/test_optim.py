import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, AdamW

from mmgpt.config import UserError
from mmgpt.training.muon import Muon
from mmgpt.training.optim import freeze_except, layerwise_lr_decay, lr_schedule, make_optimizers, set_learning_rates
from mmgpt.training.recipe import ScheduleConfig, StageConfig


def stage(**options) -> StageConfig:
    return StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=10, **options)


def groups_by_name(model, optimizers):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (type(o), group) for o in optimizers for group in o.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("pattern", "learning"),
    [
        ("decoder", "decoder."),
        ("encoders.*", "encoders."),
        ("adapters.image", "adapters.image."),
        ("decoder.blocks.0", "decoder.blocks.0."),
        ("*", ""),
    ],
)
def test_exactly_what_a_glob_names_learns(pattern, learning, make_bundle):
    model = make_bundle().model
    freeze_except(model, [pattern])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith(learning)
    }


def test_a_glob_that_matches_nothing_is_refused_with_the_nearest_part(make_bundle):
    model = make_bundle().model
    with pytest.raises(UserError, match=r"pattern 'decodr' matches no parameter; did you mean decoder\?"):
        freeze_except(model, ["*", "decodr"])
    with pytest.raises(UserError, match=r"pattern 'encoders.imag' matches no parameter; did you mean encoders.image\?"):
        make_optimizers(model, stage(learning_rates={"encoders.imag": 1.0}))


@pytest.mark.parametrize(("kind", "cls"), [("adamw", AdamW), ("sgd", SGD)])
def test_every_learning_parameter_is_in_one_group_and_no_frozen_one(kind, cls, make_bundle):
    model = make_bundle(tied=True).model
    freeze_except(model, ["decoder", "adapters.*"])
    optimizers = make_optimizers(model, stage(optimizer={"kind": kind}))
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in model.parameters() if p.requires_grad}
    assert {type(o) for o in optimizers} == {cls}


@pytest.mark.parametrize("convolutions", [False, True])
def test_muon_takes_the_matrices_inside_and_adamw_the_rest(convolutions, make_bundle):
    model = make_bundle(image={"stem": "conv"}).model
    options = {"kind": "muon", "muon_convolutions": convolutions}
    kinds = {
        name: cls for name, (cls, _) in groups_by_name(model, make_optimizers(model, stage(optimizer=options))).items()
    }
    for name, parameter in model.named_parameters():
        is_outer = name in ("decoder.embedding.weight", "decoder.head.weight") or name.endswith("pos_embed")
        is_inner = parameter.ndim == 2 or (convolutions and parameter.ndim == 4)
        assert kinds[name] is (Muon if is_inner and not is_outer else AdamW), name
    assert any(parameter.ndim == 4 for parameter in model.parameters())


def test_the_last_glob_that_names_a_parameter_sets_its_rate(make_bundle):
    model = make_bundle().model
    rates = {"encoders.*": 1e-4, "decoder": 5e-3, "decoder.blocks.1": 2e-3}
    groups = groups_by_name(model, make_optimizers(model, stage(learning_rate=0.01, learning_rates=rates)))
    for name, (_, group) in groups.items():
        expected = 0.01 if name.startswith("adapters.") else 1e-4 if name.startswith("encoders.") else 5e-3
        expected = 2e-3 if name.startswith("decoder.blocks.1.") else expected
        assert group["peak"] == pytest.approx(expected), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_decay_from_each_block_to_the_one_below(kind, make_bundle):
    model = make_bundle(image={"depth": 3}, audio={"kind": "linear"}, conformer={"depth": 2}).model
    options = {"learning_rate": 0.01, "learning_rates": {"encoders.image": 0.02}, "optimizer": {"kind": kind}}
    groups = groups_by_name(model, make_optimizers(model, stage(**options, layer_decay=0.5)))
    depths = {"decoder": 2, "encoders.image.vit": 3, "encoders.audio": 2}
    above = {
        "decoder.norm.weight",
        "decoder.head.weight",
        "encoders.image.vit.norm.weight",
        "encoders.image.vit.norm.bias",
    }
    seen = set()
    for name, (cls, group) in groups.items():
        part = next((part for part in depths if name.startswith(f"{part}.")), None)
        place = name.removeprefix(f"{part}.")
        below_top = depths[part] + 1 if part else 0  # as of embeddings and stems
        if place.startswith("blocks."):
            below_top = depths[part] - int(place.split(".")[1])
        below_top = 0 if name in above else below_top
        full = {"encoders.image.vit": 2.0}.get(part, 1.0) * (0.02 if cls is Muon else 0.01)
        assert group["peak"] == pytest.approx(full * 0.5**below_top), name
        seen.add((part, below_top))
    assert above <= groups.keys()
    assert seen == {
        (None, 0),
        *(("decoder", n) for n in range(4)),
        *(("encoders.image.vit", n) for n in range(5)),
        *(("encoders.audio", n) for n in (1, 2, 3)),
    }


def test_the_blocks_of_several_stages_are_one_stack():
    part = "encoders.image.swin"
    names = ["patch_embed.w", "layers_0.blocks.0.w", "down.w", "layers_1.blocks.0.w", "layers_1.blocks.1.w", "norm.w"]
    shares = layerwise_lr_decay(["adapters.image.layers.0.w", *(f"{part}.{name}" for name in names)], 0.5)
    assert shares == dict(
        zip((f"{part}.{name}" for name in names), (1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 2, 1), strict=True)
    )


def test_a_part_without_blocks_learns_at_the_full_rate():
    assert layerwise_lr_decay(["encoders.image.conv.w", "encoders.image.norm.w"], 0.5) == {
        "encoders.image.conv.w": 1.0,
        "encoders.image.norm.w": 1.0,
    }


def test_a_rate_of_its_own_scales_muons_rate_by_the_same_factor(make_bundle):
    model = make_bundle().model
    options = {"optimizer": {"kind": "muon", "muon_learning_rate": 0.04}, "learning_rate": 0.01}
    groups = groups_by_name(model, make_optimizers(model, stage(**options, learning_rates={"adapters.*": 0.005})))
    assert groups["adapters.image.project.0.weight"][1]["peak"] == pytest.approx(0.02)
    assert groups["decoder.blocks.0.mlp.up.weight"][1]["peak"] == pytest.approx(0.04)
    assert groups["adapters.image.project.0.bias"][1]["peak"] == pytest.approx(0.005)


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_only_inner_matrices_decay(kind, make_bundle):
    model = make_bundle(bias=True).model
    optimizers = make_optimizers(model, stage(optimizer={"kind": kind, "weight_decay": 0.1}))
    for name, (_, group) in groups_by_name(model, optimizers).items():
        is_matrix = model.get_parameter(name).ndim == 2 and "embed" not in name and "head" not in name
        assert group["weight_decay"] == (0.1 if is_matrix else 0.0), name


def test_a_step_of_adamw_is_the_closed_form_of_its_first_step(make_bundle):
    model = make_bundle().model
    optimizers = make_optimizers(model, stage(learning_rate=0.01, optimizer={"weight_decay": 0.1}))
    set_learning_rates(optimizers, 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name in ("decoder.blocks.0.mlp.up.weight", "decoder.embedding.weight"):
        decay = 0.1 if "mlp" in name else 0.0
        expected = before[name] * (1 - 0.005 * decay) - 0.005 * model.get_parameter(name).grad.sign()
        torch.testing.assert_close(model.get_parameter(name).detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 50: 1.0, 99: 1.0}),
        ("linear", {0: 0.25, 3: 1.0, 39: 1.0, 40: 1.0, 70: 0.1 + 0.9 * 0.5, 99: 0.1 + 0.9 / 60, 100: 0.1}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 52: 0.55, 28: 0.1 + 0.45 * (1 + math.sqrt(0.5)), 100: 0.1}),
    ],
)
def test_schedules_have_their_closed_form_values(kind, expected):
    share = lr_schedule(ScheduleConfig(kind=kind, warmup=4, decay=0.6, floor=0.1), 100)
    assert {step: share(step) for step in expected} == pytest.approx(expected)


@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 30),
    decay=st.floats(0, 1),
    floor=st.floats(0, 1),
    steps=st.integers(1, 60),
)
def test_a_schedule_stays_between_nothing_and_the_peak(kind, warmup, decay, floor, steps):
    share = lr_schedule(ScheduleConfig(kind=kind, warmup=warmup, decay=decay, floor=floor), steps)
    shares = [share(step) for step in range(steps)]
    assert all(0 < one <= 1 + 1e-9 or (one == 0 and floor == 0) for one in shares)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)


def test_set_rates_sets_every_group_to_a_share_of_its_own_peak(make_bundle):
    model = make_bundle().model
    optimizers = make_optimizers(model, stage(optimizer={"kind": "muon"}, learning_rates={"encoders.*": 1e-4}))
    set_learning_rates(optimizers, 0.3)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert len({group["peak"] for group in groups}) > 2
    assert all(group["lr"] == pytest.approx(0.3 * group["peak"]) for group in groups)

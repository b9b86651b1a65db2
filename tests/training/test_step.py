import itertools
import json
import math
from dataclasses import replace

import PIL.Image
import pytest
import torch

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.optim import freeze_except, make_optimizers
from mmgpt.training.recipe import OptimizerConfig, StageConfig
from mmgpt.training.step import train_step

ADAPTERS = [
    {"kind": "linear"},
    {"kind": "mlp", "stride": 1},
    {"kind": "mlp", "stride": 3},
    {"kind": "fold", "stride": 2},
    {"kind": "resampler", "queries": 4, "depth": 1, "heads": 2},
]
NO_CLIPPING = 1e9


def stage(**options) -> StageConfig:
    return StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=10, **options)


def weights_after(model, batches, kind="sgd"):
    """The weights after one step, from the model's present ones, and what the step told."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = make_optimizers(model, stage(optimizer={"kind": kind}, learning_rate=0.1))
    stats = train_step(model, optimizers, batches, max_norm=NO_CLIPPING)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    return stats, after


@pytest.mark.parametrize("split", [(6,), (1, 5), (3, 3), (2, 1, 3), (1, 1, 1, 1, 1, 1)], ids=str)
def test_step_is_the_same_however_its_batch_is_split(split, make_bundle, scenes):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(sample) for sample in scenes]
    edges = [sum(split[:n]) for n in range(len(split) + 1)]
    batches = [collate(rendered[a:b]) for a, b in itertools.pairwise(edges)]
    stats, weights = weights_after(bundle.model, batches)
    expected_stats, expected = weights_after(bundle.model, [collate(rendered)])
    assert stats.loss == pytest.approx(expected_stats.loss, abs=1e-5)
    assert stats.grad_norm == pytest.approx(expected_stats.grad_norm, rel=1e-5)
    assert stats.source_losses == pytest.approx(expected_stats.source_losses, abs=1e-5)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)


def test_a_token_of_a_short_answer_weighs_as_much_as_one_of_a_long_answer(make_bundle):
    bundle = make_bundle()
    answers = ["2", "a large red circle at the top left, and then " * 8]
    talks = [(Message.of("user", "What?"), Message.of("assistant", answer)) for answer in answers]
    rendered = [bundle.renderer.render(Sample(talk, key="k")) for talk in talks]
    apart = [collate([one]) for one in rendered]
    assert apart[1].num_targets > 30 * apart[0].num_targets
    stats, weights = weights_after(bundle.model, apart)
    expected_stats, expected = weights_after(bundle.model, [collate(rendered)])
    assert stats.loss == pytest.approx(expected_stats.loss, abs=1e-5)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_step_is_torchs_mean_cross_entropy_over_all_targets(make_bundle, scenes):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(one) for sample in scenes[:2] for one in sample.unbranched()]
    batch = collate(rendered)
    with torch.no_grad():
        logits_BTV = bundle.model.decoder.logits(bundle.model.hidden(batch))
    expected = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    stats, _ = weights_after(bundle.model, [collate(rendered[:5]), collate(rendered[5:])])
    assert stats.loss == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_are_clipped_to_the_norm_of_the_whole_step(make_bundle, scenes):
    model = make_bundle().model
    batch = collate([make_bundle().renderer.render(scenes[0])])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = stage(optimizer={"kind": "sgd", "momentum": 0.0}, learning_rate=1.0)
    stats = train_step(model, make_optimizers(model, plain), [batch], max_norm=0.01)
    assert stats.grad_norm > 0.1
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_stats_count_targets_tokens_and_media(make_bundle, scenes):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(sample) for sample in scenes[:3]]
    stats, _ = weights_after(bundle.model, [collate(rendered[:1]), collate(rendered[1:])])
    assert stats.num_tokens == sum(len(one.ids) for one in rendered)
    assert stats.num_targets == sum(label != -100 for one in rendered for label in one.labels)
    assert stats.num_media == 3


def test_a_step_without_targets_is_refused(make_bundle, scenes):
    bundle = make_bundle()
    rendered = bundle.renderer.render(scenes[0])
    batch = collate([replace(rendered, labels=[-100] * len(rendered.ids))])
    with pytest.raises(ValueError, match="no target tokens in 1 micro-batches"):
        train_step(bundle.model, make_optimizers(bundle.model, stage()), [batch], max_norm=1.0)


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_a_gradient_that_is_not_finite_names_its_tensor_and_leaves_the_weights(kind, make_bundle, scenes):
    bundle = make_bundle()
    batch = collate([bundle.renderer.render(scenes[0])])
    model = bundle.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.adapters["image"].project[0].weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"step 17: the gradient of adapters.image.project.0.weight is not finite \(1 tensors"
    ):
        train_step(model, make_optimizers(model, stage(optimizer={"kind": kind})), [batch], max_norm=1.0, step=17)
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


def losses_of(bundle, batches, optimizer, steps, learning_rate=0.01, train_patterns=("*",)):
    chosen = stage(optimizer=optimizer, learning_rate=learning_rate)
    freeze_except(bundle.model, train_patterns)
    optimizers = make_optimizers(bundle.model, chosen)
    bundle.model.train()
    return [train_step(bundle.model, optimizers, batches, max_norm=1.0).loss for _ in range(steps)]


@pytest.mark.train
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: "-".join(map(str, adapter.values())))
def test_a_tiny_training_learns_through_every_adapter_what_only_the_picture_tells(adapter, make_bundle):
    bundle = make_bundle(adapter=adapter)
    samples = []
    for colour in ("red", "lime", "blue", "white"):
        picture = Image(PIL.Image.new("RGB", (16, 16), colour))
        samples.append(Sample((Message.of("user", picture, "?"), Message.of("assistant", colour[0])), key=colour))
    batch = collate([bundle.renderer.render(sample) for sample in samples])
    losses = losses_of(bundle, [batch], {"kind": "adamw"}, 40)
    best_blind_guess = math.log(4) * len(samples) / batch.num_targets
    assert losses[-1] < 0.5 * best_blind_guess < losses[0]


@pytest.mark.train
@pytest.mark.parametrize("objective", ["causal", "respond", "masked"])
@pytest.mark.parametrize(("kind", "rate"), [("adamw", 0.01), ("muon", 0.01), ("sgd", 0.05)])
def test_a_tiny_training_learns_its_batch_by_every_optimizer_and_objective(kind, rate, objective, make_bundle, scenes):
    bundle = make_bundle()
    rendered = [bundle.renderer.render(one, objective) for sample in scenes[:2] for one in sample.unbranched()[:3]]
    batches = [collate(rendered[:4], objective), collate(rendered[4:], objective)]
    losses = losses_of(bundle, batches, {"kind": kind}, 30, learning_rate=rate)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_frozen_parameters_do_not_change_and_the_others_do(kind, make_bundle, scenes):
    bundle = make_bundle()
    batches = [collate([bundle.renderer.render(scenes[0])])]
    before = {name: p.detach().clone() for name, p in bundle.model.named_parameters()}
    optimizer = {"kind": kind, "weight_decay": 0.1}
    losses_of(bundle, batches, optimizer, 2, train_patterns=["adapters.*", "decoder.blocks.1.mlp"])
    changed = {name for name, p in bundle.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith(("adapters.", "decoder.blocks.1.mlp."))}


def test_bfloat16_keeps_weights_and_gradients_in_float32_and_the_loss_near(make_bundle, scenes):
    bundle = make_bundle()
    batch = collate([bundle.renderer.render(scenes[0])])
    optimizers = make_optimizers(bundle.model, stage(optimizer=OptimizerConfig(kind="sgd"), learning_rate=1e-9))
    exact = train_step(bundle.model, optimizers, [batch], max_norm=1.0)
    rough = train_step(bundle.model, optimizers, [batch], max_norm=1.0, precision="bfloat16")
    assert {p.dtype for p in bundle.model.parameters()} == {torch.float32}
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss


@pytest.fixture
def rows_with_bad_pictures(tmp_path):
    def write(count: int, bad: int) -> dict:
        PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
        (tmp_path / "text.png").write_text("not a picture")
        names = ["text.png"] * bad + ["good.png"] * (count - bad)
        talk = [{"role": "user", "content": "<image>What colour?"}, {"role": "assistant", "content": "red"}]
        rows = [json.dumps({"messages": talk, "images": [name]}) for name in names]
        (tmp_path / "rows.jsonl").write_text("\n".join(rows))
        return {"reader": "messages", "path": "rows.jsonl"}

    return write


@pytest.mark.train
def test_bad_media_are_skipped_up_to_the_stated_share(rows_with_bad_pictures, make_recipe, tmp_path):
    data = [rows_with_bad_pictures(20, 1)]
    recipe = make_recipe({"data": data, "steps": 5, "batch_size": 4, "max_skipped": 0.1})
    train(recipe, out=tmp_path / "run", data_root=tmp_path, device="cpu")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["skipped"] for record in log if "loss" in record][-1] == 1
    (shown,) = [record["reason"] for record in log if record.get("event") == "skipped"]
    assert "text.png: a text" in shown
    assert "not a picture that can be read" in shown


@pytest.mark.train
@pytest.mark.parametrize(("bad", "max_skipped"), [(8, 0.1), (1, 0.0), (20, 0.9)])
def test_training_stops_with_the_first_reasons_where_too_many_samples_are_bad(
    bad, max_skipped, rows_with_bad_pictures, make_recipe, tmp_path
):
    data = [rows_with_bad_pictures(20, bad)]
    recipe = make_recipe({"data": data, "steps": 10, "batch_size": 4, "max_skipped": max_skipped})
    with pytest.raises(UserError, match=rf"samples could not be used, over max_skipped={max_skipped}; first: rows/"):
        train(recipe, out=tmp_path / "run", data_root=tmp_path, device="cpu")


def test_no_number_is_read_from_the_device_before_the_last_backward_pass(make_bundle, scenes, monkeypatch):
    """Reading one waits until a GPU has done all that it was given."""
    bundle, calls = make_bundle(), []
    batches = [collate([bundle.renderer.render(sample)]) for sample in scenes[:3]]
    optimizers = make_optimizers(bundle.model, stage())
    backward, number = torch.Tensor.backward, torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "backward", lambda *given: calls.append("backward") or backward(*given))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda given: calls.append("read") or number(given))
    train_step(bundle.model, optimizers, batches, max_norm=NO_CLIPPING)
    assert calls[:3] == ["backward"] * 3
    assert "read" in calls[3:]

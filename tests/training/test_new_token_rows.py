import pytest
import torch
from resuming import assert_same_weights, train_in_two
from safetensors.torch import load_file

from mmgpt.config import UserError
from mmgpt.inputs.batch import collate
from mmgpt.run_log import read_log
from mmgpt.training import loop
from mmgpt.training.loop import train
from mmgpt.training.new_token_rows import freeze_old_rows
from mmgpt.training.optim import freeze_except, make_optimizers
from mmgpt.training.recipe import StageConfig
from mmgpt.training.step import train_step

pytestmark = pytest.mark.usefixtures("one_thread")


def changed_rows(before, after):
    return set((before != after).any(dim=1).nonzero().flatten().tolist())


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_learn_and_no_other_row_moves_a_bit(kind, tied, make_bundle, scenes):
    bundle = make_bundle(tied=tied)
    model, batch = bundle.model, collate([bundle.renderer.render(scenes[0])])
    new = sorted({token for token in batch.ids[0].tolist() if token > 20})[:2]  # of text
    patterns = ["decoder.embedding[new]", "adapters.*"] + ([] if tied else ["decoder.head[new]"])
    freeze_except(model, patterns)
    freeze_old_rows(model, patterns, new)
    options = {"optimizer": {"kind": kind, "weight_decay": 0.5}, "learning_rate": 0.1}
    stage = StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=9, **options)
    optimizers = make_optimizers(model, stage)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for step in range(3):
        train_step(model, optimizers, [batch, batch], max_norm=1.0, step=step)
    after = model.state_dict()
    tables = ["decoder.embedding.weight", "decoder.head.weight"]
    assert {name: changed_rows(before[name], after[name]) for name in tables} == {name: set(new) for name in tables}
    assert all(torch.equal(before[name], after[name]) for name in before if "decoder.blocks" in name)


def test_the_gradient_of_a_new_row_is_what_it_is_where_all_learn_and_the_norm_counts_it_alone(make_bundle, scenes):
    bundle = make_bundle()
    model, batch = bundle.model, collate([bundle.renderer.render(scenes[0])])
    row = int(batch.ids[0, 3])
    model(batch).total.backward()
    expected = model.decoder.embedding.weight.grad[row].clone()
    model.zero_grad()
    freeze_except(model, ["decoder.embedding[new]"])
    hooks = freeze_old_rows(model, ["decoder.embedding[new]"], [row])
    model(batch).total.backward()
    torch.testing.assert_close(model.decoder.embedding.weight.grad[row], expected)
    assert model.decoder.embedding.weight.grad.norm() == pytest.approx(expected.norm().item(), rel=1e-5)
    hooks["decoder.embedding.weight"].remove()
    model.zero_grad()
    model(batch).total.backward()
    assert model.decoder.embedding.weight.grad.norm() > 1.1 * expected.norm()


def test_a_table_that_another_pattern_names_too_learns_whole(make_bundle):
    model = make_bundle().model
    assert freeze_old_rows(model, ["decoder.*", "decoder.embedding[new]"], [3]) == {}


@pytest.mark.parametrize(
    ("pattern", "new", "told"),
    [
        ("decoder.embedding[new]", [], r"decoder.embedding\[new\] is for the rows of added tokens, and this model has"),
        ("decoder.norm[new]", [3], r"decoder.norm\[new\] names decoder.norm.weight, which has no rows of tokens"),
    ],
)
def test_rows_that_are_not_there_are_refused(pattern, new, told, make_bundle):
    with pytest.raises(UserError, match=told):
        freeze_old_rows(make_bundle().model, [pattern], new)


@pytest.mark.train
def test_a_stage_of_rows_resumes_bit_for_bit_and_the_next_one_learns_all(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "new_tokens", lambda recipe, tokenizer: (40, 280))
    rows = {"train": ["decoder.embedding[new]", "decoder.head[new]"], "save_every": 1, "optimizer": {"kind": "muon"}}
    recipe = make_recipe({"steps": 1}, {**rows, "steps": 4}, {"steps": 1, "train": ["decoder.embedding"]})
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(2, recipe, "stage1", out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    names = ("stage0/checkpoint-1", "stage1/checkpoint-4", "stage2/checkpoint-1")
    first, second, third = (load_file(tmp_path / "straight" / name / "model.safetensors") for name in names)
    assert changed_rows(first["decoder.head.weight"], second["decoder.head.weight"]) == {40, 280}
    assert len(changed_rows(second["decoder.embedding.weight"], third["decoder.embedding.weight"])) > 20
    started = next(r for r in read_log(tmp_path / "straight" / "log.jsonl") if r["stage"] == "stage1")
    assert {row["part"]: row["trained"] for row in started["parts"]}["decoder"] == 2 * 2 * 32

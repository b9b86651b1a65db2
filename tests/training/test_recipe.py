import io

import pytest
from rich.console import Console

from mmgpt.cli.training_display import TrainingDisplay
from mmgpt.config import UserError, to_yaml
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.recipe import Recipe, load_recipe
from mmgpt.training.run_tokenizer import texts_of


def test_overrides_are_laid_over_a_recipe_by_the_name_of_the_stage():
    recipe = load_recipe("quickstart", ["stages.look.steps=3", "seed=9", "stages.pretrain.learning_rate=3e-4"])
    assert {stage.name: stage.steps for stage in recipe.stages}["look"] == 3
    assert recipe.seed == 9
    assert recipe.stages[0].learning_rate == 3e-4


def test_words_are_hidden_by_one_rule_only():
    with pytest.raises(UserError, match=r"word_dropout=0.1 is for causal and respond; masked hides words itself"):
        load_recipe("quickstart", ["stages.instruct.objective=masked", "stages.instruct.word_dropout=0.1"])


@pytest.mark.parametrize(("name", "value"), [("muon_convolutions", "true"), ("muon_interval", "2")])
def test_what_is_for_muon_is_refused_elsewhere(name, value):
    with pytest.raises(UserError, match=rf"{name} is for kind=muon, this is adamw; change one of the two"):
        load_recipe("quickstart", [f"stages.look.optimizer={{{name}: {value}}}"])


@pytest.mark.train
def test_the_resolved_recipe_is_saved_beside_the_run_and_reloads_equal(make_recipe, tmp_path):
    recipe = make_recipe({"steps": 1})
    run = train(recipe, out=tmp_path / "run", device="cpu")
    assert run.folder == tmp_path / "run"
    assert load_recipe(tmp_path / "run" / "config.yaml") == run.recipe == recipe
    assert (tmp_path / "run" / "config.yaml").read_text() == to_yaml(recipe)


@pytest.mark.train
def test_a_recipe_from_a_file_and_the_same_as_an_object_train_the_same(make_recipe, tmp_path):
    recipe = make_recipe({"steps": 2})
    (tmp_path / "tiny.yaml").write_text(to_yaml(recipe))
    train(tmp_path / "tiny.yaml", overrides=["seed=3"], out=tmp_path / "a", device="cpu")
    train(Recipe.model_validate({**recipe.model_dump(), "seed": 3}), out=tmp_path / "b", device="cpu")
    losses = [[r["loss"] for r in read_log(tmp_path / name / "log.jsonl") if "loss" in r] for name in "ab"]
    assert losses[0] == losses[1]


@pytest.mark.train
def test_before_a_stage_starts_it_tells_which_parts_train_and_how_fast(make_recipe, tmp_path):
    seen = []
    stage = {"steps": 1, "train": ["adapters.*"], "learning_rates": {"adapters.*": 0.002}, "optimizer": {"kind": "sgd"}}
    train(make_recipe(stage), out=tmp_path, device="cpu", on_record=seen.append)
    assert seen[0]["event"] == "stage"
    parts = {row["part"]: row for row in seen[0]["parts"]}
    assert set(parts) == {"decoder", "encoders.image", "adapters.image"}
    assert {name for name, row in parts.items() if row["trained"]} == {"adapters.image"}
    assert parts["adapters.image"]["trained"] == parts["adapters.image"]["parameters"]
    assert parts["adapters.image"]["learning_rate"] == 0.002
    assert parts["decoder"]["bytes"] == 4 * parts["decoder"]["parameters"]


@pytest.mark.train
def test_the_freeze_table_shows_the_lowest_and_the_highest_rate_of_a_part(make_recipe, tmp_path):
    shown = io.StringIO()
    display = TrainingDisplay(Console(file=shown, width=200))
    stage = {"steps": 1, "layer_decay": 0.5, "learning_rate": 0.01, "train": ["decoder", "adapters.*"]}
    train(make_recipe(stage), out=tmp_path, device="cpu", on_record=display.on_record)
    rows = {line.split()[0]: line for line in shown.getvalue().splitlines() if line.strip()}
    assert "0.00125 to 0.01 " in rows["decoder"]  # two blocks, and the embedding below them
    assert " to " not in rows["adapters.image"]
    assert "frozen" in rows["encoders.image"]


@pytest.mark.train
@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"train": ["adapter.*"]}, r"pattern 'adapter.\*' matches no parameter; did you mean"),
        ({"learning_rates": {"decodr": 1.0}}, r"pattern 'decodr' matches no parameter; did you mean decoder"),
    ],
)
def test_a_stage_whose_glob_matches_nothing_stops_before_a_step(stage, told, make_recipe, tmp_path):
    ticks = []
    with pytest.raises(UserError, match=told):
        train(make_recipe(stage), out=tmp_path, device="cpu", on_record=ticks.append)
    assert ticks == []


def test_data_that_cannot_be_opened_stop_a_run_before_its_folder_is_made(make_recipe, tmp_path):
    recipe = make_recipe({}, {"data": [{"reader": "text", "path": "absent.txt"}]})
    with pytest.raises(UserError, match=r"absent.txt: no such file or folder; set --data-root"):
        train(recipe, out=tmp_path / "run", data_root=tmp_path, device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_texts_that_a_tokenizer_learns_from_include_the_branches(scenes):
    texts = list(texts_of(scenes[0]))
    assert "Describe the picture." in texts
    assert scenes[0].branches[0][1].text in texts

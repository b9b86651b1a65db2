import io
import shutil

import pytest
import torch
from resuming import assert_same_weights, train_until
from rich.console import Console
from safetensors.torch import load_file

from mmgpt.checkpoints.save_load import load_bundle, new_bundle, save_bundle
from mmgpt.cli.training_display import TrainingDisplay
from mmgpt.config import UserError
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.inspection.recipe_data import open_data
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.warm_start import warm_start

FOLD = "adapters.image.project.0.weight"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def save(tmp_path):
    def save(bundle, name="source"):
        (tmp_path / name).mkdir()
        with torch.no_grad():
            for parameter in bundle.model.parameters():
                parameter.normal_(std=0.1)
        save_bundle(bundle, tmp_path / name)
        return tmp_path / name

    return save


def weights_of(bundle):
    return {name: weight.clone() for name, weight in bundle.model.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_the_same_parts_begins_with_every_weight(tied, make_bundle, save):
    folder, bundle = save(make_bundle(tied=tied)), make_bundle(tied=tied)
    told = warm_start(bundle, folder)
    expected = weights_of(load_bundle(folder))
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(bundle).items())
    count = sum(p.numel() for p in bundle.model.parameters())
    assert (told["matched"], told["parameters"]) == (told["of"], count)
    assert [told[kind] for kind in ("absent", "misshapen", "unused")] == [[], [], []]
    assert "tokens" not in told


def test_what_has_no_counterpart_stays_as_it_is_and_is_told_by_name(make_bundle, save):
    folder = save(make_bundle(adapter={"kind": "linear"}, bias=True))
    bundle = make_bundle(adapter={"kind": "fold", "stride": 2}, ffn_width=48)
    before, given = weights_of(bundle), load_file(folder / "model.safetensors")
    told = warm_start(bundle, folder)
    after = weights_of(bundle)
    absent = {name for name in after if name.startswith("adapters.")}
    misshapen = {name for name in after if "decoder" in name and ".mlp." in name}
    assert set(told["absent"]) == absent
    assert {one.split()[0] for one in told["misshapen"]} == misshapen
    assert "decoder.blocks.0.mlp.up.weight (96, 32) instead of (48, 32)" in told["misshapen"]
    assert set(told["unused"]) == given.keys() - after.keys()
    assert all(torch.equal(after[name], before[name]) for name in absent | misshapen)
    others = after.keys() - absent - misshapen
    assert all(torch.equal(after[name], given[name]) for name in others)
    assert told["matched"] == len(others)


def test_a_head_of_its_own_begins_as_the_embedding_of_a_tied_start_and_not_the_other_way_round(make_bundle, save):
    tied, untied = save(make_bundle(tied=True), "tied"), save(make_bundle(), "untied")
    bundle = make_bundle()
    assert warm_start(bundle, tied)["absent"] == []
    assert torch.equal(
        bundle.model.decoder.head.weight, load_file(tied / "model.safetensors")["decoder.embedding.weight"]
    )
    bundle = make_bundle(tied=True)
    assert warm_start(bundle, untied)["unused"] == ["decoder.head.weight"]
    expected = load_file(untied / "model.safetensors")["decoder.embedding.weight"]
    assert torch.equal(bundle.model.decoder.embedding.weight, expected)


def test_where_tokenizers_differ_rows_go_by_token(make_bundle, save):
    folder = save(make_bundle())
    texts = ["tall red ships sail south", "a red ship and a red star"] * 20
    other = new_bundle(make_bundle().model.config, Tokenizer.train(texts, 290), "plain")
    before, given = weights_of(other), load_file(folder / "model.safetensors")
    told = warm_start(other, folder)
    here, there = (one.core.get_vocab() for one in (other.tokenizer, load_bundle(folder).tokenizer))
    shared = here.keys() & there.keys()
    assert 267 < len(shared) < len(here)
    assert any(here[token] != there[token] for token in shared)
    assert told["tokens"] == {"shared": len(shared), "of": 290}
    for name in ("decoder.embedding.weight", "decoder.head.weight"):
        weight = other.model.state_dict()[name]
        for token, place in here.items():
            assert torch.equal(weight[place], given[name][there[token]] if token in shared else before[name][place])
    assert told["parameters"] == sum(p.numel() for p in other.model.parameters()) - 2 * 32 * (290 - len(shared))


def test_a_start_of_which_nothing_fits_is_refused(make_bundle, save):
    folder = save(make_bundle(image=None, width=16))
    bundle = make_bundle(width=32, norm_scale=False)
    with pytest.raises(UserError, match=r"init_from: .*source holds \d+ weights, and none has the name and shape"):
        warm_start(bundle, folder)


@pytest.mark.train
def test_a_run_begins_with_its_starts_weights_tokenizer_and_template(make_recipe, tmp_path):
    train(make_recipe({"steps": 2}), out=tmp_path / "first", device="cpu")
    untouched = {"steps": 1, "train": ["adapters.*"]}
    changes = {"init_from": str(tmp_path / "first"), "tokenizer": None, "template": None}
    recipe = make_recipe(untouched, **changes, seed=5)
    shown = io.StringIO()
    display = TrainingDisplay(Console(file=shown, width=300))
    train(recipe, out=tmp_path / "second", device="cpu", on_record=display.on_record)
    first, second = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("first", "second"))
    assert {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])} == {"adapters"}
    assert load_bundle(tmp_path / "second").template == "plain"
    texts = [(tmp_path / run / "tokenizer.json").read_text() for run in ("first", "second")]
    assert texts[0] == texts[1]
    told = read_log(tmp_path / "second" / "log.jsonl")[0]
    assert (told["stage"], told["step"], told["event"], told["matched"]) == ("stage0", 0, "start", len(first))
    assert f"starts from {tmp_path / 'first'}: {len(first)} of {len(first)} weights, " in shown.getvalue()
    assert open_data(recipe).renderer.template == open_data(make_recipe()).renderer.template


@pytest.mark.train
def test_a_tokenizer_or_template_that_the_recipe_names_comes_before_the_starts(make_recipe, tmp_path):
    train(make_recipe({"steps": 1}), out=tmp_path / "first", device="cpu")
    own = {"tokenizer": {"vocab_size": 280, "num_samples": 20}, "template": "chatml"}
    train(make_recipe({"steps": 1}, init_from=str(tmp_path / "first"), **own), out=tmp_path / "second", device="cpu")
    loaded = load_bundle(tmp_path / "second")
    assert (len(loaded.tokenizer), loaded.template) == (280, "chatml")
    assert read_log(tmp_path / "second" / "log.jsonl")[0]["tokens"]["of"] == 280


@pytest.mark.train
def test_stopped_and_resumed_is_straight_and_starts_once(make_recipe, tmp_path):
    train(make_recipe({"steps": 2}), out=tmp_path / "first", device="cpu")
    inherited = {"init_from": str(tmp_path / "first"), "tokenizer": None, "template": None}
    recipe = make_recipe({"steps": 4, "save_every": 1}, **inherited, seed=5)
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_until(3, recipe, out=tmp_path / "broken")
    shutil.rmtree(tmp_path / "first")  # what goes on needs it no more
    train(recipe, out=tmp_path / "broken", device="cpu")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    assert [r.get("event") for r in read_log(tmp_path / "broken" / "log.jsonl")][:2] == ["start", "stage"]


@pytest.mark.parametrize("template", [None, "plain"])
def test_a_start_that_is_not_there_stops_a_run_before_its_folder_is_made(template, make_recipe, tmp_path):
    recipe = make_recipe(init_from=str(tmp_path / "absent"), template=template)
    with pytest.raises(UserError, match=r"absent: no such folder; give a run"):
        train(recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()

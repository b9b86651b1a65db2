"""Fields under the names of the release before: read as the present ones, with a note that names these."""

import json
import shutil
import warnings

import pytest
import torch

from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import Config, UserError, build
from mmgpt.encoders.augment import WarpConfig
from mmgpt.encoders.conformer_config import ConformerConfig
from mmgpt.encoders.mel import MelFeatures
from mmgpt.evaluation.tasks.few_shot import ShotConfig
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.files import read_json, write_json
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.rope import YarnScaling
from mmgpt.training.loop import train
from mmgpt.training.recipe import Recipe, StageConfig

WORLD = [{"reader": "world", "name": "scenes"}]
STAGE = {"name": "a", "data": WORLD, "steps": 1}
TASK = {"name": "t", "data": WORLD[0], "kind": "choose", "metrics": ["choice_accuracy"], "choices": ["a", "b"]}
RECIPE = {"name": "r", "model": {"decoder": {"width": 32, "depth": 1, "heads": 2}}, "stages": [STAGE]}
VALUES = {  # of each class what it needs besides, and a value for each old spelling
    WarpConfig: ({}, {"turn": 5.0, "shift": 0.1}),
    ConformerConfig: ({}, {"front": {"kind": "kaldi"}}),
    MelFeatures: ({"kind": "mel"}, {"guard": 1e-3}),
    DecoderConfig: ({}, {"inner": 96, "score_width": 8.0, "attention_cap": 5.0, "logit_cap": 3.0}),
    YarnScaling: ({"kind": "yarn", "factor": 2.0, "original_context": 64}, {"magnitude": 1.5}),
    StageConfig: (STAGE, {"row_tokens": 64, "count_by": "tokens", "temperature": 2.0}),
    Recipe: (RECIPE, {"start": "runs/other", "wraps": {}}),
    ShotConfig: ({}, {"pick": "balanced", "by": "last", "of": "text", "media": False}),
    TaskConfig: (TASK, {"raw": True, "normalise": True}),
}
CASES = [(cls, old) for cls, (_, values) in VALUES.items() for old in values]


def configs(cls: type[Config]) -> list[type[Config]]:
    return [cls, *(one for below in cls.__subclasses__() for one in configs(below))]


def test_every_old_spelling_is_tried_here_and_names_a_field_that_there_is():
    renamed = {(cls, old) for cls in configs(Config) for old in cls.__dict__.get("renamed", {})}
    assert renamed == set(CASES)
    for cls, old in CASES:
        assert cls.renamed[old] in cls.model_fields
        assert old not in cls.model_fields


@pytest.mark.parametrize(("cls", "old"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_old_spelling_is_read_as_the_new_one_with_a_note_that_names_it(cls, old):
    base, values = VALUES[cls]
    new = cls.renamed[old]
    with pytest.warns(FutureWarning, match=rf"{cls.__name__}: {old} is called {new} now"):
        before = cls(**base, **{old: values[old]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert before == cls(**base, **{new: values[old]})
    with pytest.raises(UserError, match=rf"{old} is the old spelling of {new}, which is given too; keep {new}"):
        build(cls, {**base, old: values[old], new: values[old]}, "x")


def test_a_fault_is_told_by_the_spelling_that_the_user_gave():
    tree = {**RECIPE, "model": {"decoder": {"width": 32, "heads": 2, "inner": -1}}}
    with pytest.warns(FutureWarning), pytest.raises(UserError, match=r"model\.decoder\.inner=-1"):
        build(Recipe, tree, "x")


def in_old_spelling(folder) -> None:
    """Spell a saved model's config as the release before did."""
    config = read_json(folder / "config.json")
    decoder = config["model"]["decoder"]
    for old, new in DecoderConfig.renamed.items():
        decoder[old] = decoder.pop(new)
    config["wraps"] = config.pop("media_markup")
    write_json(folder / "config.json", config)


def test_a_model_that_the_release_before_saved_opens_without_a_note(make_bundle, tmp_path):
    bundle = make_bundle(ffn_width=48)
    bundle.media_markup = {"image": ("<", ">")}
    save_bundle(bundle, tmp_path)
    in_old_spelling(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loaded = load_bundle(tmp_path, verify=True)
    assert loaded.model.config.decoder.ffn_width == 48
    assert loaded.media_markup == bundle.media_markup


@pytest.mark.train
@pytest.mark.usefixtures("one_thread")
def test_a_run_that_the_release_before_began_is_gone_on_with(make_recipe, tmp_path):
    recipe = make_recipe({"steps": 3, "save_every": 1, "pack_length": 64})
    straight = train(recipe, out=tmp_path / "straight", device="cpu").folder
    train(recipe, out=tmp_path / "old", device="cpu")
    old = tmp_path / "old"
    for gone in (old / "final", old / "stage0" / "checkpoint-3"):
        shutil.rmtree(gone)
    in_old_spelling(old / "stage0" / "checkpoint-2")
    text = (old / "config.yaml").read_text()
    for cls in (StageConfig, Recipe, DecoderConfig):
        for before, now in cls.renamed.items():
            text = text.replace(f" {now}:", f" {before}:").replace(f"\n{now}:", f"\n{before}:")
    assert "row_tokens: 64" in text
    (old / "config.yaml").write_text(text)
    train(recipe, out=old, device="cpu")
    ours, theirs = (load_bundle(run / "final").model.state_dict() for run in (straight, old))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((old / "final" / "config.json").read_text())["model"]["decoder"]["ffn_width"] is None

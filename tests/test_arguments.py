"""What comes by the Python functions is checked at the door: a UserError, never a traceback or a guess."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mmgpt
from mmgpt.arguments import place, several, whole
from mmgpt.config import UserError, build
from mmgpt.generation.sampling import GenerateConfig


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.uint8(3)])
def test_a_whole_number_of_any_type_is_one(value):
    assert whole("n", value) == 3
    assert type(whole("n", value)) is int
    assert build(GenerateConfig, {"max_new_tokens": value}, "options").max_new_tokens == 3


@pytest.mark.parametrize("value", [-1, 2.5, math.nan, math.inf, True, "3", None, [3], 2**63, 1j])
def test_what_is_no_whole_number_is_refused_with_its_value(value):
    with pytest.raises(UserError, match=r"^n=.*: give a whole number from 0 to 2\*\*63 - 1"):
        whole("n", value)


@pytest.mark.parametrize("value", ["0,4", b"0", {"a": 1}, 5, None])
def test_one_value_is_no_list(value):
    with pytest.raises(UserError, match=r"^n=.*: give a list"):
        several("n", value)


def test_tuples_ranges_and_arrays_are_lists():
    assert several("n", (1, 2)) == several("n", range(1, 3)) == several("n", np.array([1, 2])) == [1, 2]


@pytest.mark.parametrize("value", [5, None, "", b"x", "a\0b", ["x"]])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(UserError, match=r"^out=.*: give a path"):
        place("out", value)
    assert place("out", "a") == Path("a")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"overrides": "seed=1"}, r"overrides='seed=1': give a list of texts"),
        ({"overrides": {"seed": 1}}, r"overrides=\{'seed': 1\}: give a list of texts"),
        ({"overrides": None}, r"overrides=None: give a list of texts"),
        ({"overrides": [1]}, r"1 is not an override"),
        ({"out": 5}, r"out=5: give a path"),
        ({"data_root": None}, r"data_root=None: give a path"),
        ({"recipe": {"name": "x"}}, r"\{'name': 'x'\} is no config; give the path of a YAML file"),
        ({"recipe": None}, r"None is no config"),
    ],
)
def test_train_checks_what_it_is_given(arguments, told, tmp_path):
    with pytest.raises(UserError, match=told):
        mmgpt.train(**{"recipe": "quickstart", "out": tmp_path / "run", **arguments})


def test_overrides_of_a_made_recipe_are_not_dropped(make_recipe, tmp_path):
    with pytest.raises(UserError, match=r"overrides=\['seed=1'\]: are for a YAML file; this is a Recipe"):
        mmgpt.train(make_recipe(), overrides=["seed=1"], out=tmp_path)


class Answering:
    name = "answering"

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"tasks": "scene_questions"}, r"tasks='scene_questions': give a list, as in tasks=\['scene_questions'\]"),
        ({"tasks": []}, r"tasks are none"),
        ({"tasks": [5]}, r"5 is no config"),
        ({"shots": "0"}, r"shots='0': give a list"),
        ({"shots": 4}, r"shots=4: give a list"),
        ({"shots": []}, r"shots are none"),
        ({"shots": [-1]}, r"shots '-1' are not known"),
        ({"limit": -1}, r"limit=-1"),
        ({"limit": 2.5}, r"limit=2.5: give a whole number"),
        ({"limit": "3"}, r"limit='3': give a whole number"),
        ({"batch_size": 0}, r"batch_size=0: give a whole number from 1"),
        ({"seed": 2**63}, r"seed=9223372036854775808: give a whole number"),
        ({"seeds": "0,1"}, r"seeds='0,1': give a list"),
        ({"seeds": [0.5]}, r"seeds=0.5: give a whole number"),
        ({"blind": "removed"}, r"blind='removed': give a list"),
        ({"out": 5}, r"out=5: give a path"),
        ({"data_root": 5}, r"data_root=5: give a path"),
        ({"model": 5}, r"model=5: does not answer"),
        ({"model": "no/such/model/here"}, r"no such folder"),
    ],
)
def test_evaluate_checks_what_it_is_given(arguments, told):
    with pytest.raises(UserError, match=told):
        mmgpt.evaluate(**{"model": Answering(), "tasks": ["scene_questions"], "limit": 1, **arguments})


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 2.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": "8"},
        {"temperature": math.nan},
        {"temperature": True},
        {"seed": 2**63},
        {"seed": -1},
        {"top_p": math.inf},
        {"length_penalty": -math.inf, "num_beams": 2},
    ],
)
def test_options_of_an_answer_are_checked(options):
    with pytest.raises(UserError, match=rf"^options: {next(iter(options))}="):
        build(GenerateConfig, options, "options")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": 5}, r"path=5: give a path"),
        ({"device": 5}, r"device=5: is no device"),
        ({"device": "meta"}, r"device='meta': is no device"),
        ({"device": "gpu"}, r"device gpu: cannot be used here"),
        ({"dtype": torch.bfloat16}, r"dtype torch.bfloat16: is not known"),
        ({"quantize": 8}, r"quantize 8: is not known"),
    ],
)
def test_load_checks_what_it_is_given(arguments, told, tmp_path):
    with pytest.raises(UserError, match=told):
        mmgpt.load(**{"path": tmp_path, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="device cuda: cannot be used here"):
        mmgpt.load(tmp_path, device="cuda")

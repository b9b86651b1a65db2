"""A tiny model learns to learn from the examples in its prompt: colors that it never saw, under made-up names."""

import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import build
from mmgpt.evaluation.run import evaluate
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.training.loop import train
from mmgpt.training.recipe import Recipe

LEVELS = (0, 85, 170, 255)
OF = {
    "reader": "table",
    "path": "{split}",
    "files": "{color}_{take}.png",
    "image": "{split}/{file}",
    "prompt": "{image}",
    "answer": "{color}",
}
EPISODES = {
    "reader": "episodes",
    "label": "colors",
    "of": OF,
    "form": "line",
    "ways": 3,
    "words": ["dax", "wug", "fep"],
}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    """Sixty-four colors with a little noise, sixteen of them for the test alone."""
    root, rng = tmp_path_factory.mktemp("colors"), np.random.default_rng(0)
    for number, color in enumerate(itertools.product(LEVELS, repeat=3)):
        folder = root / ("test" if number % 4 == sum(map(LEVELS.index, color)) % 4 else "train")
        folder.mkdir(exist_ok=True)
        for take in range(5):
            pixels = np.clip(np.array(color) + rng.integers(-20, 21, (8, 8, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number}_{take}.png")
    return root


def recipe(steps: int) -> Recipe:
    tree = {
        "name": "colors",
        "template": "plain",
        "tokenizer": {"vocab_size": 280, "num_samples": 20},
        "model": {
            "decoder": {
                **{"width": 32, "depth": 2, "heads": 2, "context": 64, "mlp": "relu2", "qk_norm": True},
                **{"token_shift": True, "unrotated_layers": [0, 1]},
            },
            "encoders": {
                "image": {"kind": "vit", "image_size": 8, "patch_size": 8, "width": 32, "depth": 1, "heads": 1}
            },
            "adapters": {"image": {"kind": "mlp"}},
            "heads": [{"kind": "alike", "modality": "image", "width": 16}],
        },
        "stages": [
            {
                **{"name": "episodes", "auxiliary": {"alike": 1.0}, "data": [{**EPISODES, "queries": 6, "side": 8}]},
                **{"steps": steps, "batch_size": 16, "optimizer": {"kind": "muon"}},
            }
        ],
    }
    return build(Recipe, tree, "test")


@pytest.mark.train
def test_a_tiny_model_learns_from_the_examples_in_its_prompt(colors, tmp_path):
    run = train(recipe(120), out=tmp_path / "run", data_root=colors)
    task = {"name": "colors", "kind": "choose", "metrics": ["choice_accuracy"]}
    data = {**EPISODES, "of": {**OF, "split": "test"}, "size": 60}
    tasks = [build(TaskConfig, {**task, "data": data}, "task")]
    tasks.append(build(TaskConfig, {**task, "name": "lies", "data": {**data, "labels": "permuted"}}, "task"))
    found = evaluate(run.folder, tasks, shots=[0, 1, 2], data_root=colors)
    scores = {
        (name, shots): found.value(name, "choice_accuracy", shots) for name in ("colors", "lies") for shots in (0, 1, 2)
    }
    assert 0.2 < scores["colors", 0] < 0.47
    assert scores["colors", 1] > 0.75
    assert scores["colors", 2] > 0.75
    assert scores["lies", 1] < 0.2

from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.evaluation.tasks.episode_prompts import exemplars_of
from mmgpt.evaluation.tasks.few_shot import Exemplars, Shots
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task
from mmgpt.training.recipe import load_recipe

OF = {
    "reader": "table",
    "path": "set",
    "files": "{letter}_{take}.png",
    "image": "set/{file}",
    "prompt": "{image}",
    "answer": "{letter}",
}
OMNIGLOT = ["omniglot_5way", "omniglot_5way_within", "omniglot_20way", "omniglot_5way_permuted"]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    root = tmp_path_factory.mktemp("set")
    (root / "set").mkdir()
    for number, letter in enumerate("abcdef"):
        for take in range(6):
            PIL.Image.fromarray(np.full((4, 4, 3), 40 * number + take, np.uint8)).save(
                root / "set" / f"{letter}_{take}.png"
            )
    data = {"reader": "episodes", "of": OF, "ways": 3, "size": 10, "form": "line"}
    tree = {"name": "letters", "kind": "choose", "data": data, "metrics": ["choice_accuracy"]}
    return Task(build(TaskConfig, tree, "test"), root)


def shown(prompt) -> list[str]:
    return [part.name() for message in prompt.messages for part in message.parts if isinstance(part, Image)]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_prompt_shows_as_many_examples_of_each_class_and_asks_the_same(task, count):
    items = task.items()
    pool = exemplars_of(task)
    assert len(items) == 30
    for item in items:
        prompt = pool.prompt(item, Shots(str(count), count))
        *examples, asked = shown(prompt)
        assert asked == shown(item)[-1]
        letters = Counter(Path(name).name[0] for name in examples)
        assert set(letters.values()) <= {count}
        assert len(examples) == 3 * count
        assert asked not in examples
        assert item.reference in item.choices
        assert len(item.choices) == 3


def test_another_seed_shows_other_examples_before_the_same_questions(task):
    items, pool = task.items(), exemplars_of(task)
    one, other = ([shown(pool.seeded(seed).prompt(item, Shots("1", 1))) for item in items] for seed in (0, 1))
    assert [names[-1] for names in one] == [names[-1] for names in other]
    assert sum(a[:-1] == b[:-1] for a, b in zip(one, other, strict=True)) < 10


def test_more_shots_than_a_class_has_and_examples_in_words_are_refused(task):
    item, pool = task.items(1)[0], exemplars_of(task)
    with pytest.raises(UserError, match="episodes of 3 ways need 3 classes of 7 samples each"):
        pool.prompt(item, Shots("6", 6))
    with pytest.raises(UserError, match="flamingo-0 shows examples in words, and those of episodes are media"):
        pool.prompt(item, Shots.parse("flamingo-0"))


def test_other_tasks_keep_the_exemplars_of_their_pool():
    assert type(exemplars_of(Task(load_task("scene_questions")))) is Exemplars


def test_omniglot_is_trained_and_tested_on_different_alphabets():
    stages = load_recipe("real/omniglot").stages
    assert {source.of.split for stage in stages for source in stage.data} == {"background"}
    assert {load_task(name).data.of.split for name in OMNIGLOT} == {"evaluation"}

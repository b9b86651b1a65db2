import json
import random
from collections import Counter

import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation.blind import TextOnlyGuess
from mmgpt.evaluation.item import Item, items_of
from mmgpt.evaluation.metrics import exact_match
from mmgpt.evaluation.shots import Exemplars
from mmgpt.evaluation.task import Task, TaskConfig, load_task


@pytest.fixture
def task(easy_vqa) -> Task:
    return Task(load_task("easy_vqa"), easy_vqa)


def shown(task: Task, item: Item, *, name: str = "easy_vqa", count: int = 4, seed: int = 0) -> list[tuple]:
    return Exemplars(task.pool, name, seed=seed).of(item, count)


def spelt(own: list[tuple]) -> list[tuple]:
    return [(key, [message.to_dict() for message in turns]) for key, turns in own]


def test_exemplars_depend_on_seed_task_key_and_number_alone(task):
    items = task.items()
    first = [spelt(shown(task, item)) for item in items]
    order = random.Random(1).sample(range(len(items)), len(items))
    random.seed(99)
    again = {n: spelt(shown(task, Item(items[n].key, (), "other", ("other",)))) for n in order}
    assert [again[n] for n in range(len(items))] == first
    keys = [[key for key, _ in one] for one in first]
    assert len(set(map(str, keys))) > len(items) // 2
    for changed in ({"seed": 1}, {"name": "other"}, {"count": 3}):
        other = [[key for key, _ in shown(task, item, **changed)] for item in items]
        assert [one[:3] for one in other] != [one[:3] for one in keys]


def test_exemplars_are_different_samples_of_the_pool_with_their_answers(task, easy_vqa):
    rows = json.loads((easy_vqa / "easy_vqa" / "train" / "questions.json").read_text())
    known = {(f"{image}.png", question, answer) for question, answer, image in rows}
    for item in task.items():
        pictures = []
        for key, (asked, answer) in shown(task, item):
            picture, _ = asked.parts
            assert isinstance(picture, Image)
            assert "/train/images/" in str(picture.source)
            name = str(picture.source).rpartition("/")[2]
            assert (name, asked.text, answer.text) in known
            assert key.startswith(f"easy_vqa/train/{name.removesuffix('.png')}#")
            assert (asked.role, answer.role) == ("user", "assistant")
            pictures.append(name)
        assert len(set(pictures)) == 4


def test_no_shots_need_no_pool(task):
    assert shown(task, task.items()[0], count=0) == []
    assert Exemplars(None, "easy_vqa").of(task.items()[0], 0) == []


@pytest.mark.parametrize(("count", "told"), [(13, "13 shots asked for, it has 12 exemplars")])
def test_more_shots_than_the_pool_holds_are_refused(count, told, task):
    with pytest.raises(UserError, match=told):
        shown(task, task.items()[0], count=count)
    with pytest.raises(UserError, match="it has no exemplars; add a larger `exemplars` source"):
        Exemplars(None, "easy_vqa").of(task.items()[0], count)


def test_the_text_only_guess_equals_a_count_by_hand(task, easy_vqa):
    rows = json.loads((easy_vqa / "easy_vqa" / "train" / "questions.json").read_text())
    guess = TextOnlyGuess(task.pool)
    hits = 0
    for item in task.items():
        counts = Counter(answer for question, answer, _ in rows if question == item.question)
        assert counts[guess.answer(item)] == max(counts.values())
        hits += guess.answer(item) == item.reference
    # by hand, of seven pictures: circles 2 (21, 24); the colour of 20, 24 is red; no circle in 5
    assert hits == 2 + 2 + 5


def test_words_never_seen_get_the_most_frequent_answer_of_all(task):
    assert TextOnlyGuess(task.pool).answer(Item("k", (Message.of("user", "why?"),), "", ())) == "no"


def test_a_question_never_asked_is_cut_to_the_longest_beginning_that_was(task):
    guess = TextOnlyGuess(task.pool)
    same = Item("k", (Message.of("user", "what is the color of the shape?"),), "", ())
    longer = Item("k", (Message.of("user", "what is the color of this thing?"),), "", ())
    assert guess.answer(longer) == guess.answer(same) == "red"
    assert guess.answer(Item("k", (Message.of("user", "what shape?"),), "", ())) != "red"


def test_the_guess_among_choices_is_the_one_most_frequent_in_training(tmp_path, easy_vqa):
    config = load_task("easy_vqa").model_dump() | {"kind": "choose", "choices": ["circle", "yes", "no"]}
    task = Task(build(TaskConfig, config, "made"), easy_vqa)
    item = Item("k", list(items_of(task.test[0]))[2].messages, "no", ("no",), ("circle", "yes", "no"))
    assert TextOnlyGuess(task.pool).answer(item) == "no"


def test_the_text_only_guess_of_easy_vqa_is_the_published_one(data_packs):
    task = Task(load_task("easy_vqa"), data_packs)
    items = task.items()
    assert len(items) == 9_673
    guess = TextOnlyGuess(task.pool)
    share = sum(exact_match(guess.answer(item), item.references) for item in items) / len(items)
    assert 100 * share == pytest.approx(67.00, abs=0.01)

import json
import random
from collections import Counter

import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample, media_of
from mmgpt.evaluation.tasks.few_shot import Exemplars, ShotConfig, Shots
from mmgpt.evaluation.tasks.item import TaskItem, items_of
from mmgpt.evaluation.tasks.task import Task, load_task
from mmgpt.generation.prompts import with_exemplars, without_media


@pytest.fixture
def task(easy_vqa) -> Task:
    return Task(load_task("easy_vqa"), easy_vqa)


def shown(task: Task, item: TaskItem, *, name: str = "easy_vqa", count: int = 4, seed: int = 0) -> list[tuple]:
    return Exemplars(task.pool, name, seed=seed).of(item, count)


def spelt(own: list[tuple]) -> list[tuple]:
    return [(key, [message.to_dict() for message in turns]) for key, turns in own]


def test_exemplars_depend_on_seed_task_key_and_number_alone(task):
    items = task.items()
    first = [spelt(shown(task, item)) for item in items]
    order = random.Random(1).sample(range(len(items)), len(items))
    random.seed(99)
    again = {n: spelt(shown(task, TaskItem(items[n].key, (), "other", ("other",)))) for n in order}
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


def configured(**options) -> ShotConfig:
    return build(ShotConfig, options, "shots")


CONFIGS = [
    {},
    {"strategy": "balanced"},
    {"strategy": "similar"},
    {"labels": "permuted"},
    {"strategy": "balanced", "labels": "permuted", "with_media": False},
]


@pytest.mark.parametrize("options", CONFIGS)
def test_prompts_are_the_same_in_any_order_and_for_any_share_of_the_items(options, task, answerer):
    items = task.items()[::3]
    shots = Shots.parse("3")

    def prompts(own, pool=None):
        pool = pool or Exemplars(task.pool, "easy_vqa", configured(**options), seed=5)
        return {item.key: (shown := pool.prompt(item, shots, answerer, 4)).exemplars + talk(shown) for item in own}

    def talk(shown):
        return tuple(str(message.to_dict()) for message in shown.messages)

    whole = prompts(items)
    assert prompts(items[::-1]) == whole
    assert {**prompts(items[1::2]), **prompts(items[::2])} == whole
    seeded = Exemplars(task.pool, "easy_vqa", configured(**options), seed=1).seeded(5)
    assert prompts(items, seeded) == whole


def test_balanced_shows_as_many_of_each_answer_in_an_order_of_its_own(task):
    answers = "aaaaaaaaaaaaaaaabbbbccc"
    source = [
        Sample((Message.of("user", "?"), Message.of("assistant", one)), key=f"{n}") for n, one in enumerate(answers)
    ]
    pool = Exemplars(source, "letters", configured(strategy="balanced"))
    shown = {}
    for count, per_answer in ((3, [1, 1, 1]), (4, [1, 1, 2]), (9, [3, 3, 3]), (12, [3, 4, 5])):
        for item in task.items():
            picked = pool.of(item, count)
            said = "".join(one.messages[-1].text for one in picked)
            assert sorted(Counter(said).values()) == per_answer
            assert len({one.key for one in picked}) == count
            shown[count, item.key] = said
    assert len({said for (count, _), said in shown.items() if count == 3}) == 6  # all orders of three


def test_permuted_labels_are_those_of_the_same_exemplars_and_wrong(task):
    true = Exemplars(task.pool, "easy_vqa")
    wrong = Exemplars(task.pool, "easy_vqa", configured(labels="permuted"))
    known = {item.reference for n in range(12) for item in items_of(task.pool[n])}
    for item in task.items():
        for count in (1, 2, 4, 8):
            ours, theirs = true.of(item, count), wrong.of(item, count)
            assert [one.key for one in ours] == [one.key for one in theirs]
            assert [one.messages[:-1][0].text for one in ours] == [one.messages[0].text for one in theirs]
            said, told = ([one.messages[-1].text for one in shown] for shown in (ours, theirs))
            if len(set(said)) > 1:
                assert Counter(said) == Counter(told)
            if 2 * max(Counter(said).values()) <= count or len(set(said)) == 1:
                assert not any(a == b for a, b in zip(said, told, strict=True))
            assert set(told) <= known


@pytest.mark.parametrize("pick", ["random", "balanced"])
def test_an_item_of_the_pool_is_shown_with_other_samples(pick, task):
    pool = Exemplars(task.pool, "easy_vqa", configured(strategy=pick))
    for index in range(12):
        for item in items_of(task.pool[index]):
            renamed = TaskItem("another key", item.messages, item.reference, item.references)
            for asked in (item, renamed):
                shown = [key.partition("#")[0] for key, _ in pool.of(asked, 6)]
                assert item.key.partition("#")[0] not in shown
                assert len(set(shown)) == 6


def test_shots_are_named_by_their_number_or_flamingo_0():
    assert [Shots.parse(name) for name in ("0", "04")] == [Shots("0", 0), Shots("4", 4)]
    assert Shots.parse("flamingo-0") == Shots("flamingo-0", 2, with_media=False)
    for name in ("-1", "four", "flamingo", "²", ""):
        with pytest.raises(UserError, match="are not known; give a number, as in 0 or 4, or flamingo-0"):
            Shots.parse(name)


@pytest.mark.parametrize(("options", "name"), [({}, "flamingo-0"), ({"with_media": False}, "2")])
def test_examples_in_words_alone_are_those_of_two_shots_without_their_media(options, name, task):
    item = task.items()[0]
    shown = Exemplars(task.pool, "easy_vqa", configured(**options)).prompt(item, Shots.parse(name))
    two = Exemplars(task.pool, "easy_vqa").prompt(item, Shots.parse("2"))
    assert shown.exemplars == two.exemplars
    assert shown.messages == (*without_media(two.messages[:4]), *item.messages)
    assert len(media_of(shown.messages)) == 1


def test_whole_exemplars_go_from_the_first_until_the_prompt_fits(task, answerer):
    pool, item = Exemplars(task.pool, "easy_vqa"), task.items()[0]
    whole = pool.prompt(item, Shots.parse("8"))
    for kept in range(9):
        expected = with_exemplars([one.messages for one in pool.of(item, 8)][8 - kept :], item.messages)
        room = -answerer.tokens_over_context(expected, 0)  # the longest answer for which so many fit
        shown = pool.prompt(item, Shots.parse("8"), answerer, room)
        spelt_out = [[message.to_dict() for message in messages] for messages in (shown.messages, expected)]
        assert spelt_out[0] == spelt_out[1]
        assert (shown.dropped, shown.exemplars) == (8 - kept, whole.exemplars[8 - kept :])
        assert answerer.tokens_over_context(shown.messages, room) == 0


@pytest.mark.parametrize("name", ["0", "4"])
def test_an_item_that_does_not_fit_alone_is_refused_with_its_key(name, task, answerer):
    item = task.items()[0]
    room = 1 - answerer.tokens_over_context(item.messages, 0)
    with pytest.raises(
        UserError, match=f"{item.key}: 1 tokens over the context, without any exemplars and with {room}"
    ):
        Exemplars(task.pool, "easy_vqa").prompt(item, Shots.parse(name), answerer, room)

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import mmgpt.configs
from mmgpt.config import UserError, build, read_yaml
from mmgpt.datasets.media import Audio, Media
from mmgpt.datasets.readers import EpisodesOfConfig
from mmgpt.datasets.sample import Message, Sample, Text
from mmgpt.evaluation.item import items_of
from mmgpt.evaluation.task import Task, TaskConfig, load_task

TASKS = sorted(path.stem for path in (Path(mmgpt.configs.__file__).parent / "tasks").glob("*.yaml"))
EPISODES = {name for name in TASKS if name.startswith("omniglot")}
NOT_AT_HAND = {"fsdd", "noto_emoji", "cifar10", "easy_vqa", "digits_and_shapes"}


def make_task(tree: dict, root: Path) -> Task:
    data = {"reader": "messages", "path": "test.jsonl"}
    return Task(build(TaskConfig, {"name": "made", "data": data, **tree}, "made"), root)


def write_answers(root: Path, answers: list[str]) -> None:
    turns = [[("user", f"Which? {number}"), ("assistant", answer)] for number, answer in enumerate(answers)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in one]} for one in turns]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_that_comes_with_mmgpt_builds_under_its_own_name(name):
    config = load_task(name)
    assert config.name == name
    if isinstance(config.data, EpisodesOfConfig):
        assert config.data.of.split == "evaluation"
        return
    assert config.exemplars is not None
    assert (config.exemplars.split, config.data.split) == ("train", "test")


@pytest.mark.parametrize("name", [name for name in TASKS if name not in NOT_AT_HAND | EPISODES])
def test_a_task_without_files_opens_and_asks_questions(name):
    items = Task(load_task(name)).items(limit=20)
    assert len(items) == 20
    assert len({item.key for item in items}) == 20
    for item in items:
        assert item.messages[-1].role == "user"
        assert item.question
        assert item.reference


@pytest.mark.parametrize("name", sorted(NOT_AT_HAND & set(TASKS)))
def test_a_task_on_real_data_opens_and_its_media_can_be_read(name, data_packs):
    task = Task(load_task(name), data_packs)
    for item in task.items(limit=3):
        media = [part for part in item.messages[-1].parts if isinstance(part, Media)]
        assert media
        for medium in media:
            assert medium.load().rate == 8000 if isinstance(medium, Audio) else medium.load().mode == "RGB"
        assert not item.choices or item.reference in item.choices
    assert task.pool is not None
    own = {str(part.source) for item in task.items() for part in item.messages[-1].parts if isinstance(part, Media)}
    for index in range(0, len(task.pool), 97):
        for item in items_of(task.pool[index]):
            assert own.isdisjoint(str(part.source) for part in item.messages[-1].parts if isinstance(part, Media))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean easy_vqa"):
        load_task("easy_vqua")


def test_a_task_may_be_a_file_of_one_s_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: {reader: world, name: scene_questions, split: test}\n")
    assert load_task(tmp_path / "mine.yaml").name == "mine"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "choose"}, "kind=choose needs either choices or distractors"),
        ({"kind": "choose", "choices": ["a", "b"], "distractors": 1}, "either choices or distractors"),
        ({"kind": "choose", "choices": ["a"]}, "choices"),
        ({"metrics": ["exactmatch"]}, "metric 'exactmatch' does not exist; known: exact_match"),
        ({"metrics": []}, "metrics"),
        ({"metric": ["exact_match"]}, "metric is not a field of TaskConfig; did you mean metrics"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(changes, told):
    tree = {"name": "made", "data": {"reader": "world", "name": "scene_questions"}, **changes}
    with pytest.raises(UserError, match=told):
        build(TaskConfig, tree, "made.yaml")


def test_branches_of_a_sample_are_items_of_their_own_with_the_picture_in_each(scenes):
    items = list(items_of(scenes[0]))
    assert [item.key for item in items] == [f"{scenes[0].key}#{n}" for n in range(len(scenes[0].branches))]
    for item, (asked, answer) in zip(items, scenes[0].branches, strict=True):
        assert item.messages == (Message("user", (*scenes[0].messages[0].parts, *asked.parts)),)
        assert (item.question, item.reference) == (asked.text, answer.text)


def test_an_earlier_exchange_stays_in_the_question():
    turns = [Message.of("user", "a"), Message.of("assistant", "b"), Message.of("user", "c")]
    (item,) = items_of(Sample((*turns, Message.of("assistant", "d")), key="k"))
    assert (item.messages, item.question, item.reference) == (tuple(turns), "c", "d")


@pytest.mark.parametrize("messages", [(Message.of("user", "a"),), (Message.of("assistant", "a"),), ()])
def test_a_sample_without_a_reference_is_refused_by_its_key(messages):
    with pytest.raises(UserError, match="pets/7: a task's sample must end with an assistant turn"):
        list(items_of(Sample(messages, key="pets/7")))


def test_the_limit_counts_questions_and_keeps_the_first_ones(easy_vqa):
    task = Task(load_task("easy_vqa"), easy_vqa)
    everything = task.items()
    assert len(everything) == 21
    keys = [item.key for item in everything]
    assert [item.key for item in task.items(limit=5)] == keys[:5]
    assert [item.key for item in task.items(limit=500)] == keys
    assert (keys[0], keys[4]) == ("easy_vqa/test/20#0", "easy_vqa/test/21#1")
    picture, question = everything[4].messages[0].parts
    assert str(picture.source).endswith("test/images/21.png")
    assert question == Text("what is the color of the shape?")


def test_distractors_are_other_answers_that_hold_the_reference_and_do_not_depend_on_the_limit(tmp_path):
    answers = [f"answer {n % 9}" for n in range(30)]
    write_answers(tmp_path, answers)
    task = make_task({"kind": "choose", "distractors": 3}, tmp_path)
    items = task.items()
    places = [item.choices.index(item.reference) for item in items]
    assert all(len(set(item.choices)) == 4 and set(item.choices) <= set(answers) for item in items)
    assert set(places) == {0, 1, 2, 3}, "the right choice has a place of its own"
    assert [item.choices for item in task.items(limit=4)] == [item.choices for item in items[:4]]


def test_fixed_choices_are_shown_in_their_own_order(tmp_path):
    write_answers(tmp_path, ["yes", "no", "yes"])
    task = make_task({"kind": "choose", "choices": ["yes", "no"]}, tmp_path)
    assert [item.choices for item in task.items()] == [("yes", "no")] * 3


def test_a_reference_that_is_not_among_the_choices_is_refused(tmp_path):
    write_answers(tmp_path, ["yes", "perhaps"])
    with pytest.raises(UserError, match="test/1: its reference 'perhaps' is not among the choices"):
        make_task({"kind": "choose", "choices": ["yes", "no"]}, tmp_path).items()


def test_more_distractors_than_answers_are_refused(tmp_path):
    write_answers(tmp_path, ["yes", "no", "perhaps"])
    with pytest.raises(UserError, match="5 distractors asked for, only 2 other answers exist"):
        make_task({"kind": "choose", "distractors": 5}, tmp_path).items()


def test_every_packaged_yaml_of_a_source_builds():
    from mmgpt.datasets.readers import AnySource

    folder = Path(mmgpt.configs.__file__).parent / "data"
    for path in folder.glob("*.yaml"):
        assert TypeAdapter(AnySource).validate_python(read_yaml(path)).label == path.stem

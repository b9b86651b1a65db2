import json
from pathlib import Path

import PIL.Image
import pytest
import yaml
from pydantic import TypeAdapter

import mmgpt.configs
from mmgpt.config import UserError, build, read_yaml
from mmgpt.datasets.media import Audio, Media
from mmgpt.datasets.sample import Message, Sample, Text
from mmgpt.evaluation.tasks.item import items_of
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task

TASKS = sorted(path.stem for path in (Path(mmgpt.configs.__file__).parent / "tasks").glob("*.yaml"))
NOT_AT_HAND = {"fsdd", "noto_emoji", "cifar10", "easy_vqa", "digits_and_shapes", "flickr8k"}
GENERATED = {name for name in TASKS if read_yaml(name, "tasks")["data"].get("reader") == "world"}


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
    assert config.exemplars != config.data


@pytest.mark.parametrize("name", sorted(GENERATED))
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
        ({"kind": "classify"}, "kind=classify needs choices, or exemplars whose answers are the classes"),
        ({"kind": "rank", "candidates": 1}, "candidates=1: Input should be greater than or equal to 2"),
        ({"candidates": 4}, "candidates is for kind=rank, not generate; leave it out or change kind"),
        ({"kind": "rank", "distractors": 4}, "distractors is for kind=choose, not rank"),
        ({"kind": "score", "choices": ["a", "b"]}, "choices is for kind=choose or classify or rank, not score"),
        ({"exemplar_split": "train"}, "exemplars are the test data itself; name another split or file"),
        ({"exemplar_split": "test", "exemplars": {"reader": "world", "name": "scenes"}}, "say the same in two ways"),
        ({"kind": "choose", "choices": ["a", "b"], "distractors": 1}, "either choices or distractors"),
        ({"kind": "rank", "choices": ["a", "b"], "candidates": 2}, "kind=rank needs either choices or candidates"),
        ({"kind": "choose", "choices": ["a"]}, "choices"),
        ({"metrics": ["exactmatch"]}, "metric 'exactmatch' does not exist; did you mean exact_match"),
        ({"metrics": []}, "metrics"),
        ({"metric": ["exact_match"]}, "metric is not a field of TaskConfig; did you mean metrics"),
        ({"promt": "{question}"}, "promt is not a field of TaskConfig; did you mean prompt"),
        ({"answer": "{a}"}, "made.yaml: answer is not a field of WorldConfig"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(changes, told):
    tree = {"name": "made", "data": {"reader": "world", "name": "scene_questions"}, **changes}
    with pytest.raises(UserError, match=told):
        build(TaskConfig, tree, "made.yaml")


CHART_QA = """
name: chart_qa
reader: {kind: jsonl, path: data/chart_qa/test.jsonl, ignore: [human, kind]}
prompt: "{image}\\n{question}\\nAnswer with one number or one word."
answer: "{answer}"
generate: {max_new_tokens: 16, temperature: 0.0}
metrics: [exact_match]
version: 1
"""


def write_charts(root: Path, splits=("test",)) -> None:
    (root / "data/chart_qa").mkdir(parents=True)
    PIL.Image.new("RGB", (8, 8), "red").save(root / "data/chart_qa/1.png")
    row = {"image": "data/chart_qa/1.png", "question": "How many?", "human": ["4", "four"], "kind": "bar"}
    for split in splits:
        rows = [{**row, "answer": "4"}, {**row, "answer": split}]
        (root / f"data/chart_qa/{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_a_task_may_tell_its_data_by_keys_of_its_own(tmp_path):
    write_charts(tmp_path)
    (tmp_path / "chart_qa.yaml").write_text(CHART_QA)
    items = Task(load_task(tmp_path / "chart_qa.yaml"), tmp_path).items()
    assert [(item.key, item.reference) for item in items] == [("chart_qa/test/0", "4"), ("chart_qa/test/1", "test")]
    picture, *words = items[0].messages[0].parts
    assert picture.load().size == (8, 8)
    assert "".join(part.text for part in words) == "\nHow many?\nAnswer with one number or one word."


def test_the_short_keys_say_what_data_and_exemplars_would(tmp_path):
    write_charts(tmp_path, ("dev", "train"))
    path = "data/chart_qa/{split}.jsonl"
    more = {"split": "dev", "exemplar_split": "train", "answers": "human", "tags": ["kind"], "image": "{image}"}
    tree = {**yaml.safe_load(CHART_QA), "reader": {"kind": "jsonl", "path": path}, **more, "choices": "human"}
    config = build(TaskConfig, tree, "made.yaml")
    table = {"reader": "table", "label": "chart_qa", "path": path, "image": "{image}", "answer": "{answer}"}
    table |= {"prompt": tree["prompt"], "answers": "human", "choices": "human", "tags": ["kind"]}
    long = {key: tree[key] for key in ("name", "generate", "metrics", "version")}
    long |= {"data": {**table, "split": "dev"}, "exemplars": {**table, "split": "train"}}
    assert config == build(TaskConfig, long, "long.yaml")
    assert build(TaskConfig, config.model_dump(), "again") == config
    task = Task(config, tmp_path)
    (item, _) = task.items()
    assert (item.references, item.choices, item.tags) == (("4", "four"), ("4", "four"), {"kind": "bar"})
    assert next(items_of(task.pool[1])).reference == "train"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reader": {"kind": "jsnl", "path": "a"}}, "made.yaml: reader.kind=jsnl is not known; did you mean jsonl"),
        ({"reader": {"path": "a"}}, r"reader has no kind; write reader: {kind: jsonl, path: FILE}"),
        ({"reader": {"kind": "jsonl", "pth": "a"}}, r"reader.pth is not a field of TableConfig; did you mean path\?"),
        ({"reader": {"kind": "jsonl"}}, "made.yaml: reader.path is missing"),
        ({"answer": 7}, "made.yaml: answer.*=7: Input should be"),
        ({"exemplar_split": 7}, "made.yaml: exemplar_split=7: Input should be a valid string"),
        ({"data": {"reader": "text", "path": "a"}}, "reader and data say the same in two ways; give one of them"),
        ({"metrics": ["exact"]}, "metric 'exact' does not exist"),
    ],
)
def test_a_fault_of_a_short_key_is_told_by_that_key(changes, told):
    with pytest.raises(UserError, match=told):
        build(TaskConfig, {**yaml.safe_load(CHART_QA), **changes}, "made.yaml")


def test_a_missing_answer_is_missed_where_it_would_be_written():
    tree = yaml.safe_load(CHART_QA)
    del tree["answer"]
    with pytest.raises(UserError, match=r"^made.yaml: answer is missing"):
        build(TaskConfig, tree, "made.yaml")


def test_a_prompt_lays_over_the_data_that_is_included(easy_vqa, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndata: {include: data/easy_vqa.yaml, split: test}\nexemplar_split: train\n"
        'prompt: "Look: {image} {question}"\n'
    )
    task = Task(load_task(tmp_path / "mine.yaml"), easy_vqa)
    assert task.items(limit=1)[0].question == "Look:  what shape is in the image?"
    assert next(items_of(task.pool[0])).question.startswith("Look: ")
    assert (task.test[0].key, task.pool[0].key) == ("easy_vqa/test/20", "easy_vqa/train/0")


def test_choices_may_be_templates_or_a_column_of_each_row(tmp_path):
    row = {"q": "Which?", "A": "ice", "B": "fire", "all": ["fire", "ice"], "right": "fire"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    reader = {"kind": "jsonl", "path": "rows.jsonl", "ignore": ["A", "B", "all"]}
    tree = {"name": "made", "reader": reader, "prompt": "{q}", "answer": "{right}"}
    for given, choices in ((["{A}", "{B}"], ("ice", "fire")), ("all", ("fire", "ice"))):
        config = build(TaskConfig, {**tree, "kind": "choose", "choices": given}, "made")
        assert Task(config, tmp_path).items()[0].choices == choices
    with pytest.raises(UserError, match="task made: kind=choose needs either choices or distractors"):
        Task(build(TaskConfig, {**tree, "kind": "choose"}, "made"), tmp_path)
    config = build(TaskConfig, {**tree, "kind": "choose", "choices": ["{A}", "{q}"]}, "made")
    with pytest.raises(UserError, match="reference 'fire' is not among the choices: ice, Which"):
        Task(config, tmp_path).items()


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


def test_a_text_alone_is_a_document():
    (item,) = items_of(Sample((Message.of("assistant", "once"),), key="k"))
    assert (item.messages, item.question, item.reference) == ((), "", "once")


@pytest.mark.parametrize("messages", [(Message.of("user", "a"),), ()])
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
    from mmgpt.datasets.readers.registry import AnySource

    folder = Path(mmgpt.configs.__file__).parent / "data"
    for path in folder.glob("*.yaml"):
        assert TypeAdapter(AnySource).validate_python(read_yaml(path)).label == path.stem


@pytest.mark.parametrize(("choices", "told"), [(["yes", "yes "], "is there twice"), (["yes", " "], "one is empty")])
def test_choices_of_a_task_that_cannot_be_told_apart_are_refused(choices, told):
    from mmgpt.evaluation.tasks.task import TaskConfig

    with pytest.raises(ValueError, match=told):
        TaskConfig(name="t", kind="choose", choices=choices, data={"reader": "world", "name": "scene_questions"})

"""YAML of lm-evaluation-harness and lmms-eval read as tasks of ours."""

import json

import PIL.Image
import pytest
import yaml

from mmgpt.config import UserError, to_yaml
from mmgpt.evaluation.tasks.harness_import import import_task
from mmgpt.evaluation.tasks.task import Task, load_task

MY_VQA = """
tag: [visual]
task: my_vqa
dataset_path: data/my_vqa
test_split: test
output_type: generate_until
num_fewshot: 4
fewshot_split: train
doc_to_image: [image]
doc_to_text: "<image>Question: {{question}}\\nAnswer {briefly}:"
doc_to_target: answer
generation_kwargs: {max_new_tokens: 16, do_sample: false, temperature: 0.7, until: ["\\n\\n"]}
metric_list: [{metric: vqa_acc, aggregation: mean, higher_is_better: true}]
metadata: [{version: 1.0}]
"""
CHOOSING = """
task: science
dataset_path: data/my_vqa
output_type: multiple_choice
validation_split: test
doc_to_text: "{{ question }}"
doc_to_target: "{{label}}"
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}, {metric: acc_norm, aggregation: mean}]
metadata: {version: 2.0}
"""


@pytest.fixture(autouse=True)
def root(tmp_path):
    folder = tmp_path / "data/my_vqa"
    folder.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    row = {"image": "a.png", "question": "Which?", "answer": "fire", "label": 1, "options": ["ice", "fire"]}
    for split in ("train", "test"):
        lines = [{**row, "question": f"Which {split}?"}, {**row, "label": 0}]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def write(root):
    def put(text: str, **changes) -> str:
        tree = {key: value for key, value in {**yaml.safe_load(text), **changes}.items() if value != "-"}
        (root / "theirs.yaml").write_text(yaml.safe_dump(tree))
        return root / "theirs.yaml"

    return put


def test_a_generating_task_is_the_one_written_in_our_keys(root, write):
    config = import_task(write(MY_VQA), root)
    assert (config.name, config.kind, config.metrics, config.version) == ("my_vqa", "generate", ["vqa_accuracy"], 1)
    assert config.generate.max_new_tokens == 16
    assert config.generate.temperature == 0
    assert config.generate.stop == ("\n\n",)
    task = Task(config, root)
    picture, *words = task.items()[0].messages[0].parts
    assert picture.load().size == (8, 8)
    assert "".join(part.text for part in words) == "Question: Which test?\nAnswer {briefly}:"
    assert task.items()[0].reference == "fire"
    assert task.pool[0].messages[0].text == "Question: Which train?\nAnswer {briefly}:"


@pytest.mark.parametrize("theirs", [MY_VQA, CHOOSING])
def test_it_can_be_written_as_yaml_and_what_else_the_file_held_is_told(theirs, root, write):
    path, told = write(theirs), []
    imported = import_task(path, root, told.append)
    (root / "ours.yaml").write_text(to_yaml(imported))
    assert load_task(root / "ours.yaml") == imported
    shots = "its num_fewshot is --shots 4"
    norm = "acc_norm is by the token here, theirs by the byte; for acc set length_normalise: false"
    assert told == [f"{path}: {shots if theirs == MY_VQA else norm}"]


@pytest.mark.parametrize(
    ("changes", "choices", "references"),
    [
        ({}, [("ice", "fire")] * 2, ["fire", "ice"]),
        ({"doc_to_choice": "options"}, [("ice", "fire")] * 2, ["fire", "ice"]),
        ({"doc_to_target": "answer"}, [("ice", "fire")] * 2, ["fire", "fire"]),
        ({"doc_to_choice": ["A", "B"]}, [("A", "B")] * 2, ["B", "A"]),
        ({"doc_to_choice": ["{{answer}}", "or"], "doc_to_target": "{{answer}}"}, [("fire", "or")] * 2, ["fire"] * 2),
    ],
)  # fmt: skip
def test_a_task_of_choices_has_theirs_and_the_right_one(changes, choices, references, root, write):
    config = import_task(write(CHOOSING, **changes), root)
    assert (config.kind, config.length_normalise, config.metrics, config.version) == (
        "choose",
        True,
        ["choice_accuracy"],
        2,
    )
    items = Task(config, root).items()
    assert [item.choices for item in items] == choices
    assert [item.reference for item in items] == references
    assert items[0].question == "Which test?"


def test_accuracy_alone_is_not_normalised(root, write):
    assert not import_task(write(CHOOSING, metric_list=[{"metric": "acc"}]), root).length_normalise


def test_a_text_to_score_is_a_document(root, write):
    tree = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"}
    path = write(MY_VQA, **tree, metric_list=[{"metric": "word_perplexity"}], doc_to_image=None, generation_kwargs=None)
    config = import_task(path, root)
    assert (config.kind, config.metrics) == ("score", ["word_perplexity"])
    item = Task(config, root).items()[0]
    assert (item.messages, item.reference) == ((), "Which test?")


@pytest.mark.parametrize(
    ("given", "temperature"),
    [({}, 0), ({"do_sample": True}, 1), ({"temperature": 0.5}, 0.5), ({"do_sample": False, "temperature": 0.5}, 0)],
)
def test_sampling_is_theirs(given, temperature, root, write):
    assert import_task(write(MY_VQA, generation_kwargs=given), root).generate.temperature == temperature


def test_an_included_file_lies_below_the_task_and_files_may_be_named(root, write):
    (root / "base.yaml").write_text(MY_VQA)
    files = {"data_files": {"test": "data/my_vqa/test.jsonl", "train": "data/my_vqa/train.jsonl"}}
    path = write("include: base.yaml", task="other", dataset_path="json", dataset_kwargs=files, doc_to_image="-")
    path.write_text(path.read_text() + "doc_to_image: null\n")
    config = import_task(path, root)
    assert (config.name, config.data.path, config.exemplars.path) == ("other", *files["data_files"].values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"doc_to_text": "{{question.strip()}}"}, r"doc_to_text: '{{question.strip\(\)}}' is Jinja beyond a bare"),
        ({"doc_to_text": "{% if question %}x"}, "doc_to_text: '{% if question %}' is Jinja"),
        ({"doc_to_target": "{{answer|upper}}"}, "doc_to_target: .* put it into a column"),
        ({"doc_to_text": "{{questoin}}"}, "doc_to_text: the data has no column questoin; did you mean question"),
        ({"doc_to_target": "anwser"}, "doc_to_target: the data has no column anwser; did you mean answer"),
        ({"doc_to_txt": "x"}, "doc_to_txt: not known; did you mean doc_to_text"),
        ({"output_type": "generate"}, "output_type: 'generate' is not known; did you mean generate_until"),
        ({"metric_list": [{"metric": "ter"}]}, "metric_list: metric 'ter' has no like here"),
        ({"metric_list": [{"metric": "exact_match", "ignore_case": True}]}, "exact_match with ignore_case: True"),
        ({"metric_list": [{"metric": "acc", "aggregation": "f1"}]}, "acc with aggregation: f1 has no like here"),
        ({"filter_list": [{"name": "x"}]}, "filter_list: .* cannot be carried over; write the task"),
        ({"description": "Be brief."}, "description: 'Be brief.' cannot be carried over"),
        ({"generation_kwargs": {"best_of": 3}}, "generation_kwargs.best_of: cannot be carried over"),
        ({"dataset_kwargs": {"streaming": True}}, "dataset_kwargs.streaming: cannot be carried over"),
        ({"dataset_path": "org/set"}, "dataset_path=org/set: no file or folder below the data root; download it there"),
        ({"test_split": "dev"}, r"my_vqa: no dev.jsonl, .json, .csv, .tsv or .parquet there"),
        ({"test_split": "-"}, "test_split: not given, nor validation_split"),
        ({"doc_to_target": "-"}, "doc_to_target: not given; name the column"),
        ({"doc_to_text": "<image><image>"}, "doc_to_text: several <image>"),
        ({"output_type": "multiple_choice"}, "doc_to_choice: not given"),
        ({"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "doc_to_target": 1}, "1 is the same choice"),
        ({"task": "-"}, "task: not given; name it"),
        ({"fewshot_split": "test"}, "exemplars are the test data itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_over_is_refused_by_its_key(changes, told, root, write):
    with pytest.raises(UserError, match=told):
        import_task(write(MY_VQA, **changes), root)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("doc_to_messages: !function utils.to_messages", "doc_to_messages: !function utils.to_messages is Python"),
        (
            "metric_list: [{metric: !function m.f}]",
            r"metric_list.0.metric: !function m\.f is Python; put what it makes",
        ),
        ("- a", "not valid YAML"),
    ],
)
def test_python_in_the_yaml_is_refused_by_its_key(line, told, root):
    others = [one for one in MY_VQA.splitlines() if one.partition(":")[0] != line.partition(":")[0]]
    (root / "theirs.yaml").write_text("\n".join([*others, line, ""]))
    with pytest.raises(UserError, match=told):
        import_task(root / "theirs.yaml", root)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric_list": "acc"}, "metric_list: 'acc' is not a list"),
        ({"metric_list": ["acc"]}, "metric_list: 'acc' is no mapping; write - metric: NAME"),
        ({"generation_kwargs": 5}, "generation_kwargs: '5' is not a mapping"),
        (
            {"generation_kwargs": {"do_sample": "no"}},
            "generation_kwargs.do_sample: 'no' is no boolean; write true or f",
        ),
        ({"output_type": ["generate_until"]}, r"output_type: .* is not a text"),
        ({"test_split": 5}, "test_split: '5' is not a text"),
        ({"num_fewshot": True}, "num_fewshot: 'True' is not a whole number"),
        ({"metadata": "v1"}, "metadata: 'v1' is not a mapping or a list"),
        ({"metadata": {"version": "one"}}, "metadata.version: 'one' is no number"),
        ({"include": ["a.yaml", "a.yaml"]}, "include names a.yaml twice"),
        ({"include": 5}, "include=5: is no file name"),
        ({"include": "a.yaml"}, r"theirs.yaml: include: .*a.yaml: no such file"),
    ],
)
def test_a_key_of_another_type_is_refused_by_its_name(changes, told, root, write):
    with pytest.raises(UserError, match=told):
        import_task(write(MY_VQA, **changes), root)


def test_of_several_includes_the_first_wins_as_it_does_in_the_harness(root, write):
    (root / "first.yaml").write_text("task: first\n")
    (root / "second.yaml").write_text("task: second\nnum_fewshot: 2\n")
    path = write(MY_VQA, task="-", num_fewshot="-", include=["first.yaml", "second.yaml"])
    told = []
    assert import_task(path, root, told.append).name == "first"
    assert told == [f"{path}: its num_fewshot is --shots 2"]


def test_a_file_that_is_not_there_is_told(root):
    with pytest.raises(UserError, match=r"nothing\.yaml: no such file; give the YAML of a task"):
        import_task(root / "nothing.yaml", root)

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmgpt.config import UserError, build
from mmgpt.datasets.sample import Message
from mmgpt.evaluation import metrics
from mmgpt.evaluation.metrics import Metric
from mmgpt.evaluation.predict import PromptedItem, answers, check_items, room_of
from mmgpt.evaluation.run import evaluate, rescore
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task

CHOICES = ["circle", "triangle", "rectangle", "red", "green", "blue", "teal", "yes", "no"]


def task(kind: str, **changes) -> TaskConfig:
    choices = CHOICES if kind in ("choose", "classify", "rank") else None
    tree = load_task("easy_vqa").model_dump() | {"kind": kind, "choices": choices, "metrics": ["choice_accuracy"]}
    return build(TaskConfig, tree | changes, "made")


def questions(config: TaskConfig, root, count: int = 21) -> list[PromptedItem]:
    return [PromptedItem(n, item, item.messages) for n, item in enumerate(Task(config, root).items(count))]


def test_classifying_gives_probabilities_over_the_labels(answerer, easy_vqa):
    asked = questions(task("classify"), easy_vqa, 5)
    for question, answer in zip(asked, answers(answerer, task("classify"), asked, 2), strict=True):
        chosen = answerer.choose(question.messages, CHOICES)
        assert answer.prediction == chosen.text
        wanted = torch.tensor(chosen.logprobs).softmax(0)
        assert [math.exp(one) for one in answer.logprobs] == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["choose", "rank"])
@pytest.mark.parametrize("normalise", [False, True])
def test_choosing_and_ranking_keep_the_log_probability_of_every_choice(kind, normalise, answerer, easy_vqa):
    config = task(kind, length_normalise=normalise)
    asked = questions(config, easy_vqa, 5)
    for question, answer in zip(asked, answers(answerer, config, asked, 2), strict=True):
        chosen = answerer.choose(question.messages, CHOICES, normalise=normalise)
        assert answer.logprobs == pytest.approx(tuple(chosen.logprobs), abs=1e-5)
        assert answer.prediction == CHOICES[int(np.argmax(answer.logprobs))] == chosen.text


@pytest.mark.parametrize("kind", ["classify", "rank"])
def test_samples_hold_the_log_probabilities_that_scores_are_computed_from(
    kind, answerer, easy_vqa, tmp_path, monkeypatch
):
    spread = Metric(lambda some: np.array([[max(one.logprobs) - min(one.logprobs)] for one in some]))
    monkeypatch.setitem(metrics.METRICS, "spread", spread)
    found = evaluate(answerer, [task(kind, metrics=["spread"])], data_root=easy_vqa, out=tmp_path)
    assert found.value("easy_vqa", "spread") > 0
    assert rescore(tmp_path / "samples-easy_vqa-0.jsonl") == found.results[0]["metrics"]


def test_documents_are_scored_as_plain_text_without_blind_baselines(answerer, tmp_path, monkeypatch):
    mean = Metric(lambda some: np.array([[-sum(one.logprobs), len(one.logprobs)] for one in some]), _per_token)
    monkeypatch.setitem(metrics.METRICS, "nats", mean)
    texts = ["what shape is in the image?", "does the image contain a circle? " * 40, "yes and no"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    data = {"reader": "text", "path": "texts.txt", "unit": "line"}
    config = build(TaskConfig, {"name": "lines", "kind": "score", "data": data, "metrics": ["nats"]}, "made")
    found = evaluate(answerer, [config], data_root=tmp_path, out=tmp_path / "out", blind=True, batch_size=2)
    wanted = answerer.score_texts([""] * 3, texts)
    for row, logprobs, text in zip(found.samples["lines-0"], wanted, texts, strict=True):
        assert (row["messages"], row["references"]) == ([], [text])
        assert row["logprobs"] == pytest.approx(logprobs, abs=1e-5)
    total = -sum(map(sum, wanted)) / sum(map(len, wanted))
    assert found.value("lines", "nats") == pytest.approx(total, abs=1e-6)
    assert found.results[0]["blind"] is None
    assert rescore(tmp_path / "out" / "samples-lines-0.jsonl") == found.results[0]["metrics"]
    asked_with_shots = evaluate(answerer, [config], shots=[0, 2], data_root=tmp_path)
    assert [row["shots"] for row in asked_with_shots.results] == [0]  # a text has no examples before it


def _per_token(sums_S, count: int) -> float:
    return float(sums_S[0] / sums_S[1])


def test_a_sampled_answer_depends_on_the_item_s_number_alone(answerer, easy_vqa):
    config = task("generate", generate={"max_new_tokens": 6, "temperature": 1.0, "seed": 3}, metrics=["exact_match"])
    asked = questions(config, easy_vqa)
    whole = [answer.prediction for answer in answers(answerer, config, asked, 32)]
    assert len(set(whole)) > 5
    for some in (asked[3::2], asked[7:], [asked[2], asked[11], asked[20]]):
        found = [answer.prediction for answer in answers(answerer, config, some, 2)]
        assert found == [whole[question.number] for question in some]


@pytest.mark.parametrize("kind", ["generate", "choose"])
def test_an_item_that_cannot_be_answered_is_named_and_those_before_it_are_answered(kind, answerer, easy_vqa):
    config = task(kind, metrics=["exact_match"])
    asked = questions(config, easy_vqa, 11)
    long = (Message.of("user", "what shape is in the image? " * 100),)
    asked[7] = PromptedItem(7, asked[7].item, long)
    found = []
    with pytest.raises(UserError, match=re.escape(asked[7].item.key) + ": .*the context of 320"):
        found += answers_until_error(answers(answerer, config, asked, 4), found)
    wanted = [answer.prediction for answer in answers(answerer, config, asked[:7], 4)]
    assert [answer.prediction for answer in found] == wanted


def answers_until_error(given, found: list) -> list:
    for answer in given:
        found.append(answer)
    return []


@pytest.mark.parametrize("kind", ["generate", "choose", "classify"])
def test_logits_that_are_not_numbers_are_told_with_the_item(kind, answerer, easy_vqa):
    answerer.model.decoder.head.weight.data[5] = float("nan")
    config = task(kind, metrics=["exact_match"])
    asked = questions(config, easy_vqa, 3)
    with pytest.raises(FloatingPointError, match=f"^{re.escape(asked[0].item.key)}: the model's logits are not"):
        list(answers(answerer, config, asked, 2))


@pytest.mark.parametrize(
    ("kind", "item", "told"),
    [
        ("generate", TaskItem("a/0", (), "text", ("text",)), "a/0: is a document, which asks nothing; use kind=score"),
        (
            "choose",
            TaskItem("a/0", (Message.of("user", "?"),), "b", ("b",), ("b",)),
            "a/0: kind=choose needs two choices",
        ),
    ],
)
def test_items_that_do_not_suit_the_kind_are_refused_by_their_key(kind, item, told, answerer, easy_vqa, monkeypatch):
    monkeypatch.setattr(Task, "items", lambda self, limit: [item])
    with pytest.raises(UserError, match=re.escape(told)):
        evaluate(answerer, [task(kind)], data_root=easy_vqa)


def test_labels_that_differ_from_item_to_item_are_refused(answerer, easy_vqa, monkeypatch):
    asked = (Message.of("user", "?"),)
    items = [TaskItem(f"a/{n}", asked, "b", ("b",), ("b", "c", "d")[: 2 + n]) for n in range(2)]
    monkeypatch.setattr(Task, "items", lambda self, limit: items)
    with pytest.raises(UserError, match="a/1: kind=classify needs the same choices for every item"):
        evaluate(answerer, [task("classify")], data_root=easy_vqa)


def test_the_room_for_an_answer_is_enough_for_the_longest_choice(answerer):
    item = TaskItem("a/0", (Message.of("user", "?"),), "b", ("b",), ("b", "a longer one \u00e9"))
    assert room_of(task("choose"), item) > len(answerer.tokenizer.encode("a longer one \u00e9"))
    assert room_of(task("generate"), item) == 8


def test_a_choice_with_spaces_or_twice_has_the_score_of_the_bare_one(answerer, easy_vqa):
    config = task("choose")
    item = Task(config, easy_vqa).items(1)[0]
    asked = [
        PromptedItem(number, replace(item, choices=choices), item.messages)
        for number, choices in enumerate([("yes", "no"), (" yes", "no\n"), ("yes", "no", " yes ")])
    ]
    bare, spaced, double = answers(answerer, config, asked, 4)
    assert spaced.logprobs == pytest.approx(bare.logprobs)
    assert double.logprobs == pytest.approx((*bare.logprobs, bare.logprobs[0]))
    assert bare.prediction == spaced.prediction.strip() == double.prediction.strip()


def test_a_right_answer_that_a_metric_cannot_read_is_told_before_all_is_asked(easy_vqa):
    config = load_task("easy_vqa").model_copy(update={"metrics": ["pope_accuracy"]})
    items = Task(config, easy_vqa).items()
    with pytest.raises(UserError, match=r"task easy_vqa, .*: the right answer '.*' is neither yes nor no"):
        check_items(config, items)

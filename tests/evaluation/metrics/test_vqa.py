import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.vqa import normalise, vqa_accuracy


@pytest.fixture(scope="module")
def official(data_packs):
    pack = data_packs / "vqa_metrics"
    if not pack.is_dir():
        pytest.skip(f"no official VQA figures at {pack}")
    rows = json.loads(gzip.decompress((pack / "vqa_annotatons_test.gzip").read_bytes()))["annotations"]
    answers = {row["question_id"]: [answer["answer"] for answer in row["answers"]] for row in rows}
    predictions = {row["question_id"]: row["answer"] for row in json.loads((pack / "fake_results.json").read_text())}
    return rows, answers, predictions, json.loads((pack / "fake_results_expected.json").read_text())


def test_every_question_has_the_score_of_the_official_tool(official):
    _, answers, predictions, expected = official
    found = {str(key): round(100 * vqa_accuracy(predictions[key], some), 2) for key, some in answers.items()}
    assert found == expected["evalQA"]


@pytest.mark.parametrize(
    ("predict", "overall", "by_type"),
    [
        (lambda row: "yes", 22.37, {"yes/no": 64.10, "number": 0.06, "other": 0.83}),
        (lambda row: row["multiple_choice_answer"], 96.74, {"yes/no": 100.00, "number": 96.37, "other": 93.71}),
        (lambda row: row["answers"][0]["answer"], 87.70, {"yes/no": 96.62, "number": 87.65, "other": 78.42}),
    ],
)
def test_plain_guesses_score_as_in_the_official_tool(official, predict, overall, by_type):
    rows, answers, *_ = official
    scores = [(row["answer_type"], vqa_accuracy(predict(row), answers[row["question_id"]])) for row in rows]
    assert round(100 * sum(score for _, score in scores) / len(scores), 2) == overall
    for name, value in by_type.items():
        of_type = [score for kind, score in scores if kind == name]
        assert round(100 * sum(of_type) / len(of_type), 2) == value


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_each_annotator_is_left_out_in_turn(matches, score):
    assert vqa_accuracy("red", ["red"] * matches + [f"colour {i}" for i in range(10 - matches)]) == pytest.approx(score)


def test_answers_are_normalised_only_where_they_are_not_all_the_same():
    assert vqa_accuracy("The Dog.", ["dog"] * 9 + ["cat"]) == 1.0
    assert vqa_accuracy("The Dog.", ["dog"] * 10) == 0.0
    assert vqa_accuracy(" dog\n", ["dog"] * 10) == 1.0


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("A Couple of dogs!", "couple of dogs"),
        ("twenty-two", "twenty 2"),
        ("well , yes", "well yes"),
        ("1,000/2", "10002"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("youd've", "you'd've"),
        ("somebody'd", "somebodyd"),
        ("3.5 p.m.", "3.5 pm"),
    ],
)
def test_normalising_follows_the_official_order(answer, normal):
    assert normalise(answer) == normal


@given(st.lists(st.sampled_from(["red", "a red", "2", "two", "blue"]), min_size=1, max_size=12), st.randoms())
def test_the_order_of_annotators_does_not_matter_and_agreement_is_right(answers, random):
    shuffled = random.sample(answers, len(answers))
    assert vqa_accuracy("red", answers) == pytest.approx(vqa_accuracy("red", shuffled))
    assert 0 <= vqa_accuracy("red", answers) <= 1
    assert vqa_accuracy("red", ["red"] * len(answers)) == 1.0


def test_no_answers_at_all_are_refused():
    with pytest.raises(ValueError, match="at least one answer"):
        vqa_accuracy("red", [])

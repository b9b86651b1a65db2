import math

import numpy as np
import pytest

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction
from mmgpt.evaluation.metrics.choices import letter_of


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. a dog", "B"),
        ("(C) a cat", "C"),
        ("Answer: D", "D"),
        ("The answer is (D).", "D"),
        ("It is A at first, but the answer is C", "C"),
        ("I think (B) fits", "B"),
        ("a dog", "A"),
        ("Cat.", "B"),
        ("A bird", None),
        ("", None),
    ],
)
def test_letters_are_read_from_the_ways_models_answer(text, letter):
    assert letter_of(text, ("a dog", "cat", "a cow", "none of these")) == letter


def test_a_right_choice_may_be_told_by_letter_or_text():
    choices = ("dog", "cat")
    metric = METRICS["choice_letter"]
    assert metric.value([ScoredPrediction("(B)", ("cat",), choices), ScoredPrediction("cat", ("B",), choices)]) == 1.0
    assert metric.value([ScoredPrediction("dunno", ("cat",), choices), ScoredPrediction("A", ("B",), choices)]) == 0.0


def test_pope_figures_are_those_of_its_confusion_matrix():
    answers = ["Yes.", "yes, it is", "No", "there is not one", "yes", "maybe"]
    rights = ["yes", "yes", "yes", "no", "no", "no"]
    some = [ScoredPrediction(said, (right,)) for said, right in zip(answers, rights, strict=True)]
    found = {
        name: METRICS[f"pope_{name}"].value(some) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")
    }
    assert found == pytest.approx(
        {"accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 6}
    )
    assert METRICS["pope_f1"].value([ScoredPrediction("no", ("no",))]) == 0.0


def test_label_metrics_equal_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    right = rng.choice(["ant", "bee", "cow"], 60, p=[0.6, 0.3, 0.1])
    said = np.where(rng.random(60) < 0.6, right, rng.choice(["ant", "bee", "cow"], 60))
    some = [ScoredPrediction(str(a), (str(b),)) for a, b in zip(said, right, strict=True)]
    assert METRICS["macro_f1"].value(some) == pytest.approx(sklearn.f1_score(right, said, average="macro"))
    assert METRICS["balanced_accuracy"].value(some) == pytest.approx(sklearn.balanced_accuracy_score(right, said))


def test_an_answer_that_is_no_label_counts_against_recall_alone():
    some = [ScoredPrediction("ant", ("ant",)), ScoredPrediction("what", ("bee",))]
    assert METRICS["macro_f1"].value(some) == pytest.approx(0.5)
    assert METRICS["balanced_accuracy"].value(some) == pytest.approx(0.5)


def test_calibration_error_is_the_gap_between_confidence_and_share_of_right():
    sure = (math.log(0.9), math.log(0.1))
    some = [ScoredPrediction("a", ("a",), ("a", "b"), sure)] * 6 + [ScoredPrediction("a", ("b",), ("a", "b"), sure)] * 4
    half = [
        ScoredPrediction("a", ("a",), ("a", "b"), (0.0, 0.0)),
        ScoredPrediction("a", ("b",), ("a", "b"), (0.0, 0.0)),
    ]
    assert METRICS["ece"].value(some) == pytest.approx(0.3)
    assert METRICS["ece"].value(half) == pytest.approx(0.0)
    assert METRICS["ece"].value(some + half) == pytest.approx(0.3 * 10 / 12)
    shifted = [ScoredPrediction("a", ("a",), ("a", "b"), (sure[0] - 50, sure[1] - 50))]
    assert METRICS["ece"].value(shifted) == pytest.approx(0.1)


def test_calibration_needs_the_scores_of_the_choices():
    with pytest.raises(UserError, match="0 choices and 0 scores"):
        METRICS["ece"].value([ScoredPrediction("a", ("a",))])


def test_ranks_count_ties_against_the_right_one():
    def ranked(*logprobs, right=("a",)):
        return [ScoredPrediction("", right, ("a", "b", "c", "d", "e", "f", "g"), logprobs)]

    first, second, tied = ranked(9, 1, 2, 3, 4, 5, 6), ranked(5, 6, 1, 1, 1, 1, 1), ranked(1, 1, 1, 1, 1, 1, 1)
    assert METRICS["recall@1"].value(first + second + tied) == pytest.approx(1 / 3)
    assert METRICS["recall@5"].value(first + second + tied) == pytest.approx(2 / 3)
    assert METRICS["mrr"].value(first + second + tied) == pytest.approx((1 + 1 / 2 + 1 / 7) / 3)
    assert METRICS["mrr"].value(ranked(1, 2, 3, 4, 5, 6, 7, right=("a", "f"))) == 0.5
    with pytest.raises(UserError, match="none of the 7 choices"):
        METRICS["mrr"].value(ranked(1, 2, 3, 4, 5, 6, 7, right=("z",)))


def test_perplexities_have_their_closed_forms():
    some = [
        ScoredPrediction("", ("a b",), logprobs=(-1.0, -2.0)),
        ScoredPrediction("", ("\u00e9 cd e",), logprobs=(-3.0,)),
    ]
    assert METRICS["perplexity"].value(some) == pytest.approx(math.exp(6 / 3))
    assert METRICS["word_perplexity"].value(some) == pytest.approx(math.exp(6 / 5))
    assert METRICS["bits_per_byte"].value(some) == pytest.approx(6 / 10 / math.log(2))
    with pytest.raises(UserError, match="kind score"):
        METRICS["perplexity"].value([ScoredPrediction("", ("a",))])

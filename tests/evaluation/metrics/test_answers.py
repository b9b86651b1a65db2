import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.answers import SCORES, edits, last_number


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "score"),
    [
        ("anls", "Coca-Cola", ("coca cola",), 8 / 9),
        ("anls", "cat", ("dog", "CAT "), 1.0),
        ("anls", "ab", ("ad",), 0.5),  # one half counts
        ("anls", "abc", ("axy",), 0.0),
        ("relaxed_accuracy", "104.9", ("100",), 1.0),
        ("relaxed_accuracy", "105.1", ("100",), 0.0),
        ("relaxed_accuracy", "50%", ("0.51",), 1.0),
        ("relaxed_accuracy", "0.01", ("0",), 0.0),
        ("relaxed_accuracy", "France", ("france",), 1.0),
        ("token_f1", "the red barn", ("a barn",), 2 / 3),
        ("token_f1", "blue", ("red", "Blue!"), 1.0),
        ("token_f1", "the", ("a",), 1.0),  # without words on either side, as SQuAD 2.0
        ("last_number", "So 3 + 4 = 7, that is $1,234.50.", ("step 1 #### 1234.5",), 1.0),
        ("last_number", "10-5", ("5",), 1.0),
        ("last_number", "it is -5", ("5",), 0.0),
        ("last_number", "none", ("5",), 0.0),
    ],
)
def test_scores_of_known_cases(metric, prediction, references, score):
    assert SCORES[metric](prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"), [("1,000,000", "1000000"), ("72.", "72"), ("a1", "1"), (".5", "0.5"), ("3.25 and x2", "2")]
)
def test_the_last_number_of_a_text_is_found(text, number):
    assert str(last_number(text)).lstrip("0") == number.lstrip("0")


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_edit_distance_is_a_distance(one, other, third):
    assert edits(one, other) == edits(other, one)
    assert (edits(one, other) == 0) == (one == other)
    assert edits(one, third) <= edits(one, other) + edits(other, third)
    assert edits(one, other) <= max(len(one), len(other))

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.evaluation.metrics import METRICS, Answered, exact_match, summary


def of_scores(scores):
    return summary(METRICS["exact_match"], np.array(scores)[:, None])


def test_exact_match_forgives_outer_white_space_alone():
    assert exact_match(" yes\n", ("no", "yes")) == 1.0
    assert exact_match("Yes", ("yes",)) == 0.0
    assert exact_match("yes.", ("yes",)) == 0.0
    assert exact_match("", ("",)) == 1.0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (Wilson without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilson_s_as_published(hits, count, low, high):
    found = of_scores([1.0] * hits + [0.0] * (count - hits))
    assert found["value"] == pytest.approx(hits / count)
    assert found["ci95"] == pytest.approx([low, high], abs=5e-5)


@given(st.integers(1, 400), st.data())
def test_the_interval_holds_the_mean_and_mirrors_when_hits_and_misses_swap(count, data):
    hits = data.draw(st.integers(0, count))
    found = of_scores([1.0] * hits + [0.0] * (count - hits))
    mirrored = of_scores([0.0] * hits + [1.0] * (count - hits))
    low, high = found["ci95"]
    assert 0 <= low <= found["value"] + 1e-12
    assert found["value"] - 1e-12 <= high <= 1
    assert mirrored["ci95"] == pytest.approx([1 - high, 1 - low], abs=1e-9)


def test_the_standard_error_is_that_of_the_mean():
    assert of_scores([0.0, 0.25, 1.0, 0.75])["stderr"] == pytest.approx(math.sqrt(0.625 / 3 / 4))
    assert of_scores([1.0])["stderr"] == 0.0


def test_every_metric_gives_one_for_the_reference_itself():
    for metric in METRICS.values():
        assert metric.value([Answered("a red circle", ("a red circle",))]) == 1.0
        assert metric.value([Answered("a red circle", ("no",))]) == 0.0

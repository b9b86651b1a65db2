import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.evaluation.metrics import METRICS, ScoredPrediction, exact_match, interval
from mmgpt.evaluation.metrics.answers import SCORES


def of_scores(scores):
    return interval(METRICS["exact_match"], np.array(scores)[:, None])


def test_exact_match_forgives_writing_alone():
    assert exact_match(" yes\n", ("no", "yes")) == 1.0
    assert exact_match("Yes", ("yes",)) == 0.0
    assert exact_match("yes.", ("yes",)) == 1.0
    assert exact_match("yes it is", ("yes",)) == 0.0
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


@pytest.mark.parametrize("name", [*SCORES, "vqa_accuracy", "rouge_l", "choice_accuracy", "wer", "bleu", "macro_f1"])
def test_the_reference_itself_is_right_and_another_word_is_not(name):
    perfect, none = (0.0, 1.0) if name == "wer" else (1.0, 0.0)
    right = "17 red circles here" if name != "macro_f1" else "yes"
    assert METRICS[name].value([ScoredPrediction(right, (right,))]) == pytest.approx(perfect)
    assert METRICS[name].value([ScoredPrediction("no", (right,))]) == pytest.approx(none, abs=0.05)  # bleu is smoothed


def drawn(count, seed=0):
    """Answers that every metric can read: texts, choices and their scores."""
    rng = np.random.default_rng(seed)
    texts = [
        "yes",
        "no",
        "a dog runs in the snow",
        "two dogs play on the beach",
        "A. 12 men ride red horses, don't they",
    ]
    found = []
    for _ in range(count):
        said, right, other = (texts[at] for at in rng.choice(len(texts), 3, replace=True))
        said = right if rng.random() < 0.5 else said
        choices = (right, *(f"{other} {word}" for word in ("not", "but", "why", "how", "who", "now")))
        found.append(ScoredPrediction(said, (right, *([other] * 3)), choices, tuple(-rng.exponential(2.0, 7))))
    return found


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_figure_of_sums_that_no_order_changes(name):
    metric, some = METRICS[name], drawn(40)
    statistics_NS = metric.sample_stats(some)
    assert statistics_NS.shape[0] == 40
    assert statistics_NS.dtype == np.float64
    value = metric.compute(statistics_NS.sum(axis=0), 40)
    assert metric.value(some[::-1]) == pytest.approx(value, abs=1e-9)
    assert len(metric.per_sample(statistics_NS)) == 40
    if metric.is_mean_of_scores:
        assert np.mean(metric.per_sample(statistics_NS)) == pytest.approx(value)
    if name not in {"cider", "macro_f1", "balanced_accuracy"}:  # which look at the whole set
        parts = np.concatenate([metric.sample_stats(some[:13]), metric.sample_stats(some[13:])])
        assert parts == pytest.approx(statistics_NS)


@pytest.mark.parametrize("name", METRICS)
def test_the_interval_of_every_metric_holds_its_value(name):
    found = interval(METRICS[name], METRICS[name].sample_stats(drawn(60, seed=1)))
    low, high = found["ci95"]
    assert low <= found["value"] <= high
    assert 0 < found["stderr"] < math.inf


def test_metrics_are_light_to_import():
    heavy = {"torch", "jiwer", "sacrebleu", "whisper_normalizer"}
    code = f"import sys, mmgpt.evaluation.metrics; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr

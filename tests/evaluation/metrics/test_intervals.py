"""Intervals hold the true figure as often as they say: 95 of 100 times, by simulation."""

import math

import numpy as np
import pytest

from mmgpt.evaluation.metrics import METRICS, Metric, interval
from mmgpt.evaluation.metrics.intervals import mean_interval, t95, wilson

SETS = 600


def coverage(interval, draw, true, count, sets=SETS, seed=0):
    rng = np.random.default_rng(seed)
    intervals = [interval(draw(rng, count)) for _ in range(sets)]
    return sum(low <= true <= high for low, high in intervals) / sets


def outcomes(rng, count):
    return (rng.random(count) < 0.8).astype(float)


def rouge(rng, count):
    return rng.beta(4, 7, count)


def token_f1(rng, count):
    return np.where(rng.random(count) < 0.45, 1.0, np.where(rng.random(count) < 0.6, 0.0, rng.beta(2, 2, count)))


def anls(rng, count):
    return np.where(rng.random(count) < 0.7, 0.0, rng.uniform(0.5, 1, count))


@pytest.mark.parametrize("count", [30, 75, 200])
@pytest.mark.parametrize(
    ("draw", "true"),
    [(outcomes, 0.8), (rouge, 4 / 11), (token_f1, 0.45 + 0.55 * 0.4 * 0.5), (anls, 0.3 * 0.75)],
    ids=["share", "rouge_l", "token_f1", "anls"],
)
def test_the_interval_of_a_mean_holds_the_truth_in_95_of_100_sets(draw, true, count):
    assert 0.92 <= coverage(mean_interval, draw, true, count) <= 0.98


def errors(rng, count):
    """Errors and words of sentences: (N, 2), of which the true rate is 0.2."""
    words = rng.integers(4, 21, count)
    return np.stack([rng.binomial(words, rng.beta(1, 4, count)), words], axis=1).astype(float)


@pytest.mark.parametrize("count", [40, 150])
def test_the_bootstrap_of_a_ratio_holds_the_truth_in_95_of_100_sets(count, monkeypatch):
    from mmgpt.evaluation.metrics import intervals

    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    rate = Metric(lambda some: np.zeros((len(some), 2)), lambda sums, n: float(sums[0] / sums[1]))
    assert 0.92 <= coverage(lambda found: interval(rate, found)["ci95"], errors, 0.2, count, sets=500) <= 0.98


def test_photographs_that_score_alike_are_known_better_than_a_share():
    scores = np.random.default_rng(0).beta(4, 7, 150)
    found = interval(METRICS["rouge_l"], scores[:, None])
    low, high = found["ci95"]
    assert (high - low) / 2 == pytest.approx(1.976 * scores.std(ddof=1) / math.sqrt(150), rel=0.02)
    share_low, share_high = wilson(float(scores.mean()), 150)
    assert (high - low) < (share_high - share_low) / 2


@pytest.mark.parametrize("scores", [[0.5], [0.5] * 9, [0.0], [1.0] * 20, [0.0, 1.0, 1.0]])
def test_scores_without_a_deviation_of_their_own_have_the_interval_of_a_share(scores):
    assert mean_interval(np.array(scores)) == wilson(float(np.mean(scores)), len(scores))


@pytest.mark.parametrize("scores", [[0.0] * 29 + [0.01], [1.0] * 29 + [0.9], [0.5, 1.0], [1e-9, 0.0]])
def test_an_interval_stays_in_the_range_and_holds_its_mean(scores):
    low, high = mean_interval(np.array(scores))
    assert 0 <= low <= np.mean(scores) <= high <= 1


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042)])
def test_students_t_is_that_of_the_tables(freedom, quantile):
    assert t95(freedom) == pytest.approx(quantile, abs=2e-3)


def test_which_metrics_are_means_of_scores():
    corpus = {name for name, metric in METRICS.items() if not metric.is_mean_of_scores}
    likelihood = {"perplexity", "word_perplexity", "bits_per_byte"}
    errors = {f"{kind}{normaliser}" for kind in ("wer", "cer") for normaliser in ("", "_whisper_en", "_whisper_basic")}
    sums = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "bleu", "chrf", "cider", "ece", "macro_f1", "balanced_accuracy"}
    assert corpus == likelihood | errors | sums | {"pope_precision", "pope_recall", "pope_f1"}

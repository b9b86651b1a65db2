"""How sure a figure is: its standard error and 95 % interval, each of its kind.

A share of outcomes that are right or wrong has Wilson's interval (1927), exact enough near 0 and 1, where the normal
one leaves the range. A mean of graded scores in [0, 1] has that form with the samples' own deviation in the place of a
share's, by Student's t: so much narrower as the scores vary less. Any other figure has the percentiles of a bootstrap
(Efron 1979), widened for few samples (Hesterberg 2015, arXiv:1411.5279, section 5.4), with draws that never change.

Samples count as independent: of several questions about one picture the interval is too narrow.

Shape letters: N samples, S statistics of a sample, R resamples.
"""

import math
from statistics import NormalDist

import numpy as np

from mmgpt.evaluation.metrics.metric import Floats, Metric

RESAMPLES = 1000
Z95 = 1.959964
SMALL_T95 = (math.inf, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469)  # Student's t of few degrees of freedom


def interval(metric: Metric, statistics_NS: Floats) -> dict[str, float | list[float]]:
    """Figure, standard error and 95 % interval."""
    count = len(statistics_NS)
    value = metric.compute(statistics_NS.sum(axis=0), count)
    if metric.is_mean_of_scores:
        scores_N = statistics_NS[:, 0]
        deviation = float(scores_N.std(ddof=1)) if count > 1 else 0.0
        return {"value": value, "stderr": deviation / math.sqrt(count), "ci95": mean_interval(scores_N)}
    drawn_R = np.array([metric.compute(sums_S, count) for sums_S in resampled_sums(statistics_NS)])
    return {"value": value, "stderr": float(drawn_R.std(ddof=1)), "ci95": percentiles(drawn_R, count)}


def mean_interval(scores_N: Floats) -> list[float]:
    """The 95 % interval of the mean of scores between 0 and 1."""
    count, mean = len(scores_N), float(scores_N.mean())
    variance = float(scores_N.var(ddof=1)) if count > 1 else 0.0
    if variance < 1e-12 or np.isin(scores_N, (0, 1)).all():
        return wilson(mean, count)
    return wilson(mean, count * mean * (1 - mean) / variance, t95(count - 1))


def wilson(mean: float, count: float, z: float = Z95) -> list[float]:
    """Wilson's interval of a share of `count` outcomes."""
    centre = (mean + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(max(0.0, mean * (1 - mean)) / count + z**2 / (4 * count * count)) / (1 + z**2 / count)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, by the expansion of Cornish and Fisher (to 0.001 from 7 on)."""
    if freedom < len(SMALL_T95):
        return SMALL_T95[freedom]
    z = Z95
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def percentiles(drawn_R: Floats, count: int) -> list[float]:
    """The 95 % interval of a figure that was drawn again R times from `count` samples."""
    outside = 0.025
    if count > 1:  # resamples vary less than samples, by a share of 1 / count
        outside = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t95(count - 1))
    low, high = np.percentile(drawn_R, [100 * outside, 100 * (1 - outside)])
    return [float(low), float(high)]


def resampled_sums(statistics_NS: Floats, seed: int = 0) -> Floats:
    """Sums (R, S) of the statistics of N samples drawn with replacement; the draws depend on N and the seed alone."""
    count = len(statistics_NS)
    rng = np.random.default_rng([seed, count])
    weights = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(RESAMPLES))
    return np.stack([weights_N @ statistics_NS for weights_N in weights])

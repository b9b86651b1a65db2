"""What a metric is: statistics of each sample that add up, and a figure made of their sums.

A mean adds up scores, a word error rate errors and words, BLEU matches and lengths. So every figure has its standard
error, its bootstrap interval and its paired test by one road: samples are drawn again, their statistics added.

Shape letters: N samples, S statistics of a sample, R resamples, M media, K texts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # slow to import, and here for its name alone

Floats = NDArray[np.float64]
RESAMPLES = 1000
Z95 = 1.959964


@dataclass(frozen=True)
class Answered:
    """A prediction, and what is known about the right answer.

    Attributes:
        prediction: the text that was generated or chosen.
        references: all answers that are right; ten for VQA, five for captions.
        choices, logprobs: what was chosen from, with the score of each; of kind `score`, one logprob a token.
        tags: groups that are reported apart, such as {"answer_type": "yes/no"}.
    """

    prediction: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


def _mean(sums_S: Floats, count: int) -> float:
    return float(sums_S[0] / count)


@dataclass(frozen=True)
class Metric:
    """A figure over samples.

    Attributes:
        statistics: float64 (N, S) of N samples, which add up over samples.
        figure: of the sums (S,) over so many samples.
        is_share: the figure is a mean of scores between 0 and 1.
        higher_is_better: which of two systems has won.
        in_percent: a table shows a hundred times the figure.
    """

    statistics: Callable[[Sequence[Answered]], Floats]
    figure: Callable[[Floats, int], float] = _mean
    is_share: bool = False
    higher_is_better: bool = True
    in_percent: bool = True

    def value(self, answered: Sequence[Answered]) -> float:
        """The figure over these samples."""
        return self.figure(self.statistics(answered).sum(axis=0), len(answered))

    def each(self, statistics_NS: Floats) -> list[float]:
        """The figure of every sample alone."""
        return [self.figure(statistics_S, 1) for statistics_S in statistics_NS]


def share(score: Callable[[str, tuple[str, ...]], float]) -> Metric:
    """The mean of a score in [0, 1] of each prediction against its references."""
    return Metric(lambda some: np.array([[score(one.prediction, one.references)] for one in some]), is_share=True)


def summary(metric: Metric, statistics_NS: Floats) -> dict[str, float | list[float]]:
    """Figure, standard error and 95 % interval.

    Shares have Wilson's interval (1927), exact enough near 0 and 1, where the normal one leaves the range; other
    figures the percentiles of a bootstrap (Efron 1979), whose draws do not change from call to call.
    """
    count = len(statistics_NS)
    value = metric.figure(statistics_NS.sum(axis=0), count)
    if metric.is_share:
        deviation = float(statistics_NS[:, 0].std(ddof=1)) if count > 1 else 0.0
        return {"value": value, "stderr": deviation / math.sqrt(count), "ci95": wilson(value, count)}
    drawn_R = np.array([metric.figure(sums_S, count) for sums_S in resampled_sums(statistics_NS)])
    low, high = np.percentile(drawn_R, [2.5, 97.5])
    return {"value": value, "stderr": float(drawn_R.std(ddof=1)), "ci95": [float(low), float(high)]}


def resampled_sums(statistics_NS: Floats, seed: int = 0) -> Floats:
    """Sums (R, S) of the statistics of N samples drawn with replacement; the draws depend on N and the seed alone."""
    count = len(statistics_NS)
    rng = np.random.default_rng([seed, count])
    weights = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(RESAMPLES))
    return np.stack([weights_N @ statistics_NS for weights_N in weights])


def wilson(mean: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share."""
    centre = (mean + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count * count)) / (1 + Z95**2 / count)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def recall_at_k(scores_MK: "Tensor", matches_MK: "Tensor", k: int) -> float:
    """The share of media for which one of the k texts with the highest scores is a match.

    Args:
        scores_MK: each medium's score of each text.
        matches_MK: bool, True where a text is right; at least one a medium.
        k: how many texts may be looked at; one that is as high as the match counts as higher, so that a model that
            scores all alike finds nothing.
    """
    best_M1 = scores_MK.masked_fill(~matches_MK, -math.inf).amax(dim=1, keepdim=True)
    higher_M = ((scores_MK >= best_M1) & ~matches_MK).sum(dim=1)
    return int((higher_M < k).sum()) / len(scores_MK)

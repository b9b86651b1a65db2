"""What a metric is: statistics of each sample that add up, a figure made of their sums, and how that is written.

A mean adds up scores, a word error rate errors and words, BLEU matches and lengths. So every figure has its standard
error, its bootstrap interval and its paired test by one road: samples are drawn again, their statistics added.

Shape letters: N samples, S statistics of a sample, M media, K texts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmgpt.evaluation.metrics.normalise import thoughtless

if TYPE_CHECKING:
    from torch import Tensor  # slow to import, and here for its name alone

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPrediction:
    """A prediction, and what is known about the right answer.

    Attributes:
        prediction: the text that was generated or chosen; reasoning before it (`<think>`) is left out.
        references: all answers that are right; ten for VQA, five for captions.
        choices, logprobs: what was chosen from, with the score of each; of kind `score`, one logprob a token.
        tags: groups that are reported apart, such as {"answer_type": "yes/no"}.
    """

    prediction: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", thoughtless(self.prediction))


def _mean(sums_S: Floats, count: int) -> float:
    return float(sums_S[0] / count)


@dataclass(frozen=True)
class Metric:
    """A figure over samples.

    Attributes:
        sample_stats: float64 (N, S) of N samples, which add up over samples.
        compute: of the sums (S,) over so many samples.
        is_mean_of_scores: the figure is a mean of scores between 0 and 1.
        higher_is_better: which of two systems has won.
        in_percent: the figure is written as a hundred times its value.
        right_from: the score from which a single sample's answer is right, of errors up to which; None if a score does
            not say.
        check: raises UserError if the metric cannot read a sample's references.
    """

    sample_stats: Callable[[Sequence[ScoredPrediction]], Floats]
    compute: Callable[[Floats, int], float] = _mean
    is_mean_of_scores: bool = False
    higher_is_better: bool = True
    in_percent: bool = False
    right_from: float | None = None
    check: Callable[[ScoredPrediction], None] | None = None

    def value(self, answered: Sequence[ScoredPrediction]) -> float:
        """The figure over these samples."""
        return self.compute(self.sample_stats(answered).sum(axis=0), len(answered))

    def per_sample(self, statistics_NS: Floats) -> list[float]:
        """The figure of every sample alone."""
        return [self.compute(statistics_S, 1) for statistics_S in statistics_NS]

    @property
    def unit(self) -> str:
        """What stands behind a written figure."""
        return " %" if self.in_percent else ""

    def written(self, value: float, *, signed: bool = False) -> str:
        """A figure, or signed a difference of two, as every table and page writes it, without the unit."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f}" if self.in_percent else f"{value:{sign}.4g}"

    def gain(self, value: float, other: float) -> float:
        """How much better a figure is than another one; below 0 if it is worse."""
        return value - other if self.higher_is_better else other - value

    def best(self, values: Iterable[float]) -> float:
        """The best of several figures."""
        return max(values) if self.higher_is_better else min(values)

    def is_right(self, score: float) -> bool | None:
        """Whether a single sample's score is that of a right answer; None if the metric does not judge answers."""
        return None if self.right_from is None else self.gain(score, self.right_from) >= 0


def mean_metric(
    score: Callable[[ScoredPrediction], float],
    *,
    right_from: float | None = 0.5,
    check: Callable[[ScoredPrediction], None] | None = None,
) -> Metric:
    """The mean of a score in [0, 1] of each answer."""
    return Metric(
        lambda some: np.array([[score(one)] for one in some], dtype=np.float64),
        is_mean_of_scores=True,
        in_percent=True,
        right_from=right_from,
        check=check,
    )


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

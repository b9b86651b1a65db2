"""Metrics of answers out of a few: letters, labels, rankings, and how sure the model was.

Shape letters: N samples, S statistics of a sample, L labels, B bins.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.answers import exact_match
from mmgpt.evaluation.metrics.letters import letter_of, place_of
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction, mean_metric
from mmgpt.evaluation.metrics.normalise import folded, plain

ECE_BINS = 15


def is_chosen_right(one: ScoredPrediction) -> float:
    """1 if the choice that an answer chose is a right one; without choices, if it is one of the references."""
    said = place_of(one.prediction, one.choices)
    right = _right_places(one)
    return float(said in right) if said is not None and right else exact_match(one.prediction, one.references)


def _right_places(one: ScoredPrediction) -> set[int | None]:
    return {place_of(reference, one.choices) for reference in one.references} - {None}


def _has_right_letter(one: ScoredPrediction) -> float:
    said = letter_of(one.prediction, one.choices)
    return float(said is not None and said in {letter_of(reference, one.choices) for reference in one.references})


def check_letter(one: ScoredPrediction) -> None:
    """See that the right answers are letters on offer, or the words of a choice.

    Raises:
        UserError: names them.
    """
    if not any(letter_of(reference, one.choices) for reference in one.references):
        offered = f"a letter of its {len(one.choices)} choices nor the words of one" if one.choices else "a letter"
        raise UserError(f"the right answer {one.references[0]!r} is not {offered}, which choice_letter needs")


def _label_counts(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 3 L) over the labels that are right somewhere: hits, predictions, occurrences; the first reference counts."""
    read = _reading_of_labels(answered)
    names = sorted({read(one.references[0]) for one in answered})
    place = {name: at for at, name in enumerate(names)}
    counts_N3L = np.zeros((len(answered), 3, len(names)))
    for row, one in zip(counts_N3L, answered, strict=True):
        said, right = place.get(read(one.prediction)), place[read(one.references[0])]
        row[2, right] = 1
        if said is not None:
            row[1, said] = 1
            row[0, right] = said == right
    return counts_N3L.reshape(len(answered), -1)


def _reading_of_labels(answered: Sequence[ScoredPrediction]) -> Callable[[str], str]:
    """How labels are told apart: but for writing, and without case unless two right ones differ by it alone."""
    cased = {plain(one.references[0]) for one in answered}
    return folded if len({label.casefold() for label in cased}) == len(cased) else plain


def _macro_f1(sums_S: Floats, count: int) -> float:
    """Mean F1 over the labels that occur; as of scikit-learn where only such are predicted."""
    hits_L, said_L, right_L = sums_S.reshape(3, -1)
    occurs_L = right_L > 0
    return float((2 * hits_L[occurs_L] / (said_L + right_L)[occurs_L]).mean())


def _balanced_accuracy(sums_S: Floats, count: int) -> float:
    hits_L, _, right_L = sums_S.reshape(3, -1)
    return float((hits_L[right_L > 0] / right_L[right_L > 0]).mean())


def _bins(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 2 B): in the bin of a sample's confidence, the confidence and whether it was right."""
    bins_N2B = np.zeros((len(answered), 2, ECE_BINS))
    for row, one in zip(bins_N2B, answered, strict=True):
        logprobs = _choice_logprobs(one, "ece")
        weights = np.exp(logprobs - logprobs.max())
        confidence = float(weights.max() / weights.sum())
        at = min(ECE_BINS - 1, math.ceil(confidence * ECE_BINS) - 1)
        row[:, at] = confidence, is_chosen_right(one)
    return bins_N2B.reshape(len(answered), -1)


def _ece(sums_S: Floats, count: int) -> float:
    confidence_B, right_B = sums_S.reshape(2, -1)
    return float(np.abs(confidence_B - right_B).sum() / count)


def _choice_logprobs(one: ScoredPrediction, metric: str) -> Floats:
    if not one.choices or len(one.choices) != len(one.logprobs):
        raise UserError(
            f"{metric} needs the score of every choice, but an answer has {len(one.choices)} choices and "
            f"{len(one.logprobs)} scores; use it with a task of kind choose, classify or rank"
        )
    return np.array(one.logprobs, dtype=np.float64)


def rank_of(one: ScoredPrediction) -> int:
    """How many wrong choices stand at or above the best right one; ties count against it."""
    logprobs = _choice_logprobs(one, "recall")
    right = _right_places(one)
    is_right = np.array([place in right for place in range(len(one.choices))])
    if not right:
        raise UserError(f"none of the {len(one.choices)} choices is a right answer ({one.references[0]!r})")
    return int((logprobs[~is_right] >= logprobs[is_right].max()).sum())


def _of_rank(score: Callable[[int], float]) -> Metric:
    return mean_metric(lambda one: float(score(rank_of(one))))


METRICS: dict[str, Metric] = {
    "choice_accuracy": mean_metric(is_chosen_right),
    "choice_letter": mean_metric(_has_right_letter, check=check_letter),
    "macro_f1": Metric(_label_counts, _macro_f1, in_percent=True),
    "balanced_accuracy": Metric(_label_counts, _balanced_accuracy, in_percent=True),
    "ece": Metric(_bins, _ece, higher_is_better=False, in_percent=True),
    "recall@1": _of_rank(lambda rank: rank < 1),
    "recall@5": _of_rank(lambda rank: rank < 5),
    "mrr": _of_rank(lambda rank: 1 / (rank + 1)),
}

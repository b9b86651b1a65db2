"""Metrics of answers out of a few: letters, labels, yes and no, rankings, and how sure the model was.

Shape letters: N samples, S statistics of a sample, L labels, B bins.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.answers import exact_match
from mmgpt.evaluation.metrics.metric import Answered, Floats, Metric

LETTER_FORMS = [  # the first that finds one has it
    r"^\W*([A-Za-z])\W*$",
    r"^\W*\(?([A-Z])[).:,](?:\s|$)",
    r".*\b[Aa]nswer(?:\s+is)?\s*:?\s*(?:[Oo]ption\s*)?\W?([A-Z])\b",
    r".*\(([A-Z])\)",
]
ECE_BINS = 15


def letter_of(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter that an answer chooses: "B", "(b)", "B. a dog", "The answer is B", or the text of choice B.

    None where it chooses none: "A dog" is no A.
    """
    for place, choice in enumerate(choices):
        if len(choice.strip()) > 1 and text.strip().rstrip(".").lower() == choice.strip().rstrip(".").lower():
            return chr(ord("A") + place)
    for form in LETTER_FORMS:
        if found := re.match(form, text, re.DOTALL):
            return found[1].upper()
    return None


def _letters(answered: Sequence[Answered]) -> Floats:
    scores = []
    for one in answered:
        said, right = letter_of(one.prediction, one.choices), {letter_of(r, one.choices) for r in one.references}
        scores.append([float(said is not None and said in right)])
    return np.array(scores)


def _binary(answered: Sequence[Answered]) -> Floats:
    """(N, 4): true and false positives, true and false negatives; "yes" is positive.

    An answer is read as POPE does (Li et al. 2023, arXiv:2305.10355): no, if "no" or "not" is in its first sentence.
    """
    rows = []
    for one in answered:
        words = one.prediction.strip().split(".")[0].replace(",", "").lower().split()
        said, right = not {"no", "not"} & set(words), one.references[0].strip().lower() == "yes"
        rows.append([said and right, said and not right, not said and not right, not said and right])
    return np.array(rows, dtype=np.float64)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


def _label_counts(answered: Sequence[Answered]) -> Floats:
    """(N, 3 L) over the labels that are right somewhere: hits, predictions, occurrences."""
    labels = sorted({one.references[0].strip() for one in answered})
    place = {label: at for at, label in enumerate(labels)}
    counts_N3L = np.zeros((len(answered), 3, len(labels)))
    for row, one in zip(counts_N3L, answered, strict=True):
        said, right = place.get(one.prediction.strip()), place[one.references[0].strip()]
        row[2, right] = 1
        if said is not None:
            row[1, said] = 1
            row[0, right] = said == right
    return counts_N3L.reshape(len(answered), -1)


def _macro_f1(sums_S: Floats, count: int) -> float:
    """Mean F1 over the labels that occur; as of scikit-learn where only such are predicted."""
    hits_L, said_L, right_L = sums_S.reshape(3, -1)
    occurs_L = right_L > 0
    return float((2 * hits_L[occurs_L] / (said_L + right_L)[occurs_L]).mean())


def _balanced_accuracy(sums_S: Floats, count: int) -> float:
    hits_L, _, right_L = sums_S.reshape(3, -1)
    return float((hits_L[right_L > 0] / right_L[right_L > 0]).mean())


def _bins(answered: Sequence[Answered]) -> Floats:
    """(N, 2 B): in the bin of a sample's confidence, the confidence and whether it was right."""
    bins_N2B = np.zeros((len(answered), 2, ECE_BINS))
    for row, one in zip(bins_N2B, answered, strict=True):
        logprobs = _choice_logprobs(one, "ece")
        weights = np.exp(logprobs - logprobs.max())
        confidence = float(weights.max() / weights.sum())
        at = min(ECE_BINS - 1, math.ceil(confidence * ECE_BINS) - 1)
        row[:, at] = confidence, exact_match(one.prediction, one.references)
    return bins_N2B.reshape(len(answered), -1)


def _ece(sums_S: Floats, count: int) -> float:
    confidence_B, right_B = sums_S.reshape(2, -1)
    return float(np.abs(confidence_B - right_B).sum() / count)


def _choice_logprobs(one: Answered, metric: str) -> Floats:
    if not one.choices or len(one.choices) != len(one.logprobs):
        raise UserError(
            f"{metric} needs the score of every choice, but an answer has {len(one.choices)} choices and "
            f"{len(one.logprobs)} scores; use it with a task of kind choose, classify or rank"
        )
    return np.array(one.logprobs, dtype=np.float64)


def rank_of(one: Answered) -> int:
    """How many wrong choices stand at or above the best right one; ties count against it."""
    logprobs = _choice_logprobs(one, "recall")
    is_right = np.array([choice in one.references for choice in one.choices])
    if not is_right.any():
        raise UserError(f"none of the {len(one.choices)} choices is a right answer ({one.references[0]!r})")
    return int((logprobs[~is_right] >= logprobs[is_right].max()).sum())


def _of_rank(score: Callable[[int], float]) -> Metric:
    return Metric(lambda answered: np.array([[float(score(rank_of(one)))] for one in answered]), is_share=True)


METRICS: dict[str, Metric] = {
    "choice_letter": Metric(_letters, is_share=True),
    "pope_accuracy": Metric(_binary, lambda s, n: float((s[0] + s[2]) / n)),
    "pope_precision": Metric(_binary, lambda s, n: _ratio(s[0], s[0] + s[1])),
    "pope_recall": Metric(_binary, lambda s, n: _ratio(s[0], s[0] + s[3])),
    "pope_f1": Metric(_binary, lambda s, n: _ratio(2 * s[0], 2 * s[0] + s[1] + s[3])),
    "pope_yes_ratio": Metric(_binary, lambda s, n: float((s[0] + s[1]) / n)),
    "macro_f1": Metric(_label_counts, _macro_f1),
    "balanced_accuracy": Metric(_label_counts, _balanced_accuracy),
    "ece": Metric(_bins, _ece, higher_is_better=False),
    "recall@1": _of_rank(lambda rank: rank < 1),
    "recall@5": _of_rank(lambda rank: rank < 5),
    "mrr": _of_rank(lambda rank: 1 / (rank + 1)),
}

"""Metrics of one prediction against its reference, what their mean is worth, and the recall of a retrieval."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor


def exact_match(prediction: str, reference: str) -> float:
    """1 if the texts are the same but for white space around them."""
    return float(prediction.strip() == reference.strip())


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "choice_accuracy": exact_match,  # the chosen text against the right choice
}


def summary(scores: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean, standard error and 95 % interval of scores between 0 and 1.

    The interval is Wilson's (1927), exact enough near 0 and 1, where the normal one leaves the range.
    """
    count = len(scores)
    mean = sum(scores) / count
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / max(1, count - 1))
    z = 1.959964
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    interval = [max(0.0, centre - half), min(1.0, centre + half)]
    return {"value": mean, "stderr": deviation / math.sqrt(count), "ci95": interval}


def recall_at_k(scores_MK: Tensor, matches_MK: Tensor, k: int) -> float:
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

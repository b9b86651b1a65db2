"""The one list of all metrics, by the names that tasks give them."""

import numpy as np

from mmgpt.evaluation.metrics import answers, captions, choices, likelihood, speech, translation, yes_no
from mmgpt.evaluation.metrics.answers import exact_match
from mmgpt.evaluation.metrics.captions import caption_scores
from mmgpt.evaluation.metrics.intervals import interval
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction, mean_metric, recall_at_k
from mmgpt.evaluation.metrics.vqa import vqa_accuracy

__all__ = [
    "METRICS",
    "Floats",
    "Metric",
    "ScoredPrediction",
    "caption_scores",
    "exact_match",
    "interval",
    "metric_named",
    "recall_at_k",
    "vqa_accuracy",
]

METRICS: dict[str, Metric] = {
    **answers.METRICS,
    "vqa_accuracy": mean_metric(lambda one: vqa_accuracy(one.prediction, one.references)),
    **choices.METRICS,
    **yes_no.METRICS,
    **likelihood.METRICS,
    **captions.METRICS,
    **speech.METRICS,
    **translation.METRICS,
}
UNKNOWN = Metric(lambda some: np.zeros((len(some), 1)), right_from=0.5)  # of files that another version wrote


def metric_named(name: str) -> Metric:
    """The metric to write and judge figures by; of a name that this mmgpt does not know, more is better."""
    return METRICS.get(name, UNKNOWN)

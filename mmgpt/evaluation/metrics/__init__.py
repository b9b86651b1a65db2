"""The one list of all metrics, by the names that tasks give them."""

from mmgpt.evaluation.metrics.answers import exact_match
from mmgpt.evaluation.metrics.metric import Answered, Floats, Metric, recall_at_k, share, summary

__all__ = ["METRICS", "Answered", "Floats", "Metric", "exact_match", "recall_at_k", "summary"]

METRICS: dict[str, Metric] = {
    "exact_match": share(exact_match),
    "choice_accuracy": share(exact_match),  # the chosen text against the right choice
}

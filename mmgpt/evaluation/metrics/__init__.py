"""The one list of all metrics, by the names that tasks give them."""

from mmgpt.evaluation.metrics import captions, choices, likelihood, speech, translation
from mmgpt.evaluation.metrics.answers import SCORES, exact_match
from mmgpt.evaluation.metrics.captions import caption_scores
from mmgpt.evaluation.metrics.metric import Answered, Floats, Metric, recall_at_k, share, summary
from mmgpt.evaluation.metrics.vqa import vqa_accuracy

__all__ = [
    "METRICS",
    "Answered",
    "Floats",
    "Metric",
    "caption_scores",
    "exact_match",
    "recall_at_k",
    "summary",
    "vqa_accuracy",
]

METRICS: dict[str, Metric] = {
    **{name: share(score) for name, score in SCORES.items()},
    "choice_accuracy": share(exact_match),  # the chosen text against the right choice
    "vqa_accuracy": share(vqa_accuracy),
    **choices.METRICS,
    **likelihood.METRICS,
    **captions.METRICS,
    **speech.METRICS,
    **translation.METRICS,
}

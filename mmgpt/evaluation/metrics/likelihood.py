"""How well a model foretells a text: figures of kind `score`, lower is better.

Words are counted as lm-evaluation-harness counts them (split at white space, empty ends included), bytes as UTF-8.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction


def _counts(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 4): negative log-likelihood in nats, tokens, words, bytes."""
    rows = []
    for one in answered:
        if not one.logprobs:
            raise UserError("perplexity needs a log-probability for each token; use it with a task of kind score")
        text = one.references[0]
        rows.append([-sum(one.logprobs), len(one.logprobs), len(re.split(r"\s+", text)), len(text.encode())])
    return np.array(rows, dtype=np.float64)


METRICS: dict[str, Metric] = {
    "perplexity": Metric(_counts, lambda s, n: math.exp(s[0] / s[1]), higher_is_better=False),
    "word_perplexity": Metric(_counts, lambda s, n: math.exp(s[0] / s[2]), higher_is_better=False),
    "bits_per_byte": Metric(_counts, lambda s, n: float(s[0] / s[3] / math.log(2)), higher_is_better=False),
}

"""BLEU and chrF of translations, as sacrebleu computes them over a corpus (Post 2018, arXiv:1804.08771).

Its default signatures: BLEU with the 13a tokenizer, mixed case, exp smoothing; chrF2 of 6 characters (Popovic 2015).
Figures are between 0 and 1, a hundredth of sacrebleu's. Needs the extra `eval`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction
from mmgpt.evaluation.metrics.normalise import as_reference, unmarked


@cache
def _scorer(name: str) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError(f'{name} needs sacrebleu; pip install "mmgpt[eval]"') from None
    return {"bleu": BLEU, "chrf": CHRF}[name]()


def _corpus_metric(name: str) -> Metric:
    def sample_stats(answered: Sequence[ScoredPrediction]) -> Floats:
        """(N, S): the counts that sacrebleu adds up: of BLEU lengths, matches and n-grams."""
        extract = _scorer(name)._extract_corpus_statistics
        rows = []
        for one in answered:
            right = tuple(map(unmarked, one.references))
            rows.append(extract([as_reference(one.prediction, right)], [[text] for text in right])[0])
        return np.array(rows, dtype=np.float64)

    def compute(sums_S: Floats, count: int) -> float:
        return float(_scorer(name)._compute_score_from_stats([int(total) for total in sums_S]).score / 100)

    return Metric(sample_stats, compute, in_percent=True)


METRICS: dict[str, Metric] = {name: _corpus_metric(name) for name in ("bleu", "chrf")}

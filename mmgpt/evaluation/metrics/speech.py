"""Word and character error rates, with the normaliser of both sides in the metric's name.

`wer` compares words as they stand, but for markup, and without errors where prediction and reference differ in a final
dot or quotes around them alone; `_whisper_en` and `_whisper_basic` after the normalisers of Whisper (Radford et al.
2022, arXiv:2212.04356, appendix C). Figures from different normalisers cannot be compared. Needs the extra `eval`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction
from mmgpt.evaluation.metrics.normalise import as_reference, unmarked

Normalise = Callable[[str], str]


@cache
def _normaliser(name: str) -> Normalise:
    if name == "plain":
        return str
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise UserError(f'the normaliser {name} needs whisper-normalizer; pip install "mmgpt[eval]"') from None
    normalise: Normalise = {"whisper_en": EnglishTextNormalizer, "whisper_basic": BasicTextNormalizer}[name]()
    return lambda text: " ".join(normalise(text).split())


def _aligner(unit: str) -> Callable[[str, str], Any]:
    try:
        import jiwer
    except ImportError:
        raise UserError('word error rates need jiwer; pip install "mmgpt[eval]"') from None
    return jiwer.process_words if unit == "words" else jiwer.process_characters


def _error_rate(unit: str, normaliser: str) -> Metric:
    def errors(answered: Sequence[ScoredPrediction]) -> Floats:
        """(N, 2): errors, and units of the reference (of several, the one with the fewest errors)."""
        align, normalise = _aligner(unit), _normaliser(normaliser)

        def compare(prediction: str, reference: str) -> tuple[int, int]:
            said = normalise(as_reference(prediction, (reference,)))
            right = normalise(unmarked(reference))
            if not right:  # nothing was said: all that is heard is an error
                return (len(said.split()) if unit == "words" else len(said)), 0
            found = align(right, said)
            wrong = found.substitutions + found.deletions
            return wrong + found.insertions, found.hits + wrong

        rows = [min(compare(one.prediction, reference) for reference in one.references) for one in answered]
        return np.array(rows, dtype=np.float64)

    return Metric(errors, _rate, higher_is_better=False, in_percent=True, right_from=0.0)


def _rate(sums_S: Floats, count: int) -> float:
    """Errors to units; where references hold no unit at all, 1 for any error."""
    return float(sums_S[0] / sums_S[1]) if sums_S[1] else float(sums_S[0] > 0)


METRICS: dict[str, Metric] = {
    short + ("" if normaliser == "plain" else f"_{normaliser}"): _error_rate(unit, normaliser)
    for short, unit in (("wer", "words"), ("cer", "characters"))
    for normaliser in ("plain", "whisper_en", "whisper_basic")
}

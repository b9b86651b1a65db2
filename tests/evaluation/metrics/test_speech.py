import sys

import pytest

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction, speech

SAID = ["Mister Smith paid 20 dollars.", "the cat sat", "colour me blue", "uh nothing"]
RIGHT = ["mr. smith paid $20", "the cat sat on a mat", "color me blue", "nothing"]


def answered():
    return [ScoredPrediction(said, (right,)) for said, right in zip(SAID, RIGHT, strict=True)]


def test_error_rates_are_those_of_jiwer_over_the_corpus():
    jiwer = pytest.importorskip("jiwer")
    assert METRICS["wer"].value(answered()) == pytest.approx(jiwer.wer(RIGHT, SAID))
    assert METRICS["cer"].value(answered()) == pytest.approx(jiwer.cer(RIGHT, SAID))


@pytest.mark.parametrize("name", ["en", "basic"])
def test_the_normaliser_in_the_name_is_applied_to_both_sides(name):
    jiwer, whisper = pytest.importorskip("jiwer"), pytest.importorskip("whisper_normalizer")
    del whisper
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalise = EnglishTextNormalizer() if name == "en" else BasicTextNormalizer()
    said, right = [list(map(normalise, texts)) for texts in (SAID, RIGHT)]
    assert METRICS[f"wer_whisper_{name}"].value(answered()) == pytest.approx(jiwer.wer(right, said))
    assert METRICS["wer_whisper_en"].value(answered()[:1]) == 0.0
    assert METRICS["wer"].value(answered()[:1]) > 0.5


def test_of_several_references_the_nearest_counts_and_silence_is_scored():
    assert METRICS["wer"].value([ScoredPrediction("a b", ("c d e", "a b"))]) == 0.0
    assert METRICS["wer"].value([ScoredPrediction("a b", ("",)), ScoredPrediction("a b", ("a b",))]) == 1.0
    assert METRICS["wer"].value([ScoredPrediction("", ("",))]) == 0.0


@pytest.mark.parametrize(("metric", "package"), [("wer", "jiwer"), ("wer_whisper_en", "whisper_normalizer.basic")])
def test_an_absent_extra_is_named(metric, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    speech._normaliser.cache_clear()
    with pytest.raises(UserError, match=r'pip install "mmgpt\[eval\]"'):
        METRICS[metric].value(answered())

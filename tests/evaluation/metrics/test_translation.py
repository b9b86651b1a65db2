import sys

import pytest

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction, translation

SAID = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
RIGHT = [
    ["The dog bit the man.", "The dog had bitten the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


@pytest.mark.parametrize(("name", "scorer"), [("bleu", "BLEU"), ("chrf", "CHRF")])
def test_corpus_figures_are_those_of_sacrebleu(name, scorer):
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    expected = getattr(sacrebleu, scorer)().corpus_score(SAID, [list(stream) for stream in zip(*RIGHT, strict=True)])
    some = [ScoredPrediction(said, tuple(right)) for said, right in zip(SAID, RIGHT, strict=True)]
    assert 100 * METRICS[name].value(some) == pytest.approx(expected.score, abs=1e-9)


def test_samples_may_differ_in_the_number_of_references():
    some = [ScoredPrediction(SAID[0], tuple(RIGHT[0])), ScoredPrediction(SAID[1], (RIGHT[1][0],))]
    assert 0 < METRICS["chrf"].value(some) < METRICS["chrf"].value(some[:1]) == 1.0


def test_an_absent_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    translation._scorer.cache_clear()
    with pytest.raises(UserError, match=r'pip install "mmgpt\[eval\]"'):
        METRICS["bleu"].value([ScoredPrediction("a", ("a",))])

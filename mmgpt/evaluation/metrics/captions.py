"""BLEU, ROUGE-L and CIDEr-D of captions, equal to the MS-COCO caption evaluation (Chen et al. 2015, arXiv:1504.00325).

A set is scored as a whole: the document frequencies of CIDEr are those of its own references.

Shape letters: N captions, S statistics of a caption, T words of all texts, P pairs of a text and an n-gram in it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction, mean_metric
from mmgpt.evaluation.metrics.normalise import as_reference, unmarked
from mmgpt.evaluation.metrics.ptb import words

Ints = NDArray[np.int64]
MAX_NGRAM = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of CIDEr-D's length penalty, in words
BETA = 1.2  # ROUGE-L: weight of recall
TINY, SMALL = 1e-15, 1e-9  # keep BLEU without matches above 0 and without n-grams finite, as upstream


@lru_cache(maxsize=1 << 19)
def tokens(caption: str) -> tuple[str, ...]:
    """The words of a caption without markup; several metrics read the same ones."""
    return tuple(words(unmarked(caption)))


@dataclass(frozen=True)
class Grams:
    """How often each n-gram of one length is in each text: one entry a pair, sorted by text.

    Texts 0 to N - 1 are the predictions; all references follow.
    """

    text_P: Ints
    gram_P: Ints
    count_P: Ints
    num_grams: int


@dataclass(frozen=True)
class Corpus:
    """Captions with all their references as numbers; `owner` is the caption that a text belongs to."""

    num_captions: int
    owner: Ints
    lengths: Ints
    word_T: Ints
    text_T: Ints

    @classmethod
    def of(cls, answered: Sequence[ScoredPrediction]) -> "Corpus":
        """Of predictions and references."""
        texts = [as_reference(one.prediction, one.references) for one in answered]
        texts += [text for one in answered for text in one.references]
        counts = [len(one.references) for one in answered]
        owner = np.concatenate([np.arange(len(answered)), np.repeat(np.arange(len(answered)), counts)])
        # A fraction such as "1\u00a01/2" is one token, but n-grams split it, as upstream.
        split = [" ".join(tokens(text)).split() for text in texts]
        number: dict[str, int] = {}
        word_T = np.array([number.setdefault(word, len(number)) for text in split for word in text], dtype=np.int64)
        lengths = np.array([len(text) for text in split], dtype=np.int64)
        return cls(len(answered), owner, lengths, word_T, np.repeat(np.arange(len(texts)), lengths))

    def grams(self) -> Iterator[Grams]:
        """The n-grams of one word, then of two, up to LONGEST."""
        num_words = int(self.word_T.max(initial=0)) + 1
        gram_T, text_T = self.word_T, self.text_T
        for n in range(1, MAX_NGRAM + 1):
            if n > 1:
                longer_T = gram_T[:-1] * num_words + self.word_T[n - 1 :]
                whole_T = text_T[:-1] == self.text_T[n - 1 :]
                longer_T[~whole_T] = -1  # begins in one text and ends in another
                _, gram_T = np.unique(longer_T, return_inverse=True)
                text_T = np.where(whole_T, text_T[:-1], -1)
            num_grams = int(gram_T.max(initial=0)) + 1
            kept_T = text_T >= 0
            pair_P, count_P = np.unique(text_T[kept_T] * num_grams + gram_T[kept_T], return_counts=True)
            yield Grams(pair_P // num_grams, pair_P % num_grams, count_P, num_grams)

    def with_prediction(self, grams: Grams) -> tuple[Ints, Ints]:
        """Entries of references whose n-gram is in the prediction too, and those of the prediction."""
        first = int(np.searchsorted(grams.text_P, self.num_captions))
        of_prediction = grams.text_P[:first] * grams.num_grams + grams.gram_P[:first]
        wanted_P = self.owner[grams.text_P[first:]] * grams.num_grams + grams.gram_P[first:]
        if not first:
            return np.array([], np.int64), np.array([], np.int64)
        place_P = np.minimum(np.searchsorted(of_prediction, wanted_P), first - 1)
        shared_P = of_prediction[place_P] == wanted_P
        return first + np.flatnonzero(shared_P), place_P[shared_P]


def bleu_counts(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 10): words, words of the reference closest in length, n-grams of 1 to 4 words, and those that match.

    An n-gram matches as often as it is in the reference that has it most often (Papineni et al. 2002).
    """
    corpus, N = Corpus.of(answered), len(answered)
    found_NS = np.zeros((N, 2 + 2 * MAX_NGRAM))
    lengths_N = corpus.lengths[:N]
    found_NS[:, 0] = lengths_N
    order = np.lexsort((corpus.lengths[N:], np.abs(corpus.lengths[N:] - lengths_N[corpus.owner[N:]]), corpus.owner[N:]))
    _, firsts = np.unique(corpus.owner[N:][order], return_index=True)
    found_NS[:, 1] = corpus.lengths[N:][order][firsts]
    for n, grams in enumerate(corpus.grams()):
        found_NS[:, 2 + n] = np.maximum(0, lengths_N - n)
        entry_P, prediction_P = corpus.with_prediction(grams)
        most_P = np.zeros(len(grams.count_P))
        np.maximum.at(most_P, prediction_P, grams.count_P[entry_P])
        clipped_P = np.minimum(most_P, grams.count_P)[: np.searchsorted(grams.text_P, N)]
        np.add.at(found_NS[:, 2 + MAX_NGRAM + n], grams.text_P[: len(clipped_P)], clipped_P)
    return found_NS


def _bleu_metric(longest: int) -> Metric:
    return Metric(bleu_counts, lambda sums_S, count: _bleu(sums_S, longest), in_percent=True)


def _bleu(sums_S: Floats, longest: int) -> float:
    said, right = sums_S[0], sums_S[1]
    guesses, matches = sums_S[2 : 2 + longest], sums_S[2 + MAX_NGRAM : 2 + MAX_NGRAM + longest]
    score = float(np.prod((matches + TINY) / (guesses + SMALL))) ** (1 / longest)
    ratio = (said + TINY) / (right + SMALL)
    return score * math.exp(min(0.0, 1 - 1 / ratio))


def cider_scores(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 1): CIDEr-D of each caption, between 0 and 10 (Vedantam et al. 2015, arXiv:1411.5726)."""
    corpus, N = Corpus.of(answered), len(answered)
    bigrams = np.maximum(0, corpus.lengths - 1)  # what upstream takes for the length of a text
    apart = bigrams[N:] - bigrams[corpus.owner[N:]]
    penalty = np.exp(-(apart**2) / (2 * SIGMA**2))
    similarity = np.zeros(len(corpus.lengths) - N)
    for grams in corpus.grams():
        of_references = grams.text_P >= N
        held = np.unique(corpus.owner[grams.text_P[of_references]] * grams.num_grams + grams.gram_P[of_references])
        documents = np.bincount(held % grams.num_grams, minlength=grams.num_grams)
        rarity = math.log(N) - np.log(np.maximum(1, documents))
        weight_P = grams.count_P * rarity[grams.gram_P]
        norms = np.sqrt(np.bincount(grams.text_P, weight_P**2, minlength=len(corpus.lengths)))
        entry_P, prediction_P = corpus.with_prediction(grams)
        products_P = np.minimum(weight_P[prediction_P], weight_P[entry_P]) * weight_P[entry_P]
        product = np.bincount(grams.text_P[entry_P] - N, products_P, minlength=len(similarity))
        scale = norms[N:] * norms[corpus.owner[N:]]
        similarity += np.where(scale > 0, product / np.where(scale > 0, scale, 1), product) * penalty
    references_N = np.bincount(corpus.owner[N:], minlength=N)
    return np.array(10 / MAX_NGRAM * np.bincount(corpus.owner[N:], similarity, minlength=N) / references_N)[:, None]


def rouge_l(prediction: str, references: tuple[str, ...]) -> float:
    """F of the longest common subsequence, from the best precision and the best recall (Lin 2004)."""
    said = tokens(as_reference(prediction, references))
    common = [(longest_common(said, right), len(right)) for right in map(tokens, references)]
    precision = max(shared for shared, _ in common) / max(1, len(said))
    recall = max(shared / max(1, length) for shared, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of its table in the bits of one number (Hyyro 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(one) - row.bit_count()


METRICS: dict[str, Metric] = {
    **{f"bleu_{n}": _bleu_metric(n) for n in range(1, MAX_NGRAM + 1)},
    "rouge_l": mean_metric(lambda one: rouge_l(one.prediction, one.references), right_from=None),
    "cider": Metric(cider_scores),
}


def caption_scores(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> dict[str, float]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr (0 to 10) of captions, each by the id of what it describes.

    Raises:
        UserError: if the ids differ, there are none, or a prediction or a reference has no words.
    """
    answered = list(paired(predictions, references).values())
    counts_S = bleu_counts(answered).sum(axis=0)
    scores = {f"Bleu_{n}": _bleu(counts_S, n) for n in range(1, MAX_NGRAM + 1)}
    return scores | {"ROUGE_L": METRICS["rouge_l"].value(answered), "CIDEr": METRICS["cider"].value(answered)}


def paired(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> dict[Any, ScoredPrediction]:
    """Predictions with their references, by id.

    Raises:
        UserError: see `caption_scores`.
    """
    if not references:
        raise UserError("no references to score captions against; give at least one")
    unknown = [key for key in predictions if key not in references]
    missing = [key for key in references if key not in predictions]
    for fault, keys in (("have no references", unknown), ("have no prediction", missing)):
        if keys:
            raise UserError(f"{len(keys)} of {len(references)} ids {fault}: {named(keys)}; both must have the same ids")
    _refuse("predictions have no words", [key for key, text in predictions.items() if not has_words(text)])
    _refuse(
        "ids have no reference with words in it", [k for k, some in references.items() if not any(map(has_words, some))]
    )
    return {key: ScoredPrediction(text, tuple(references[key])) for key, text in predictions.items()}


def has_words(caption: str) -> bool:
    """Whether a caption holds any letter or digit; marks such as "?!" are tokens too, but say nothing."""
    return any(map(str.isalnum, caption))


def _refuse(fault: str, keys: Sequence[Any]) -> None:
    if keys:
        raise UserError(f"{len(keys)} {fault}: {named(keys)}; a caption needs more than punctuation")


def named(keys: Sequence[Any]) -> str:
    """The first few of many ids."""
    return ", ".join(map(str, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")

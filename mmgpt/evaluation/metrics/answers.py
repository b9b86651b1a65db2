"""Scores of a short answer against the right ones, each between 0 and 1, whatever their writing (`plain`)."""

import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

from mmgpt.evaluation.metrics.metric import Metric, mean_metric
from mmgpt.evaluation.metrics.normalise import folded, plain

Score = Callable[[str, tuple[str, ...]], float]
PERCENT = re.compile(r"\s*(?:%|percent|per cent)$")
NUMBER = re.compile(
    r"([-+]?)\s?[$\u20ac\u00a3\u00a5]?\s?([-+]?)"
    r"((?:\d{1,3}(?:[ ,]\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d{1,3})?)"
)
THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # spaces within a number


def exact_match(prediction: str, references: tuple[str, ...]) -> float:
    """1 if the answer is one of the references but for writing: white space, markup, quotes around it, a final dot."""
    return float(plain(prediction) in set(map(plain, references)))


def best(score: Callable[[str, str], float]) -> Score:
    """A score of one against one, taken against the reference that suits the prediction best."""
    return lambda prediction, references: max(score(prediction, reference) for reference in references)


def anls_of(prediction: str, reference: str) -> float:
    """Normalised Levenshtein similarity, 0 where it is below one half (Biten et al. 2019, arXiv:1905.13648).

    Case and white space do not count. One half itself does, as in the code of the DocVQA challenge.
    """
    said, right = plain(prediction).lower(), plain(reference).lower()
    longest = max(len(said), len(right))
    similarity = 1 - edits(said, right) / longest if longest else 1.0
    return similarity if similarity >= 0.5 else 0.0


def edits(one: str, other: str) -> int:
    """Insertions, deletions and substitutions of characters that turn one text into the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted)))
    return row[-1]


def relaxed_accuracy_of(prediction: str, reference: str) -> float:
    """1 if a number is within 5 % of the right one, or other text equals it but for case (ChartQA, arXiv:2203.10244).

    A percentage is read as its hundredth; 0 as the right number is compared as text, as in the official code. Beyond
    that code, thousands may stand apart by commas or spaces, and a sign of currency before the number does not count.
    """
    said, right = _number(prediction), _number(reference)
    if said is not None and right:
        return float(abs(said - right) / abs(right) <= 0.05)
    return float(folded(prediction) == folded(reference) or (said is not None and said == right))


def _number(text: str) -> float | None:
    read = plain(text).lower().replace("\u2013", "-")
    bare = PERCENT.sub("", read)
    found = NUMBER.fullmatch(bare)
    if found is None or not any(map(str.isdigit, found[3])) or (found[1] and found[2]):
        return None
    try:
        value = float((found[1] or found[2]) + found[3].replace(",", "").replace(" ", ""))
    except ValueError:
        return None
    return value / (1 if bare == read else 100)


def token_f1_of(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, articles and punctuation apart (SQuAD, arXiv:1606.05250)."""
    said, right = _squad_words(prediction), _squad_words(reference)
    shared = (Counter(said) & Counter(right)).total()
    return float(said == right) if not (said and right) else 2 * shared / (len(said) + len(right))


def _squad_words(text: str) -> list[str]:
    bare = "".join(letter for letter in plain(text).lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def last_number_match_of(prediction: str, reference: str) -> float:
    """1 if the last number of the prediction is that of the reference (GSM8K, arXiv:2110.14168), commas dropped."""
    said, right = last_number(prediction), last_number(reference)
    return float(said is not None and said == right)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None if it has none; a minus counts where nothing stands before it."""
    joined = THOUSANDS.sub("", text)
    found = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|-?\.\d+", plain(joined))
    return Decimal(found[-1].replace(",", "")) if found else None


SCORES: dict[str, Score] = {
    "exact_match": exact_match,
    "anls": best(anls_of),
    "relaxed_accuracy": best(relaxed_accuracy_of),
    "token_f1": best(token_f1_of),
    "last_number": best(last_number_match_of),
}


def _metric(score: Score) -> Metric:
    return mean_metric(lambda one: score(one.prediction, one.references))


METRICS: dict[str, Metric] = {name: _metric(score) for name, score in SCORES.items()}

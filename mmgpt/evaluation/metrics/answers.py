"""Scores of a short answer against the right ones, each between 0 and 1."""

import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

Score = Callable[[str, tuple[str, ...]], float]


def exact_match(prediction: str, references: tuple[str, ...]) -> float:
    """1 if the answer is one of the references but for white space around them."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def best(score: Callable[[str, str], float]) -> Score:
    """A score of one against one, taken against the reference that suits the prediction best."""
    return lambda prediction, references: max(score(prediction, reference) for reference in references)


def anls_of(prediction: str, reference: str) -> float:
    """Normalised Levenshtein similarity, 0 where it is below one half (Biten et al. 2019, arXiv:1905.13648).

    Case and white space do not count. One half itself does, as in the code of the DocVQA challenge.
    """
    said, right = (" ".join(text.lower().split()) for text in (prediction, reference))
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

    A percentage is read as its hundredth; 0 as the right number is compared as text, as in the official code.
    """
    said, right = _number(prediction), _number(reference)
    if said is not None and right:
        return float(abs(said - right) / abs(right) <= 0.05)
    return float(prediction.strip().lower() == reference.strip().lower())


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def token_f1_of(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, articles and punctuation apart (SQuAD, arXiv:1606.05250)."""
    said, right = _squad_words(prediction), _squad_words(reference)
    shared = (Counter(said) & Counter(right)).total()
    return float(said == right) if not (said and right) else 2 * shared / (len(said) + len(right))


def _squad_words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def last_number_match_of(prediction: str, reference: str) -> float:
    """1 if the last number of the prediction is that of the reference (GSM8K, arXiv:2110.14168), commas dropped."""
    said, right = last_number(prediction), last_number(reference)
    return float(said is not None and said == right)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None if it has none; a minus counts where nothing stands before it."""
    found = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|-?\.\d+", text)
    return Decimal(found[-1].replace(",", "")) if found else None


SCORES: dict[str, Score] = {
    "exact_match": exact_match,
    "anls": best(anls_of),
    "relaxed_accuracy": best(relaxed_accuracy_of),
    "token_f1": best(token_f1_of),
    "last_number": best(last_number_match_of),
}

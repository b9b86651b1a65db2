"""Answers to questions of yes or no, and the figures of POPE (Li et al. 2023, arXiv:2305.10355); "yes" is positive.

The first sentence says no if it holds "no", "nope" or "nah"; else yes if it begins with yes; else no if it holds "not",
"never" or "n't", or begins with "false" or "0"; else yes, an empty answer too. So POPE reads, but that it takes "isn't"
for yes and "Yes, it is not small" for no. The right answer, the first reference, is read alike.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics.metric import Floats, Metric, ScoredPrediction, mean_metric
from mmgpt.evaluation.metrics.normalise import plain

YES = {"yes", "yeah", "yep", "yup", "true", "y", "1"}
NO = {"no", "nope", "nah"}
NOT = {"not", "cannot", "none", "never"}
FALSE = {"false", "n", "0"}
CHINESE = re.compile("(?P<no>[\u4e0d\u6ca1\u6c92\u5426\u65e0\u7121])|[\u662f\u6709\u5bf9\u5c0d]")  # of a first word
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?;\n\u3002\uff01\uff1f]")


def says_yes(text: str) -> bool:
    """Whether an answer says yes, by the rule above."""
    words = _words(text)
    if not words or NO & set(words):
        return not words
    if words[0] in YES:
        return True
    return not (words[0] in FALSE or NOT & set(words) or any(map(_denies, words)))


def _denies(word: str) -> bool:
    found = CHINESE.match(word)
    return word.endswith("n't") or (found is not None and found["no"] is not None)


def _words(text: str) -> list[str]:
    """The words of the first sentence that has any, in lower case without punctuation."""
    sentences = SENTENCE_END.split("\n".join(map(plain, text.splitlines())))
    return next(filter(None, (WORD.findall(sentence.lower()) for sentence in sentences)), [])


def check_yes_no(one: ScoredPrediction) -> None:
    """See that the right answer is yes or no, true or false, 1 or 0.

    Raises:
        UserError: names what it is.
    """
    words = _words(one.references[0])
    if not (words and (words[0] in YES | NO | NOT | FALSE or CHINESE.match(words[0]))):
        raise UserError(
            f"the right answer {one.references[0]!r} is neither yes nor no, which the figures of POPE need (true and "
            "false, 1 and 0 are read too); use exact_match or macro_f1"
        )


def _is_right(one: ScoredPrediction) -> float:
    return float(says_yes(one.prediction) == says_yes(one.references[0]))


def _counts(answered: Sequence[ScoredPrediction]) -> Floats:
    """(N, 4): true and false positives, true and false negatives."""
    rows = []
    for one in answered:
        said, right = says_yes(one.prediction), says_yes(one.references[0])
        rows.append([said and right, said and not right, not said and not right, not said and right])
    return np.array(rows, dtype=np.float64)


def _of_counts(above: Callable[[Floats], float], below: Callable[[Floats], float]) -> Metric:
    def compute(sums_S: Floats, count: int) -> float:
        return float(above(sums_S) / below(sums_S)) if below(sums_S) else 0.0

    return Metric(_counts, compute, in_percent=True, check=check_yes_no)


METRICS: dict[str, Metric] = {
    "pope_accuracy": mean_metric(_is_right, check=check_yes_no),
    "pope_precision": _of_counts(lambda s: s[0], lambda s: s[0] + s[1]),
    "pope_recall": _of_counts(lambda s: s[0], lambda s: s[0] + s[3]),
    "pope_f1": _of_counts(lambda s: 2 * s[0], lambda s: 2 * s[0] + s[1] + s[3]),
    "pope_yes_ratio": mean_metric(lambda one: float(says_yes(one.prediction)), right_from=None, check=check_yes_no),
}

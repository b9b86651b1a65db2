"""VQA accuracy: an answer is right as far as three of the other nine annotators gave it.

Source: Antol et al. 2015, arXiv:1505.00468; order of operations and word lists of GT-Vision-Lab/VQA, vqaEval.py.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from mmgpt.evaluation.metrics.normalise import plain

COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(COUNTED)}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A word that lacks one of its apostrophes gets it back; "somebody'd" loses its own, as officially.
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official score of a prediction against the answers of ten annotators, between 0 and 1.

    The mean over the annotators of min(1, matches among the other nine / 3). Both sides are normalised (punctuation,
    number words, articles, contractions) only where the answers are not all the same; where they are, they are compared
    as they stand but for outer white space. Of another number of answers, n, three become min(3, n - 1), so that the
    answer of all still scores 1; a single answer is compared for equality. What is writing alone (`plain`: bold type,
    quotes around an answer, its final dot) goes first; the official tool counts it where the answers are all the same.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("vqa_accuracy needs at least one answer to compare with; ten are usual")
    trimmed = [_trim(answer) for answer in answers]
    said = _trim(prediction)
    if len(set(trimmed)) > 1:
        trimmed, said = [normalise(answer) for answer in trimmed], normalise(said)
    matches, count = Counter(trimmed)[said], len(trimmed)
    if count == 1:
        return float(matches)
    enough = min(3, count - 1)
    left_out = min(1.0, max(0, matches - 1) / enough)  # seen by the annotators who gave the same answer
    return (matches * left_out + (count - matches) * min(1.0, matches / enough)) / count


def _trim(text: str) -> str:
    return plain(text.replace("\n", " ").replace("\t", " ").strip())


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """Lower case without punctuation and articles, numbers as digits, apostrophes where they belong."""
    has_thousands = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in PUNCTUATION:
        joins = not (has_thousands or f"{mark} " in answer or f" {mark}" in answer)
        text = text.replace(mark, " " if joins else "")
    text = re.sub(r"\.(?!\d)", "", text, count=32)  # the official code hands a flag of value 32 over as the count
    kept = [word for word in (NUMBERS.get(word, word) for word in text.lower().split()) if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)

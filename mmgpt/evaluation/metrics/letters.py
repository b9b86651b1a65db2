"""Which of its choices an answer means: by their words, or by a letter.

1. An answer that is, but for writing, a letter on offer or the words of one choice chooses it.
2. Else it chooses the letter that it declares last ("the answer is B", "so (B)", a box), else the one that it begins
   with before a mark or a line's end ("B. red"), else the one that it says it is ("it's B").
3. Else it chooses the only letter that stands in it; of several ("A or B") none. Denied letters ("not A", "A is
   wrong"), the article A and the pronoun I are no letters.

What answers look like was learned from the evaluations of MMMU (Yue et al. 2023, arXiv:2311.16502) and VLMEvalKit (Duan
et al. 2024, arXiv:2407.11691); where they draw by chance or ask another model, an answer here chooses nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise, product
from string import ascii_uppercase

from mmgpt.evaluation.metrics.normalise import SPELLINGS, folded, plain, unmarked

LETTER = re.compile(
    r"(?<![A-Za-z0-9])(?<![A-Za-z]')(?P<open>[(\[]\s?)?(?P<letter>[A-Z]{1,2}|[a-z])(?:\s?[)\]])?"
    r"(?![A-Za-z0-9])(?!['-][A-Za-z])"
)
FILLING = (
    r"(?:[\s:=,\"'-]|\b(?:is|be|was|would|should|must|most|likely|probably|clearly|the|my|final|correct|best|right|option"
    r"|choice|letter|number)\b|[\u4e3a\u70ba\u662f\u5e94\u61c9\u8be5\u8a72\u9009\u9078\u9879\u9805])*$"
)
DECLARED = re.compile(
    r"(?:\bans(?:wer)?\b|\b(?:correct|right|best)\s+(?:option|choice)\b|\bi\s+(?:choose|pick|select)\b"
    rf"|\b(?:so|thus|hence|therefore)\b|\u7b54\u6848|\u6545|[\u9009\u9078]){FILLING}",
    re.IGNORECASE,
)
SAID = re.compile(
    rf"\b(?:it's|it\s+is|that's|go\s+with|i\s+think|i'd\s+say|(?:must|should|would)\s+be)\s{FILLING}", re.IGNORECASE
)
NAMED = re.compile(r"\b(?:option|choice|letter)\s*$", re.IGNORECASE)
BEGINS = re.compile(r"\W*(?:(?:option|choice)\s+)?", re.IGNORECASE)
DENIED = re.compile(
    r"(?:\b(?:not|nor|neither|than|instead\s+of|rule\s+out)|n't(?:\s+be)?|\u4e0d\u662f)\s*(?:option\s*)?$",
    re.IGNORECASE,
)
DENIES = re.compile(
    r"\s+(?:cannot|(?:ca|is|are|was|were|do|does)n't|(?:(?:is|are|was|were|can|could|must|looks|seems)\s+(?:be\s+)?)"
    r"(?:not|wrong|incorrect|false|impossible|unlikely|ruled\s+out))\b",
    re.IGNORECASE,
)
JOINED = re.compile(r"\s*(?:and/or|[/&+\u3001\u6216\u548c]|,?\s*\b(?:and|or|nor)\b)\s*(?:option\s+)?", re.IGNORECASE)
COMMA = re.compile(r"\s*,\s*")
MARK = re.compile(r"\s*(?:[.:,;!)\]\u3001](?!\w)|-\s|\n|$)|\s+(?:because|since|is\s+(?:correct|right))\b")
# What may follow the letter A; before any other word it is the article.
VERB = re.compile(r"\s+(?:is|was|or|and|nor|because|since|as|by|fits|matches|seems|looks|shows|can|must|are)\b")
WORD = re.compile(r"\s+[A-Za-z]")
BOX = re.compile(r"\\boxed\s*\{\s*(?:\\\w+\s*\{\s*)?([A-Za-z]{1,2})\s*\}+|<answer>\s*([A-Za-z]{1,2})\s*</answer>")
TOLD = re.compile(
    r"(?:so,?\s+)?(?:(?:the\s+)?(?:correct\s+|right\s+)?answer(?:\s+is|:)|(?:it|this|that)(?:'s|\s+is))[\s:]+(?P<words>.+)",
    re.IGNORECASE | re.DOTALL,
)
ARTICLE = re.compile(r"^(?:an?|the)\s+")
LEAD_IN_CHARACTERS = 80  # characters before a letter that say what it is


def labels(number: int) -> list[str]:
    """The letters of so many choices: A to Z, then AA, AB and so on."""
    every = ("".join(one) for size in count(1) for one in product(ascii_uppercase, repeat=size))
    return list(islice(every, number))


def place_of(text: str, choices: Sequence[str]) -> int | None:
    """The choice whose words a text is: as it stands, else but for writing, else but for case and article, if one."""
    for reading in (str.strip, plain, folded, lambda one: ARTICLE.sub("", folded(one))):
        said = reading(text)
        found = [place for place, choice in enumerate(choices) if reading(choice) == said]
        if len(found) == 1:
            return found[0]
    return None


def letter_of(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter that an answer chooses, by the rules above; None where it chooses none."""
    offered = labels(len(choices) or 26)
    bare = plain(text).strip("()[] .:,").upper()
    if bare in offered and len(bare) == 1:
        return bare
    boxed = BOX.sub(r" answer: \1\2. ", text.strip())
    read = "\n".join(unmarked(line).translate(SPELLINGS) for line in boxed.splitlines()).strip()
    told = TOLD.fullmatch(read)
    for words in (text, told["words"] if told else ""):
        place = place_of(words, choices)
        if place is not None:
            return offered[place]
    return _chosen([one for one in _mentions(read, offered) if not one.is_denied])


@dataclass(frozen=True)
class _Mention:
    """A letter in an answer.

    Attributes:
        at: its number among all letters.
        role: 3 declared, 2 begins, 1 said, 0 stands.
        link: to the next one: "and" ("A or B"), ",", or nothing.
    """

    label: str
    at: int
    role: int
    is_denied: bool
    link: str


def _chosen(mentions: Sequence[_Mention]) -> str | None:
    for role, which in ((3, -1), (2, 0), (1, -1)):
        of_role = [place for place, one in enumerate(mentions) if one.role == role]
        if of_role:
            first = mentions[of_role[which]]
            run = {first.label}
            for one, after in zip(mentions[of_role[which] :], mentions[of_role[which] + 1 :], strict=False):
                if not one.link or after.at != one.at + 1:
                    break
                run.add(after.label)
            return first.label if len(run) == 1 else None
    labelled = {one.label for one in mentions}
    return labelled.pop() if len(labelled) == 1 else None


def _mentions(text: str, offered: Sequence[str]) -> list[_Mention]:
    found = [one for one in LETTER.finditer(text) if one["letter"].upper() in offered and _is_letter(text, one)]
    links = [_link(text[one.end() : after.start()]) for one, after in pairwise(found)]
    denied = [bool(DENIED.search(_before(text, one)) or DENIES.match(text, one.end())) for one in found]
    for order in (range(1, len(found)), range(len(found) - 2, -1, -1)):  # "not A or B", then "A and B are wrong"
        for at in order:
            near = at - 1 if order.step > 0 else at + 1
            denied[at] |= denied[near] and links[min(at, near)] == "and"
    return [
        _Mention(one["letter"].upper(), at, _role(text, one), is_denied, link)
        for at, (one, is_denied, link) in enumerate(zip(found, denied, [*links, ""], strict=False))
    ]


def _link(between: str) -> str:
    if JOINED.fullmatch(between):
        return "and"
    return "," if COMMA.fullmatch(between) else ""


def _before(text: str, letter: re.Match[str]) -> str:
    return text[max(0, letter.start() - LEAD_IN_CHARACTERS) : letter.start()]


def _is_letter(text: str, found: re.Match[str]) -> bool:
    """Whether it is no article, no pronoun and no other small word."""
    if found["open"]:
        return True
    named, end = NAMED.search(_before(text, found)) is not None, found.end("letter")
    if found["letter"].islower():
        return MARK.match(text, end) is not None and (named or _role(text, found) > 0)
    if found["letter"] == "I":
        return named or MARK.match(text, end) is not None
    return found["letter"] != "A" or named or not WORD.match(text, end) or VERB.match(text, end) is not None


def _role(text: str, found: re.Match[str]) -> int:
    before = _before(text, found)
    if DECLARED.search(before):
        return 3
    begins = BEGINS.fullmatch(text, 0, found.start()) is not None
    if begins and MARK.match(text, found.end("letter")):
        return 2
    return 1 if SAID.search(before) else 0

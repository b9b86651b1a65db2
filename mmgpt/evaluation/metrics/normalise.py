"""What of an answer is writing and not answer: how its characters are encoded, markup, quotes around it, a final dot.

Every metric reads predictions and references through these, so that no score depends on how an answer is set down.
"""

import re
import unicodedata
from functools import lru_cache

INNER = r"(?=[^\s{0}])(.{{1,1000}}?)(?<=[^\s{0}])"  # of paired marks, as CommonMark pairs them; bounded, for speed
MARKUP = [
    (re.compile(r"</?(?:b|i|u|em|strong|code|mark|span|p|answer)\b[^<>]{0,200}>", re.IGNORECASE), " "),
    (re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|textit)\s*\{([^{}]{0,1000})\}"), r"\1"),
    (re.compile(r"(?<![a-zA-Z0-9_*])(\*{1,8})" + INNER.format("*") + r"\1(?![a-zA-Z0-9_*])"), r"\2"),
    (re.compile(r"(?<!\w)(_{1,8})" + INNER.format("_") + r"\1(?!\w)"), r"\2"),
    (re.compile(r"(?<!`)(`{1,8})(?!`)(.{1,1000}?)(?<!`)\1(?!`)"), r"\2"),
    (re.compile(r"^(?:#{1,6}|>|\u2022)\s+"), ""),
]
THOUGHT = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)  # a chat template may have opened it
MARK = re.compile(r"[<>\\*_`#\u2022]")  # without any of these there is no markup
SPELLINGS = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width letters, digits and marks
    | dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032"), "'")
    | dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f"), '"')
    | {0x2212: "-", 0x2010: "-", 0x2011: "-", 0x3002: ".", 0xFF61: "."}
)
WRAPPED = re.compile(r"""(["'$*_`])(.+)\1|\\\((.+)\\\)|\\\[(.+)\\\]""", re.DOTALL)
APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")


def thoughtless(text: str) -> str:
    """What is said after the model's reasoning, if that ends; the whole text if nothing follows."""
    return THOUGHT.sub("", text, count=1).strip() or text


def composed(text: str) -> str:
    """The same words in one encoding: composed letters (NFC), single spaces, nothing that has no width."""
    if not text.isascii():
        shown = (
            letter for letter in text if unicodedata.category(letter) != "Cf" and not "\ufe00" <= letter <= "\ufe0f"
        )
        text = unicodedata.normalize("NFC", "".join(shown))
    return " ".join(text.split())


def unmarked(text: str) -> str:
    """The same words `composed` and without markup: bold, italic and code of Markdown, HTML or LaTeX, headings."""
    text, before = composed(text), ""
    while text != before and MARK.search(text):
        before = text
        for form, kept in MARKUP:
            text = form.sub(kept, text)
        text = text.strip()
    return composed(text)


@lru_cache(maxsize=1 << 16)
def plain(text: str) -> str:
    """An answer without what is writing alone: `unmarked`, without quotes around it and final dots; case stays.

    Typographic quotes, full-width characters and the minus sign become those of ASCII. What holds nothing else, such
    as "...", stays as it is.
    """
    if text.isalnum() and text.isascii():
        return text
    read = unmarked(text).translate(SPELLINGS)
    while True:
        shorter = read.rstrip(" .")
        found = WRAPPED.fullmatch(shorter)
        if found and not (found[1] and found[1] in APOSTROPHE.sub("", found[2]).strip(f"{found[1]} ")):  # one pair
            shorter = (found[2] or found[3] or found[4]).strip()
        if not shorter or shorter == read:
            return read
        read = unmarked(shorter)


def folded(text: str) -> str:
    """`plain`, without case."""
    return plain(text).casefold()


def as_reference(prediction: str, references: tuple[str, ...]) -> str:
    """The prediction, or the reference that it is but for writing: what graded scores and error rates read.

    So a final dot or quotes around a right answer cost nothing, and other texts are compared by the metric's own rules.
    """
    said = plain(prediction)
    return unmarked(next((right for right in references if plain(right) == said), prediction))

"""English words as caption metrics count them: cut by the conventions of the Penn Treebank, most punctuation dropped.

Contractions come apart (do n't, dog 's, can not), words with hyphens, slashes or inner apostrophes and numbers stay
whole, abbreviations keep their dot, brackets get names (-lrb-) and double quotes become `` and ''.
Sources: Marcus et al. 1993 (the Penn Treebank); Chen et al. 2015, arXiv:1504.00325 (which tokens captions drop).

Limits: English only. Case is gone first, so a single letter, a dot and a word read as an initial: "plan b. The
dog". Only the abbreviations below keep their dot, given once where it also ends the sentence. E-mail addresses,
hashtags, tags and smileys come apart. Slashes and stars are not escaped, which moves no score.
"""

import re

ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|rev|st|jr|sr|lt|col|gen|capt|sgt|maj|gov|sen|rep|pres|messrs|ave|blvd|rd|mt|ft|lb|lbs|oz|"
    "co|corp|inc|ltd|bros|dept|univ|assn|est|approx|etc|vs|jan|feb|apr|aug|sept|oct|nov|dec"
)

CHARACTER = r"[\w\u0300-\u036f]"  # a letter, a digit or an accent that stands after its letter
END = rf"(?!{CHARACTER}|-\w)"  # a contraction ends its word: there is none in "bird's-eye"
CLITIC = rf"(?:s|re|ll|ve|m|d|t){END}"  # after an apostrophe
PART = rf"(?:\d+(?:[.,:]\d+)+{CHARACTER}*|{CHARACTER}+)"  # "1,000", "10:30" and "2.5m" as well as letters
JOINT = rf"(?:'?[-/]|'(?!{CLITIC}))"  # black/white, o'clock, jack-o'-lantern, but not dog's

TOKEN = re.compile(
    rf"""
      can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b) | 't(?=(?:is|was)\b)
    | [a-z]++(?=[\s,]|\Z)                                 # a plain word, by far the most: nothing else need be tried
    | [^\W\d_]+?(?=n't{END}) | n't{END} | '{CLITIC}       # do n't, dog 's
    | 'n' | '(?:n|em|til|cause|\d0s){END}                 # rock 'n' roll, the '90s
    | (?:https?://|www\.)\S*[\w/]
    | \w[\w-]*+(?:\.[\w-]++){{0,4}}?\.(?:com|org|net|edu|gov)\b
    | [a-z](?:\.[a-z])+\.?(?!\w)                          # u.s., a.m.
    | (?:{ABBREVIATIONS})\.
    | no\.(?=\s*\d) | [a-z]\.(?=\s*[^\W\d])               # no. 5, john f. kennedy
    | [a-z]{{1,3}}(?:&[a-z]{{1,3}})+{END}                 # at&t, r&b
    | (?:(?<!\S)-(?=\.?\d))?                              # -5
      (?:(?<!\w)\.\d+|{PART})(?:{JOINT}{PART})*
      (?:-(?=\s+(?:and|or|to)\b))?                        # short- and long-haired
    | \.{{2,3}} | -{{2,3}} | [?!]+ | `` | '' | \S
    """,
    re.VERBOSE,
)
OPENING = re.compile(r'(?<![^\s(\[{])"(?=\S)')
CURLY = str.maketrans({"\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u00ab": "``", "\u00bb": "''"})
NAMES = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
NAMES |= {"..": "...", "\u2026": "...", "---": "--", "\u2013": "--", "\u2014": "--"}
DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})  # brackets count as words


def words(caption: str) -> list[str]:
    """The tokens of a caption that caption metrics compare, in lower case."""
    return [token for token in cut(caption) if token not in DROPPED]


def cut(caption: str) -> list[str]:
    """All tokens of a caption, in lower case, punctuation among them; a line break is a space."""
    text = caption.lower()
    if not text.isascii():
        text = text.translate(CURLY)
    if '"' in text:
        text = OPENING.sub("``", text).replace('"', "''")
    return [NAMES.get(token, token) for token in TOKEN.findall(text)]

"""Choices to answer with: read from the command line, and checked wherever they come from."""

import re
from collections.abc import Sequence

from mmgpt.config import UserError

PIECE = re.compile(r'\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>(?!")[^,]*?))\s*(?:,\s*|$)')  # a choice and its comma


def parse_choices(given: Sequence[str]) -> list[str]:
    """The choices of a command line, without the white space around them.

    Args:
        given: one text with commas between choices, in which quotes hold a comma (`'"yes, sir", no'`); or several
            texts, each a whole choice.
    Raises:
        UserError: if quotes are left open, or a choice is empty or there twice.
    """
    if len(given) != 1:
        return checked_choices([choice.strip() for choice in given])
    text, choices, place = " ".join(given[0].split()), list[str](), 0
    while place < len(text) or not choices:
        found = PIECE.match(text, place)
        if found is None:
            told = "put a choice that holds a comma between double quotes, or give --choices once for each choice"
            raise UserError(f"choices {given[0]!r} cannot be read; {told}")
        choices.append(found["bare"] if found["quoted"] is None else found["quoted"])
        place = found.end()
    return checked_choices(choices)


def checked_choices(choices: Sequence[str]) -> list[str]:
    """The choices as they are scored: without the white space around them, which would turn an answer round.

    Raises:
        UserError: if one is no text or empty, or two are the same.
    """
    stripped: list[str] = []
    for choice in choices:
        if not isinstance(choice, str):
            raise UserError(f"the choice {choice!r} is no text; give a list of strings")
        if not choice.strip():
            raise UserError(f"of the choices {list(choices)} one is empty; give each at least a letter")
        if choice.strip() in stripped:
            raise UserError(f"the choice {choice.strip()!r} is there twice; give each once")
        stripped.append(choice.strip())
    return stripped

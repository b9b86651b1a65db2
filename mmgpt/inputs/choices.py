"""Choices to answer with: read from the command line, and checked wherever they come from."""

import re
from collections.abc import Sequence

from mmgpt.config import UserError

CHOICE = re.compile(r' *(?:"((?:[^"]|"")*)"|((?!")[^,]*?)) *(,|$)')  # in quotes or not, up to a comma or the end


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
    row, at, text = list[str](), 0, " ".join(given[0].split())
    while found := CHOICE.match(text, at):
        quoted, bare, comma = found.groups()
        row.append((bare if quoted is None else quoted.replace('""', '"')).strip())
        at = found.end()
        if not comma:
            return checked_choices(row[:-1] if len(row) > 1 and not row[-1] else row)
    told = "put a choice that holds a comma between double quotes, or give --choices once for each choice"
    raise UserError(f"choices {given[0]!r} cannot be read; {told}")


def checked_choices(choices: Sequence[str], *, may_be_empty: bool = False) -> list[str]:
    """The choices as they are scored: without the white space around them, which would turn an answer round.

    Args:
        choices: texts.
        may_be_empty: whether one of them may be the empty answer.
    Raises:
        UserError: if one is no text or empty, or two are the same.
    """
    stripped: list[str] = []
    for choice in choices:
        if not isinstance(choice, str):
            raise UserError(f"the choice {choice!r} is no text; give a list of strings")
        if not choice.strip() and not may_be_empty:
            raise UserError(f"of the choices {list(choices)} one is empty; give each at least a letter")
        if choice.strip() in stripped:
            raise UserError(f"the choice {choice.strip()!r} is there twice; give each once")
        stripped.append(choice.strip())
    return stripped

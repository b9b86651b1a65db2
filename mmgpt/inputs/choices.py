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


def checked_choices(choices: Sequence[str]) -> list[str]:
    """The choices as they are scored, none of them empty and none there twice.

    Raises:
        UserError: names the choice.
    """
    stripped = without_space(choices)
    for choice in stripped:
        if not choice:
            raise UserError(f"of the choices {list(choices)} one is empty; give each at least a letter")
        if stripped.count(choice) > 1:
            raise UserError(f"the choice {choice!r} is there twice; give each once")
    return stripped


def without_space(choices: Sequence[str]) -> list[str]:
    """Choices without the white space around them, which would turn an answer round.

    Raises:
        UserError: if one is no text.
    """
    for choice in choices:
        if not isinstance(choice, str):
            raise UserError(f"the choice {choice!r} is no text; give a list of strings")
    return [choice.strip() for choice in choices]

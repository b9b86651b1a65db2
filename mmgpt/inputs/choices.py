"""Choices to answer with: read from the command line, and checked wherever they come from."""

import csv
from collections.abc import Sequence

from mmgpt.config import UserError


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
    try:
        (row,) = csv.reader([" ".join(given[0].split())], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        told = "put a choice that holds a comma between double quotes, or give --choices once for each choice"
        raise UserError(f"choices {given[0]!r} cannot be read; {told}") from None
    choices = [choice.strip() for choice in row]
    return checked_choices(choices[:-1] if len(choices) > 1 and not choices[-1] else choices)


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

"""What a caller of the Python functions hands in, checked at the door: sizes and counts, lists, paths, seeds."""

from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from mmgpt.errors import UserError

MOST = 2**63 - 1  # what a seed of torch's generators and a size may be


def whole(name: str, value: Any, *, least: int = 0) -> int:
    """A whole number of any type, 10.0 among them.

    Raises:
        UserError: if it is none, is below `least` or over 2**63 - 1.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or value != value or not least <= value <= MOST or value != int(value):
        raise UserError(f"{name}={_shown(value)}: give a whole number from {least} to 2**63 - 1")
    return int(value)


def several(name: str, value: Any) -> list[Any]:
    """The items of a list, tuple or other sequence.

    Raises:
        UserError: on one text, which would be taken for its letters, on a mapping, and on a single value.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UserError(f"{name}={_shown(value)}: give a list, as in {name}=[{_shown(value)}]")
    return list(value)


def place(name: str, value: Any) -> Path:
    """A path.

    Raises:
        UserError: if it is neither a text nor a Path, is empty or holds a NUL.
    """
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise UserError(f"{name}={_shown(value)}: give a path, a text or pathlib.Path")
    return Path(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

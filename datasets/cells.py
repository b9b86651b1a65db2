"""What a cell of a row holds: whether it is missing, how it is written, and which keys of a row nobody reads."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from mmgpt.config import UserError, did_you_mean


def is_missing(cell: Any) -> bool:
    """True for what stands for no value: None, an empty or blank string, NaN of any float type, pandas' NaT."""
    if cell is None:
        return True
    if isinstance(cell, str | bytes):
        return not cell.strip()
    try:
        return bool(cell != cell)  # NaN and NaT alone differ from themselves
    except ValueError:  # an array compares cell by cell
        return False


def cell_text(cell: Any) -> str:
    """A cell as people write it: a whole number without a fraction, for a column with holes holds floats.

    Raises:
        ValueError: if it is missing; whoever reads the row says where.
    """
    if is_missing(cell):
        raise ValueError(f"{cell!r} is no value")
    if isinstance(cell, Real) and not isinstance(cell, bool) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def check_keys(keys: Iterable[str], used: Iterable[str], ignore: Sequence[str] | None, where: str) -> None:
    """Refuse keys that are neither used nor ignored, so that nothing of a row is dropped in silence.

    Args:
        keys: of the row, message, part or tar member.
        used: keys that are read; what they are for is the caller's.
        ignore: globs of keys that the user chose to leave out; None where there is no such option, as in a prompt.
        where: what the error begins with: the file and the row.
    Raises:
        UserError: names the keys, the nearest known one and the remedy.
    """
    known = set(used)
    left = [key for key in keys if key not in known and not is_ignored(key, ignore)]
    if left:
        names, them = ", ".join(map(repr, left)), "it" if len(left) == 1 else "them"
        remedy = f"Leave {them} out" if ignore is None else f"To leave {them} out, write ignore: [{', '.join(left)}]"
        raise UserError(f"{where}: nothing reads {names}; {did_you_mean(left[0], known)} {remedy}")


def is_ignored(key: str, ignore: Sequence[str] | None) -> bool:
    """Whether one of the globs names a key."""
    return any(fnmatchcase(key, pattern) for pattern in ignore or ())

"""What a cell of a row holds: whether it is missing, how it is written, and which keys of a row nobody reads.

One rule for every reader. None, NaN of any type (NaT, NA), and what shows nothing (an empty or blank string, no bytes,
zero-width characters) are missing. A number that is whole is written without a fraction, for a column with holes holds
floats; a bool as Python writes it, True; the words nan, None and null in a text are words.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from math import isinf
from typing import Any

import numpy as np

from mmgpt.config import UserError, did_you_mean

YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan"}  # what YAML 1.1 reads as no text
INVISIBLE = "\x00\u200b\u200c\u200d\u2060\ufeff"  # not white space to str.strip, and nothing to see


def bare(text: str) -> str:
    """A text without white space and invisible characters at its ends."""
    return text.strip().strip(INVISIBLE).strip()


def is_missing(cell: Any) -> bool:
    """True for what stands for no value: None, an empty or blank string, NaN of any float type, NaT and NA too."""
    if cell is None:
        return True
    if isinstance(cell, str):
        return not bare(cell)
    if isinstance(cell, bytes):
        return not cell.strip()
    if isinstance(cell, list | tuple | dict) or getattr(cell, "ndim", None):
        return False
    if hasattr(cell, "as_py"):  # a scalar of pyarrow
        return is_missing(cell.as_py())
    try:
        return bool(cell != cell)  # NaN and NaT alone differ from themselves
    except (TypeError, ArithmeticError):  # pandas' NA and a signalling NaN do not compare
        return True


def cell_text(cell: Any) -> str:
    """A cell as people write it: a whole number without a fraction, a lone surrogate as U+FFFD.

    Raises:
        ValueError: if it is missing, infinite, a list, a struct or bytes; whoever reads the row says where.
    """
    if hasattr(cell, "as_py"):
        cell = cell.as_py()
    if is_missing(cell):
        raise ValueError(f"{cell!r} is no value")
    if isinstance(cell, str):
        return well_formed(cell)
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell))
    if isinstance(cell, int | np.integer):
        return str(int(cell))
    if isinstance(cell, float | np.floating | Decimal):
        if isinf(cell):
            raise ValueError(f"{cell} is no number that a float can hold; write it as a text")
        if cell % 1:
            return str(cell)
        whole = format(Decimal(str(cell)), "f").partition(".")[0]  # int(1e23) is 99999999999999991611392
        return "0" if whole == "-0" else whole
    if isinstance(cell, bytes | bytearray | list | tuple | dict | set) or getattr(cell, "ndim", None):
        raise ValueError(f"{str(cell)[:60]!r} is a {type(cell).__name__}, no text; derive a column from it, or name it")
    return well_formed(str(cell))


def well_formed(text: str) -> str:
    """A text that can be written anywhere: halves of surrogate pairs are joined, and what is left alone is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def matches(cell: Any, wanted: Collection[str]) -> bool:
    """Whether a cell is one of the values that a config names; "" stands for a missing cell, true and True are one.

    Raises:
        ValueError: if it is a list or a struct, which no value is like.
    """
    if is_missing(cell):
        return "" in wanted
    text = cell_text(cell)
    if isinstance(cell, bool | np.bool_):
        return text in wanted or text.lower() in wanted
    return text in wanted or (not isinstance(cell, str) and str(cell) in wanted)  # "2.0" matches 2.0 too


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
        nearest = did_you_mean(left[0], known)
        listed = ", ".join(map(_in_yaml, left))
        remedy = f"Leave {them} out" if ignore is None else f"To leave {them} out, write ignore: [{listed}]"
        raise UserError(f"{where}: nothing reads {names}; {nearest}{'' if nearest.endswith('?') else '.'} {remedy}")


def _in_yaml(key: str) -> str:
    """A key as an item of a YAML list."""
    is_plain = re.fullmatch(r"[A-Za-z_][\w-]*", key) and key.lower() not in YAML_WORDS
    return key if is_plain else json.dumps(key, ensure_ascii=False)


def is_ignored(key: str, ignore: Sequence[str] | None) -> bool:
    """Whether a key is one of those that are left out: named as it is, or by a glob."""
    return any(key == pattern or fnmatchcase(key, pattern) for pattern in ignore or ())

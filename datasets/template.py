"""Templates over the columns of a row: "{question}\\nAnswer in {lang}", with format specs as in "{image_id:012d}"."""

from collections.abc import Collection, Mapping, Sequence
from string import Formatter
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.datasets.cells import cell_text, is_missing, well_formed

Piece = tuple[str, str | None, str | None, str | None]  # literal, field, format spec, conversion


class EmptyCell(UserError):
    """A template names a column that is empty in a row."""


def parse(template: str) -> list[Piece]:
    """The pieces of a template: words, and the names in braces behind them.

    Raises:
        UserError: if its braces do not match, or hold no plain name.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"the template {template!r}: {error}; write {{{{ and }}}} for braces of the text") from None
    for _, field, spec, conversion in pieces:
        if field is not None and (conversion or "{" in (spec or "")):
            raise UserError(f"the template {template!r}: {{{field}!{conversion}}} is not known; write {{{field}}}")
    return pieces


def fields_of(template: str | None) -> list[str]:
    """The names in braces of a template."""
    return [field for _, field, _, _ in parse(template or "") if field is not None]


def fill(template: str | Sequence[Piece], row: Mapping[str, Any], optional: Collection[str] = ()) -> str:
    """A template, or its pieces, filled with a row.

    Args:
        optional: columns that may be empty; nothing is written for them.
    Raises:
        EmptyCell: if another column is.
        ValueError: if a cell cannot be written, or not as its format spec says.
    """
    filled = ""
    for literal, field, spec, _ in parse(template) if isinstance(template, str) else template:
        filled += literal
        if field is not None:
            filled += write(row.get(field), field, spec or "", optional)
    return filled


def write(cell: Any, field: str, spec: str = "", optional: Collection[str] = ()) -> str:
    """A cell as a template writes it; see `fill`."""
    if is_missing(cell):
        if field in optional:
            return ""
        raise EmptyCell(f"{field} is empty")
    if not spec:
        try:
            return cell_text(cell)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    try:
        is_whole = isinstance(cell, float | np.floating) and float(cell).is_integer() and spec[-1:] in "bcdoxX"
        return well_formed(format(int(cell) if is_whole else cell, spec))  # a column with holes holds floats
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{field}: {error}") from None

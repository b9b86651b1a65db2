"""Columns of a table that are made from other ones."""

import ast
from collections import Counter
from typing import Any, Self

from pydantic import model_validator

from mmgpt.config import Config, UserError
from mmgpt.datasets.cells import cell_text, is_missing

Made = str | list[str | None] | None


class DerivedColumn(Config):
    """A column made from another one, or from one derived before it; what is made of a missing cell is missing.

    An item of a list is taken, lower-cased, then pieces are replaced in order; of a whole list, in each of its items.
    """

    column: str
    literal: bool = False  # a list stands as Python spells it, in a text: "['a', 'b']"
    item: str | None = None  # the item of a list whose number this other column holds, from 0
    most_common: bool = False  # the most frequent item of a list, the first among equals
    lettered: bool = False  # the items of a list as lines: "A. first", "B. second"
    names: list[str] = []  # what the numbers 0, 1, 2 ... of the column are called
    lower: bool = False
    replace: dict[str, str] = {}

    @model_validator(mode="after")
    def _makes_one_thing(self) -> Self:
        given = [name for name in ("item", "most_common", "lettered", "names") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each make another thing of {self.column}; derive a column by each")
        return self

    def value(self, row: dict[str, Any]) -> Made:
        """The value in a row."""
        value: Any = row.get(self.column)
        if is_missing(value):
            return None
        value = _parsed(value) if self.literal else value
        if (self.item or self.most_common or self.lettered) and not (isinstance(value, list | tuple) and value):
            raise UserError(f"{self.column}={str(value)[:60]!r} is no list of items; derive from a column of lists")
        if self.item:
            if is_missing(row.get(self.item)):
                return None
            value = value[_number(self.item, row[self.item], len(value))]
        elif self.most_common:
            counts = Counter(self._text(item) for item in value if not is_missing(item))
            value = counts.most_common(1)[0][0] if counts else None
        elif self.lettered:
            value = "\n".join(f"{chr(ord('A') + n)}. {self._text(item)}" for n, item in enumerate(value))
        elif self.names:
            value = self.names[_number(self.column, value, len(self.names))]
        return [self._mended(item) for item in value] if isinstance(value, list | tuple) else self._mended(value)

    def _mended(self, value: Any) -> str | None:
        if is_missing(value):
            return None
        text = self._text(value).lower() if self.lower else self._text(value)
        for old, replacement in self.replace.items():
            text = text.replace(old, replacement)
        return text

    def _text(self, value: Any) -> str:
        try:
            return cell_text(value)
        except ValueError as error:
            raise UserError(f"{self.column} holds an item that is no text ({error}); mend the row") from None


def _number(column: str, value: Any, count: int) -> int:
    """The number of an item that a cell holds, as a number or in digits."""
    text = "" if isinstance(value, bool | list | dict) else cell_text(value)
    if not text.isdecimal() or int(text) >= count:
        raise UserError(f"{column}={value!r} is not the number of one of {count} items")
    return int(text)


def _parsed(text: Any) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{str(text)[:60]!r} is no list as Python spells it; leave literal out") from None

"""Columns of a table that are made from other ones."""

import ast
from collections import Counter
from typing import Any

from mmgpt.config import Config, UserError
from mmgpt.datasets.rows import Row


class Derived(Config):
    """A column made from another one, or from one derived before it.

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

    def of(self, row: Row) -> str | list[str]:
        """The value in a row."""
        value = _parsed(row[self.column]) if self.literal else row[self.column]
        if (self.item or self.most_common or self.lettered) and not (isinstance(value, list) and value):
            raise UserError(f"{self.column}={str(value)[:60]!r} is no list of items; derive from a column of lists")
        if self.item:
            value = value[_number(self.item, row[self.item], len(value))]
        elif self.most_common:
            value = Counter(value).most_common(1)[0][0]
        elif self.lettered:
            value = "\n".join(f"{chr(ord('A') + n)}. {item}" for n, item in enumerate(value))
        elif self.names:
            value = self.names[_number(self.column, value, len(self.names))]
        return [self._mended(item) for item in value] if isinstance(value, list) else self._mended(value)

    def _mended(self, value: Any) -> str:
        text = str(value).lower() if self.lower else str(value)
        for old, replacement in self.replace.items():
            text = text.replace(old, replacement)
        return text


def _number(column: str, value: Any, count: int) -> int:
    """The number of an item that a cell holds, as a number or in digits."""
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) >= count:
        raise UserError(f"{column}={value!r} is not the number of one of {count} items")
    return int(value)


def _parsed(text: Any) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{str(text)[:60]!r} is no list as Python spells it; leave literal out") from None

"""Rows of parquet files, by number and in order, with floats as short as they are stored."""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError

SHORT_FLOATS = re.compile(r"\b(float|halffloat)\b")  # in a type of pyarrow: those of at most 32 bits


class ParquetRows:
    """Rows of parquet files: one row group is decoded at a time, the last two are held.

    Reading in a shuffled order decodes a group a row; a file with groups of a few hundred rows bears that.
    """

    made: frozenset[str] = frozenset()

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.groups: list[tuple[str, int]] = []
        counts, self.columns = [], list[str]()
        for path in paths:
            file = _open_parquet(*_state(path))
            names = list(file.schema_arrow.names)
            if doubled := [name for name, count in Counter(names).items() if count > 1]:
                raise UserError(f"{path}: two columns are called {doubled[0]!r}; give each a name of its own")
            self.columns = self.columns or names
            if set(names) != set(self.columns):
                raise UserError(f"{path}: has the columns {names}, {paths[0].name} has {self.columns}; read them apart")
            self.groups += [(str(path), group) for group in range(file.num_row_groups)]
            counts += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        which = bisect_right(self.ends, index)
        path, group = self.groups[which]
        start = self.ends[which - 1] if which else 0
        found = _row_group(group, tuple(self.columns), *_state(path)).slice(index - start, 1)
        return next(_cells_of(found))

    def names(self) -> list[str]:
        """The columns of the schema that are kept."""
        return self.columns

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows, with the columns that are named alone."""
        for path, group in self.groups:
            file = _open_parquet(*_state(path))
            for batch in file.iter_batches(1024, row_groups=[group], columns=list(columns), use_threads=False):
                yield from _cells_of(batch)

    def place(self, index: int) -> str:
        """The number of a row in its file, from 0."""
        path = self.groups[bisect_right(self.ends, index)][0]
        first = next(number for number, (other, _) in enumerate(self.groups) if other == path)
        return f"row {index - (self.ends[first - 1] if first else 0)} of {path}"

    def select_columns(self, columns: Sequence[str]) -> None:
        """Read these columns alone."""
        self.columns = [name for name in self.columns if name in columns]


def _cells_of(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table or batch of pyarrow; a float of 32 bits stays one, for as a double 0.1 is 0.10000000149."""
    types = {field.name: field.type for field in table.schema if SHORT_FLOATS.search(str(field.type))}
    for row in table.to_pylist():
        yield {**row, **{name: _short_floats(row[name], type_) for name, type_ in types.items()}}


def _short_floats(value: Any, type_: Any) -> Any:
    """A value of a pyarrow type with its floats of 32 bits and fewer as such, in lists and structs too."""
    if value is None or not SHORT_FLOATS.search(str(type_)):
        return value
    if isinstance(value, dict):
        return {name: _short_floats(one, type_.field(name).type) for name, one in value.items()}
    if isinstance(value, list) and hasattr(type_, "value_type"):
        if isinstance(next(filter(None, value), None), float):  # at once: the samples of a sound are 100,000s
            return [one if one is None else np.float32(one) for one in value]
        return [_short_floats(one, type_.value_type) for one in value]
    return np.float32(value) if isinstance(value, float) else value


def _state(path: str | Path) -> tuple[str, int, int, int]:
    """What a file is known by: one that is written again is another."""
    stat = os.stat(path)
    return str(path), stat.st_mtime_ns, stat.st_size, os.getpid()


@lru_cache(maxsize=64)
def _open_parquet(path: str, changed: int, size: int, process: int) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f'{path}: parquet needs pyarrow; pip install "mmgpt[data]"') from None
    try:
        return ParquetFile(path, memory_map=True)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}); download it again") from None


@lru_cache(maxsize=2)
def _row_group(group: int, columns: tuple[str, ...], path: str, *state: int) -> Any:
    file = _open_parquet(path, *state)
    try:
        return file.read_row_group(group, columns=list(columns), use_threads=False)
    except OSError as error:  # its footer was whole, its pages are not
        raise UserError(f"{path}: row group {group} cannot be read ({error}); download it again") from None

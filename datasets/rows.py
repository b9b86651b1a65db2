"""Rows of a table, by number: in memory (json, csv, tsv, txt, file names) or read when asked for (json lines, parquet).

What is read when asked for costs memory by the row (eight bytes of json lines) or by the row group (two of parquet).
"""

import csv
import json
import os
import re
import zipfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Protocol

from mmgpt.config import UserError
from mmgpt.datasets.media import open_zip

Row = dict[str, Any]
FOLDER_OF = (".parquet", ".jsonl")  # a folder stands for the files of the first of these that it holds


class Rows(Protocol):
    """Rows by number, and in order."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    def names(self) -> list[str]:
        """The columns, as the first row has them."""

    def scan(self, columns: Sequence[str]) -> Iterable[Row]:
        """All rows in order; other columns than those named may be left out."""

    def keep(self, columns: Sequence[str]) -> None:
        """Read no other columns from now on, where columns can be read apart."""


class ListRows(list[Row]):
    """Rows in memory."""

    def names(self) -> list[str]:
        """The columns of the first row."""
        return list(self[0]) if self else []

    def scan(self, columns: Sequence[str]) -> Iterable[Row]:
        """The rows themselves."""
        return self

    def keep(self, columns: Sequence[str]) -> None:
        """They are all in memory."""


class JsonLines:
    """Rows of json-lines files: one offset a row is held."""

    def __init__(self, paths: list[Path], columns: list[str] | None = None) -> None:
        self.paths, self.columns = paths, columns
        self.offsets, self.ends = array("q"), []  # of each row, and the number of rows up to the end of each file
        for path in paths:
            at = 0
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        self.offsets.append(at)
                    at += len(line)
            self.ends.append(len(self.offsets))

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> Row:
        which = bisect_right(self.ends, index)
        with self.paths[which].open("rb") as file:
            file.seek(self.offsets[index])
            return self._parse(file.readline(), which, index)

    def names(self) -> list[str]:
        """The keys of the first row."""
        return list(self[0]) if len(self) else []

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, one at a time."""
        index = 0
        for which, path in enumerate(self.paths):
            with path.open("rb") as file:
                for line in filter(bytes.strip, file):
                    yield self._parse(line, which, index)
                    index += 1

    def keep(self, columns: Sequence[str]) -> None:
        """A line is read whole."""

    def _parse(self, line: bytes, which: int, index: int) -> Row:
        number = index - (self.ends[which - 1] if which else 0)
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{self.paths[which]}: row {number} is not JSON ({error}); write one object a line"
            ) from None
        return _named(row, self.columns, self.paths[which], number)


class ParquetRows:
    """Rows of parquet files: one row group is decoded at a time, the last two are held.

    Reading in a shuffled order decodes a group a row; a file with groups of a few hundred rows bears that.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.groups: list[tuple[str, int]] = []
        counts, self.columns = [], list[str]()
        for path in paths:
            file = _open_parquet(str(path), os.getpid())
            names = list(file.schema_arrow.names)
            self.columns = self.columns or names
            if set(names) != set(self.columns):
                raise UserError(f"{path}: has the columns {names}, {paths[0].name} has {self.columns}; read them apart")
            self.groups += [(str(path), group) for group in range(file.num_row_groups)]
            counts += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Row:
        which = bisect_right(self.ends, index)
        path, group = self.groups[which]
        start = self.ends[which - 1] if which else 0
        row: Row = _row_group(path, group, tuple(self.columns), os.getpid()).slice(index - start, 1).to_pylist()[0]
        return row

    def names(self) -> list[str]:
        """The columns of the schema that are kept."""
        return self.columns

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, with the columns that are named alone."""
        for path, group in self.groups:
            file = _open_parquet(path, os.getpid())
            for batch in file.iter_batches(1024, row_groups=[group], columns=list(columns), use_threads=False):
                yield from batch.to_pylist()

    def keep(self, columns: Sequence[str]) -> None:
        """Read these columns alone."""
        self.columns = [name for name in self.columns if name in columns]


class NamedRows:
    """Rows of several files, each with columns of its own that its path tells."""

    def __init__(self, parts: list[tuple[Rows, Row]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(rows) for rows, _ in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Row:
        which = bisect_right(self.ends, index)
        rows, named = self.parts[which]
        return {**rows[index - (self.ends[which - 1] if which else 0)], **named}

    def names(self) -> list[str]:
        """The columns of the first file, then those of its path."""
        rows, named = self.parts[0]
        return [*rows.names(), *named]

    def scan(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, file by file."""
        for rows, named in self.parts:
            for row in rows.scan([name for name in columns if name not in named]):
                yield {**row, **named}

    def keep(self, columns: Sequence[str]) -> None:
        """Read these columns alone."""
        for rows, _ in self.parts:
            rows.keep(columns)


@lru_cache(maxsize=64)
def _open_parquet(path: str, process: int) -> Any:
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
def _row_group(path: str, group: int, columns: tuple[str, ...], process: int) -> Any:
    return _open_parquet(path, process).read_row_group(group, columns=list(columns), use_threads=False)


def open_rows(
    paths: list[Path], columns: list[str] | None = None, rows: str | None = None, *, is_quoted: bool = True
) -> Rows:
    """The rows of files of one kind, told by their suffix.

    Args:
        columns: names for rows that are lists, for the fields of a csv or tsv without a header, and for those of a txt
            file, which a tab parts.
        rows: the key of a json file under which its rows stand.
        is_quoted: whether a double quote opens a quoted field of a csv or tsv.
    Raises:
        UserError: if a file is of another kind or cannot be read.
    """
    kinds = {path.suffix for path in paths}
    if kinds == {".parquet"}:
        return ParquetRows(paths)
    if kinds == {".jsonl"}:
        return JsonLines(paths, columns)
    found = ListRows()
    for path in paths:
        try:
            if path.suffix == ".json":
                raw = _read_json(path, rows)
            elif path.suffix in (".csv", ".tsv"):
                raw = _read_csv(path, is_quoted, columns)
            elif path.suffix == ".txt":
                raw = [line.split("\t", max(0, len(columns or ()) - 1)) for line in read_lines(path)]
            else:
                known = ".json, .jsonl, .csv, .tsv, .txt, .parquet"
                raise UserError(
                    f"{path}: a table is a file of {known}, all of one kind; for a folder of media give files: PATTERN"
                )
        except (ValueError, csv.Error, IsADirectoryError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a readable {path.suffix[1:]} table ({error})") from None
        found += [_named(row, columns, path, number) for number, row in enumerate(raw)]
    return found


def _named(row: Any, columns: list[str] | None, path: Path, number: int) -> Row:
    if isinstance(row, dict):
        return row
    if isinstance(row, list) and columns and len(row) == len(columns):
        return dict(zip(columns, row, strict=True))
    raise UserError(f"{path}: row {number} is {str(row)[:60]}; give objects, or lists and as many names in columns")


def _read_json(path: Path, key: str | None) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        rows = [json.loads(line) for line in filter(str.strip, text.splitlines())]  # json lines by another name
    if key is not None:
        if not isinstance(rows, dict) or key not in rows:
            raise ValueError(f"it has no key {key} that holds its rows")
        rows = rows[key]
    if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
        rows = [{"id": name, **row} for name, row in rows.items()]
    if not isinstance(rows, list):
        raise ValueError(f"it holds a {type(rows).__name__}, not a list of rows; is there a key to name in rows?")
    return rows


def _read_csv(path: Path, is_quoted: bool, columns: list[str] | None) -> list[Any]:
    csv.field_size_limit(1 << 30)  # the tables of VLMEvalKit hold pictures in base64
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
        rows = list(csv.DictReader(file, columns, delimiter=delimiter, quoting=quoting))
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has more or fewer fields than the header")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without their ends.

    Raises:
        UserError: if it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error}); convert it first") from None
    return text.removesuffix("\n").split("\n") if text else []


def _expression(pattern: str) -> str:
    """A regular expression with a group for each name in braces; * is anything but a slash."""
    seen: set[str] = set()
    expression = ""
    for literal, field, _, _ in Formatter().parse(pattern):
        expression += re.escape(literal).replace(r"\*", "[^/]*")
        if field:
            expression += f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+)"
            seen.add(field)
    return expression


def names_in_path(path: Path, root: Path, pattern: str) -> Row:
    """What the names in braces of a pattern stand for in the path of a file below a root."""
    match = re.fullmatch(_expression(pattern), path.relative_to(root).as_posix())
    if match is None:
        raise UserError(f"{path}: is not named as {pattern} says; a name that stands twice must be the same")
    return match.groupdict()


def read_file_names(path: Path, pattern: str) -> ListRows:
    """One row a file of a folder or zip: the pattern's names as columns, and `file`, its path inside."""
    expression = _expression(pattern)
    if path.suffix == ".zip":
        try:
            names = open_zip(str(path)).namelist()
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a zip that can be read ({error}); download it again") from None
    else:
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    matches = [(name, match) for name in sorted(names) if (match := re.fullmatch(expression, name))]
    return ListRows({**match.groupdict(), "file": name} for name, match in matches)

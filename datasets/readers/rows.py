"""Rows of a table, by number: in memory (json, csv, tsv, txt, file names) or read when asked for (json lines, parquet).

What is read when asked for costs memory by the row (eight bytes of json lines) or by the row group (two of parquet).
"""

import csv
import zipfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.file_names import files_below, match_names, members_of
from mmgpt.datasets.media import open_zip
from mmgpt.datasets.plain_text import COMPRESSED, not_utf8, parse_json, read_json, read_lines, start_of_text
from mmgpt.datasets.readers.delimited import DELIMITERS, read_delimited
from mmgpt.datasets.readers.parquet_rows import ParquetRows
from mmgpt.datasets.template import fields_of

Row = dict[str, Any]
FOLDER_OF = (".parquet", ".jsonl")  # a folder stands for the files of the one of these that it holds


class Rows(Protocol):
    """Rows by number, and in order."""

    @property
    def made(self) -> frozenset[str]:
        """The columns that come from the names of files or objects; nobody needs to read them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    def names(self) -> list[str]:
        """The columns: of a header or schema, of all rows in memory, or of the first of json lines."""

    def place(self, index: int, /) -> str:
        """Where a row stands, for an error."""

    def iterate(self, columns: Sequence[str]) -> Iterable[Row]:
        """All rows in order; other columns than those named may be left out."""

    def select_columns(self, columns: Sequence[str]) -> None:
        """Read no other columns from now on, where columns can be read apart."""


class ListRows(list[Row]):
    """Rows in memory."""

    def __init__(self, rows: Iterable[Row] = (), made: Iterable[str] = (), like: Rows | None = None) -> None:
        super().__init__(rows)
        self.made = frozenset(made)
        self.like = like  # the rows that these were made of, one by one: they know where a row stands
        self.files: list[tuple[int, Path, Sequence[int]]] = []  # the first row of each file, and the lines of its rows

    def add(self, path: Path, rows: Iterable[Row], lines: Sequence[int] = ()) -> None:
        """Append the rows of a file."""
        self.files.append((len(self), path, lines))
        self += rows

    def names(self) -> list[str]:
        """The columns that any row has."""
        return list(dict.fromkeys(name for row in self for name in row))

    def place(self, index: int) -> str:
        """The line or the number of a row in its file."""
        if self.like is not None:
            return self.like.place(index)
        if not self.files:
            return f"row {index}"
        first, path, lines = self.files[bisect_right([first for first, _, _ in self.files], index) - 1]
        return f"line {lines[index - first]} of {path}" if lines else f"row {index - first} of {path}"

    def iterate(self, columns: Sequence[str]) -> Iterable[Row]:
        """The rows themselves."""
        return self

    def select_columns(self, columns: Sequence[str]) -> None:
        """They are all in memory."""


class JsonLines:
    """Rows of json-lines files: one offset a row is held."""

    made: frozenset[str] = frozenset()

    def __init__(self, paths: list[Path], columns: list[str] | None = None) -> None:
        self.paths, self.columns = paths, columns
        self.offsets, self.ends = array("q"), []  # of each row, and the number of rows up to the end of each file
        for path in paths:
            at = start_of_text(path)
            with path.open("rb") as file:
                file.seek(at)
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

    def iterate(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, one at a time."""
        index = 0
        for which, path in enumerate(self.paths):
            with path.open("rb") as file:
                file.seek(start_of_text(path))
                for line in filter(bytes.strip, file):
                    yield self._parse(line, which, index)
                    index += 1

    def select_columns(self, columns: Sequence[str]) -> None:
        """A line is read whole."""

    def place(self, index: int) -> str:
        """The number of a row in its file, from 0, blank lines not counted."""
        which = bisect_right(self.ends, index)
        return f"row {index - (self.ends[which - 1] if which else 0)} of {self.paths[which]}"

    def _parse(self, line: bytes, which: int, index: int) -> Row:
        number, path = index - (self.ends[which - 1] if which else 0), self.paths[which]
        try:
            row = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise not_utf8(path, f"row {number}: {error}") from None
        except ValueError as error:
            hint = "write one object a line" if line[:1] != b"[" else "if it is one list, name the file .json"
            raise UserError(f"{path}: row {number} is not JSON ({error}); {hint}") from None
        return _named(row, self.columns, f"{path}: row {number}")


class NamedRows:
    """Rows of several files, each with columns of its own that its path tells."""

    def __init__(self, parts: list[tuple[Rows, Row]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(rows) for rows, _ in parts))
        self.made = frozenset(name for rows, named in parts for name in (*rows.made, *named))
        rows, named = parts[0]
        if doubled := [name for name in rows.names() if name in named]:
            raise UserError(
                f"{rows.place(0)}: its rows and its path name {doubled[0]!r}; call that of the path otherwise"
            )

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Row:
        rows, named, start = self._part(index)
        return {**rows[index - start], **named}

    def _part(self, index: int) -> tuple[Rows, Row, int]:
        which = bisect_right(self.ends, index)
        return *self.parts[which], self.ends[which - 1] if which else 0

    def names(self) -> list[str]:
        """The columns of all files, then those of their paths."""
        found = [name for rows, _ in self.parts for name in rows.names()]
        return list(dict.fromkeys([*found, *(name for _, named in self.parts for name in named)]))

    def place(self, index: int) -> str:
        """Where a row stands in its file."""
        rows, _, start = self._part(index)
        return rows.place(index - start)

    def iterate(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, file by file."""
        for rows, named in self.parts:
            for row in rows.iterate([name for name in columns if name not in named]):
                yield {**row, **named}

    def select_columns(self, columns: Sequence[str]) -> None:
        """Read these columns alone."""
        for rows, _ in self.parts:
            rows.select_columns(columns)


def open_rows(
    paths: list[Path], columns: list[str] | None = None, rows: str | None = None, *, is_quoted: bool | None = None
) -> Rows:
    """The rows of files of one kind, told by their suffix.

    Args:
        columns: names for rows that are lists, for the fields of a csv or tsv without a header, and for those of a txt
            file, which a tab parts.
        rows: the key of a json file under which its rows stand.
        is_quoted: whether a double quote opens a quoted field of a csv or tsv; by default in a csv, not in a tsv.
    Raises:
        UserError: if a file is of another kind or cannot be read, or an option has no meaning for it.
    """
    kinds = {path.suffix.lower() for path in paths}
    kind = next(iter(kinds)) if len(kinds) == 1 else ""
    for name, given, of in (
        ("columns", columns is not None, (".json", ".jsonl", ".txt", *DELIMITERS)),
        ("rows", rows is not None, (".json",)),
        ("is_quoted", is_quoted is not None, tuple(DELIMITERS)),
    ):
        if given and kind and kind not in of:
            raise UserError(f"{paths[0]}: {name} means nothing for {kind}, only for {', '.join(of)}; leave it out")
    if kind == ".parquet":
        return ParquetRows(paths)
    if kind == ".jsonl":
        return JsonLines(paths, columns)
    found = ListRows()
    for path in paths:
        try:
            _read_into(found, path, columns, rows, is_quoted)
        except (ValueError, csv.Error, IsADirectoryError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a readable {path.suffix[1:].lower()} table ({error})") from None
    return found


def _read_into(found: ListRows, path: Path, columns: list[str] | None, key: str | None, is_quoted: bool | None) -> None:
    """Append the rows of a file that is read into memory."""
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        found.add(path, *read_delimited(path, is_quoted, columns))
    elif suffix == ".txt":
        lines = read_lines(path)
        while lines and not lines[-1].strip():
            lines.pop()
        fields = [line.split("\t", max(0, len(columns or ()) - 1)) for line in lines]
        rows = [_named(row, columns, f"{path}: row {number}") for number, row in enumerate(fields)]
        found.add(path, rows, range(1, len(rows) + 1))
    elif suffix == ".json":
        raw, made = _json_rows(read_json(path), key)
        found.made |= made
        found.add(path, [_named(row, columns, f"{path}: row {number}") for number, row in enumerate(raw)])
    elif suffix in COMPRESSED:
        raise UserError(f"{path}: a table is read as it is; unpack the {suffix[1:]} file first")
    else:
        known = ".json, .jsonl, .csv, .tsv, .txt, .parquet"
        raise UserError(
            f"{path}: a table is a file of {known}, all of one kind; for a folder of media give files: PATTERN"
        )


def _named(row: Any, columns: list[str] | None, where: str) -> Row:
    if isinstance(row, dict):
        if columns:
            raise UserError(f"{where} is an object, which names its own columns; leave columns out")
        return row
    if isinstance(row, list) and columns and len(row) == len(columns):
        if len(set(columns)) < len(columns):
            raise UserError(f"{where}: columns names one twice: {', '.join(columns)}; give each a name of its own")
        return dict(zip(columns, row, strict=True))
    raise UserError(f"{where} is {str(row)[:60]}; give objects, or lists and as many names in columns")


def _json_rows(tree: Any, key: str | None) -> tuple[list[Any], set[str]]:
    """The rows of a json file, and the columns that are made of the names of its objects."""
    made = set[str]()
    if key is not None:
        if not isinstance(tree, dict) or key not in tree:
            known = did_you_mean(key, tree) if isinstance(tree, dict) else "it is no object"
            raise ValueError(f"it has no key {key} that holds its rows; {known}")
        tree = tree[key]
    if isinstance(tree, dict) and tree and all(isinstance(row, dict) for row in tree.values()):
        made = set() if any("id" in row for row in tree.values()) else {"id"}
        tree = [{"id": name, **row} for name, row in tree.items()]
    if not isinstance(tree, list):
        raise ValueError(f"it holds a {type(tree).__name__}, not a list of rows; is there a key to name in rows?")
    return tree, made


def read_file_names(path: Path, pattern: str) -> ListRows:
    """One row a file of a folder or zip: the pattern's names as columns, and `file`, its path inside."""
    if path.suffix.lower() == ".zip":
        try:
            names = members_of(path, open_zip(str(path)))
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a zip that can be read ({error}); download it again") from None
    else:
        names = files_below(path)
    return ListRows(({**row, "file": name} for name, row in match_names(names, pattern)), {*fields_of(pattern), "file"})

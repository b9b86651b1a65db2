"""Tables of delimited text: csv with quoted fields (RFC 4180, read strictly), tsv without.

A quote in a tsv is a character like any other unless the reader is told that fields are quoted; in a csv a quote that
does not end where a field does is an error that names the line, for it would swallow rows.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmgpt.config import UserError
from mmgpt.datasets.cells import bare, is_missing
from mmgpt.datasets.plain_text import read_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_delimited(
    path: Path, is_quoted: bool | None = None, columns: Sequence[str] | None = None
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a csv or tsv, and the line of the file on which each begins.

    Args:
        is_quoted: whether a double quote opens a quoted field; by default in a csv, not in a tsv.
        columns: the names of its columns, if it has no header.
    Raises:
        UserError: if it is no UTF-8 text, or a column's name stands twice.
        ValueError: names the line that does not fit.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    is_quoted = delimiter == "," if is_quoted is None else is_quoted
    names = list(columns) if columns else None
    if columns:
        _check_names(path, columns)
    rows: list[list[str]] = []
    starts: list[int] = []
    for start, fields in _quoted(path, delimiter) if is_quoted else _unquoted(path, delimiter):
        if names is None:
            names = [bare(name) for name in fields]
            continue
        if len(names) > 1 and len(fields) == 1 and not fields[0].strip():
            continue  # a blank line
        if len(fields) != len(names):
            hint = "" if is_quoted else "; if its fields are quoted, set is_quoted: true"
            told = f"line {start}: {len(fields)}, not {len(names)}"
            raise ValueError(f"row {len(rows)} has more or fewer fields than the header ({told}){hint}")
        rows.append(fields)
        starts.append(start)
    kept = _named(path, names or [], rows)
    return [{names[at]: row[at] for at in kept} for row in rows] if names else [], starts


def _named(path: Path, names: list[str], rows: list[list[str]]) -> list[int]:
    """The places of the columns; those without name and values, which spreadsheets leave behind, are none."""
    kept = [at for at, name in enumerate(names) if name or not all(is_missing(row[at]) for row in rows)]
    _check_names(path, [names[at] for at in kept])
    return kept


def _check_names(path: Path, names: Sequence[str]) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: two columns are called {doubled[0]!r}; give each a name of its own")


def _unquoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    text = read_text(path)
    end = "\n" if "\n" in text else "\r"
    for number, line in enumerate(text.split(end), start=1):
        line = line.removesuffix("\r") if end == "\n" else line
        if line:
            yield number, line.split(delimiter)


def _quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)  # the tables of VLMEvalKit hold pictures in base64
    text = read_text(path)
    lines = io.StringIO(text, newline="\n" if "\n" in text else "")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"the row that begins on line {start} has a quote or a line end where none belongs, noticed on line "
            f"{reader.line_num}: {error}; write a quote inside quotes twice, or set is_quoted: false"
        ) from None

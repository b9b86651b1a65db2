"""Plain text: files of it, or a column of json lines or parquet. Each piece of it is a document.

Texts are scanned once, a megabyte or a row at a time, and read again by place: what is held is 24 bytes a piece. Blank
pieces and rows without text are none; other columns than the text's must be named in `ignore`.
"""

import codecs
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.cells import check_keys, is_missing
from mmgpt.datasets.plain_text import not_utf8, start_of_text
from mmgpt.datasets.readers.rows import Rows, open_rows
from mmgpt.datasets.sample import Message, Sample
from mmgpt.datasets.source import Source, SourceConfig, resolve_all

CHUNK = 1 << 20  # bytes
PATTERNS = {"line": r"[^\r\n]+", "paragraph": r"(?:[^\r\n]+(?:\r?\n)?)+"}
TABLES = (".jsonl", ".parquet")
SUFFIXES = (".txt", *TABLES)


class TextConfig(SourceConfig):
    """Plain text. Each piece is a document: a window of characters, a line, a paragraph, or a whole row of a table."""

    reader: Literal["text"]
    path: str | list[str]  # files, patterns with *, or folders of .txt, .jsonl or .parquet files; all of one kind
    column: str = "text"  # of json lines and parquet: where the text stands; no piece crosses its row
    unit: Literal["window", "piece", "line", "paragraph", "row"] = "window"  # pieces: windows that never overlap
    window: PositiveInt = 1024  # characters; the last piece has fewer
    stride: PositiveInt | None = None  # characters from one window's start to the next; a quarter window if not given
    span: tuple[float, float] = (0.0, 1.0)  # the part of each file to read, as shares of its characters, or of rows


class TextSource(Source):
    """Documents: each sample is one assistant message, which is rendered without a template."""

    def __init__(self, config: TextConfig, data_root: Path) -> None:
        self.config = config
        given = [config.path] if isinstance(config.path, str) else config.path
        paths = [path.replace("{split}", config.split) for path in given]
        self.paths = self.files = resolve_all(data_root, paths, SUFFIXES)
        first = paths[0]
        self.name = config.label or Path(first).stem
        self.pieces = tuple(
            array("q") for _ in range(3)
        )  # file or row, start, stop: in bytes of a file, else characters
        self.rows: Rows | None = None
        if any(path.suffix.lower() in TABLES for path in self.paths):
            self.rows = open_rows(self.paths)
            self._cut_rows(self.rows)
        elif config.unit == "row":
            raise UserError(f"{self.paths[0]}: a text file has no rows; unit is window, piece, line or paragraph")
        elif config.column != "text" or config.ignore:
            raise UserError(f"{self.paths[0]}: a text file has no columns; leave column and ignore out")
        else:
            for number, path in enumerate(self.paths):
                for start, stop in _cut_file(path, config):
                    self._append(number, start, stop)
        super().__init__(config, len(self.pieces[0]), self.paths[0])

    def __getitem__(self, index: int) -> Sample:
        owner, start, stop = (column[index] for column in self.pieces)
        if self.rows is not None:
            text = self.rows[owner][self.config.column][start:stop]
        else:
            with self.paths[owner].open("rb") as file:
                file.seek(start)
                text = file.read(stop - start).decode("utf-8").replace("\r\n", "\n")
        return Sample((Message.of("assistant", text),), self.name, f"{self.name}/{index}")

    def _append(self, *piece: int) -> None:
        for column, value in zip(self.pieces, piece, strict=True):
            column.append(value)

    def _cut_rows(self, rows: Rows) -> None:
        name = self.config.column
        if len(rows) and name not in rows.names():
            raise UserError(f"{self.paths[0]}: no column {name}; {did_you_mean(name, rows.names())}")
        known = rows.names() if len(rows) else []
        check_keys(known, [name], self.config.ignore, str(self.paths[0]))
        rows.select_columns([name])
        first, last = (round(share * len(rows)) for share in self.config.span)
        for number, row in enumerate(rows.iterate([name])):
            if not row.keys() <= set(known):
                check_keys(row, known, self.config.ignore, rows.place(number))
            text = row.get(name)
            if is_missing(text):
                continue
            if not isinstance(text, str):
                raise UserError(f"{self.paths[0]}: row {number} holds no text in {name}: {str(text)[:60]!r}; mend it")
            if first <= number < last:
                for start, stop in _cut(text, self.config):
                    self._append(number, start, stop)


def _windows(length: int, config: TextConfig) -> np.ndarray:
    """Where windows, or pieces, start in so many characters."""
    if config.unit == "piece":
        return np.arange(0, length, config.window)
    last = max(0, length - config.window)
    starts = np.arange(0, last, config.stride or max(1, config.window // 4))
    return np.append(starts, last) if length else starts


def _cut(text: str, config: TextConfig) -> Iterator[tuple[int, int]]:
    if config.unit == "row":
        yield 0, len(text)
    elif config.unit in ("window", "piece"):
        yield from ((at, at + config.window) for at in _windows(len(text), config).tolist())
    else:
        yield from (match.span() for match in re.finditer(PATTERNS[config.unit], text) if match.group().strip())


def _cut_file(path: Path, config: TextConfig) -> Iterator[tuple[int, int]]:
    """The pieces of a text file, in bytes."""
    has_mark = start_of_text(path) > 0  # a byte order mark is a character to the decoder, and none of the text
    length = _count_characters(path) - has_mark
    first, last = (round(share * length) + has_mark for share in config.span)
    if first >= last:
        return
    if config.unit in ("window", "piece"):
        starts = first + _windows(last - first, config)
        stops = np.minimum(starts + config.window, last)
        yield from zip(_bytes_of(path, starts).tolist(), _bytes_of(path, stops).tolist(), strict=True)
        return
    start, stop = _bytes_of(path, np.array([first, last])).tolist()
    pattern = re.compile(PATTERNS[config.unit].encode())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from (match.span() for match in pattern.finditer(content, start, stop) if match.group().strip())


def _count_characters(path: Path) -> int:
    decoder, length = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                length += len(decoder.decode(chunk))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    return length


def _bytes_of(path: Path, characters: np.ndarray) -> np.ndarray:
    """Where characters stand in a file; their numbers never go down, the last may be the file's end."""
    found = np.empty_like(characters)
    seen = at = 0  # characters and bytes before the chunk
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            begins = np.flatnonzero((np.frombuffer(chunk, np.uint8) & 0xC0) != 0x80)  # not a continuation byte
            low, high = np.searchsorted(characters, [seen, seen + len(begins)])
            found[low:high] = begins[characters[low:high] - seen] + at
            seen, at = seen + len(begins), at + len(chunk)
    found[np.searchsorted(characters, seen) :] = at
    return found

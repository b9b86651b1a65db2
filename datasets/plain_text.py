"""Text files and JSON as the world writes them: byte order marks are passed over, other encodings refused by name.

Only a line feed ends a line (Unicode's other separators stand inside fields and strings), or a carriage return in a
file that has no line feed, as old Macs wrote them.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgpt.config import UserError

BOM = codecs.BOM_UTF8
SIGNATURES = {  # what begins so is no UTF-8 text; the longer of two first
    codecs.BOM_UTF32_LE: ("it is UTF-32", "save it as UTF-8"),
    codecs.BOM_UTF32_BE: ("it is UTF-32", "save it as UTF-8"),
    codecs.BOM_UTF16_LE: ("it is UTF-16", "save it as UTF-8, as by iconv -f UTF-16 -t UTF-8"),
    codecs.BOM_UTF16_BE: ("it is UTF-16", "save it as UTF-8, as by iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("it is compressed by gzip", "unpack it by gunzip"),
    b"\x28\xb5\x2f\xfd": ("it is compressed by zstd", "unpack it by unzstd"),
    b"BZh": ("it is compressed by bzip2", "unpack it by bunzip2"),
    b"\xfd7zXZ\x00": ("it is compressed by xz", "unpack it by unxz"),
    b"PK\x03\x04": ("it is a zip or a spreadsheet", "unpack it, or save the sheet as csv"),
    b"PAR1": ("it is parquet", "name it .parquet"),
    b"version https://git-lfs.github.com/spec/": ("it is a pointer of Git LFS, not the data", "run git lfs pull"),
}
COMPRESSED = (".gz", ".bgz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")


def start_of_text(path: Path) -> int:
    """Where the text of a UTF-8 file begins, in bytes: behind a byte order mark.

    Raises:
        UserError: if it is a folder, compressed, or of another encoding, by its first bytes.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except IsADirectoryError:
        raise UserError(f"{path}: not a UTF-8 text file (it is a folder); name a file") from None
    for signature, (what, remedy) in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"{path}: not a UTF-8 text file ({what}); {remedy}")
    zeros = [head[start::2].count(0) for start in (0, 1)]  # every second byte of Latin letters
    if min(zeros) == 0 and max(zeros) > len(head) // 4 > 1:
        raise UserError(f"{path}: not a UTF-8 text file (it looks like UTF-16); save it as UTF-8")
    return len(BOM) if head.startswith(BOM) else 0


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte order mark, its line ends as they are.

    Raises:
        UserError: if it is no UTF-8 text; names the line.
    """
    start = start_of_text(path)
    payload = path.read_bytes()[start:]
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise not_utf8(path, f"line {line}: {error}") from None


def not_utf8(path: Path, reason: object) -> UserError:
    """The error about a file whose bytes are no UTF-8, with where and which."""
    remedy = "save it as UTF-8, as by iconv -f LATIN1 -t UTF-8 if it is Latin-1"
    return UserError(f"{path}: not a UTF-8 text file ({reason}); {remedy}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without their ends.

    Raises:
        UserError: if it is no UTF-8 text.
    """
    text = read_text(path)
    end = "\n" if "\n" in text else "\r"
    lines = text.removesuffix(end).split(end) if text else []
    return [line.removesuffix("\r") for line in lines] if end == "\n" else lines


def parse_json(text: str) -> Any:
    """JSON in which no object has a key twice.

    Raises:
        ValueError: if it is not; whoever reads the file says where.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; JSON lines by another name are a list.

    Raises:
        UserError: if it is no UTF-8 text.
        ValueError: if it is not JSON.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError("it is empty")
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return list(_json_lines(text))


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {doubled!r} twice; leave one")
    return found

"""Tars of samples as webdataset lays them out: where each sample lies, and which members it has.

Members whose names are the same up to the first dot of the file's name are one sample (`set/000123.0.png` is member
`0.png` of `set/000123`), and stand beside each other. What a format or an operating system adds is no member: folders,
hidden files, `__MACOSX`, `PaxHeaders`, `Thumbs.db`, `desktop.ini`, and webdataset's own `__name__`.
Whatever else a tar holds is in a sample or an error: a doubled name, a sample in two pieces, tars joined by `cat`.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from mmgpt.config import UserError
from mmgpt.datasets.file_names import is_system
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.remote import RemoteFileNotFound, is_remote, read_range, read_text, size_of

BLOCK = 512  # bytes; a tar is made of them
PADDING = 2**20  # bytes after the end of a tar in which another one is looked for; tar itself pads to 10 KiB
SCANNED_AS = 2  # goes up when a scan finds other samples than before
MODALITIES = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm"), "image"),
    **dict.fromkeys(("wav", "flac", "mp3", "ogg", "oga", "opus", "aif", "aiff"), "audio"),
    **dict.fromkeys(("mp4", "m4v", "webm", "mkv", "mov", "avi", "mpg", "mpeg"), "video"),
}


def modality_of(ext: str) -> str | None:
    """The kind of medium that a member holds, by the end of its name."""
    return MODALITIES.get(ext.rpartition(".")[2])


def split_name(name: str) -> tuple[str, str]:
    """A member's sample, and what follows the first dot in lower case: `set/000123.0.PNG` is (set/000123, 0.png)."""
    folder, base = PurePosixPath(name).parent, PurePosixPath(name).name
    stem, _, ext = base.partition(".")
    return str(folder / stem), ext.lower()


def is_system_file(name: str) -> bool:
    """True for what a system or a format adds to an archive: hidden files, `__MACOSX/`, `Thumbs.db` and the like."""
    parts = PurePosixPath(name).parts
    return (
        is_system(name)
        or any(part.startswith("PaxHeaders") for part in parts[:-1])
        or any(re.fullmatch(r"__[^.]*__(\..*)?", part) for part in parts)
    )


@dataclass(frozen=True)
class Wanted:
    """Which members are read: those that templates name, and media by kind; and globs of what is left out."""

    fields: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    ignore: tuple[str, ...] = ()

    def leaves_out(self, key: str, ext: str) -> bool:
        """True if a glob names the member, by its end or by its whole name, and no template does."""
        if ext in self.fields or modality_of(ext) in self.kinds:
            return False
        names = (ext, f"{PurePosixPath(key).name}.{ext}".removesuffix("."))
        return any(fnmatchcase(name, pattern) for pattern in self.ignore for name in names)


def read_members(payload: bytes, name: str) -> tuple[str, dict[str, bytes]]:
    """A sample's own name, and its members by what follows the first dot of their names.

    Args:
        payload: the sample's piece of a tar.
        name: what errors call it.
    Raises:
        MediaError: if it is no piece of a tar, or holds a link or a device: only plain files are read.
        UserError: if two members have the same name.
    """
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as tar:
            for member in tar:
                if member.isdir() or is_system_file(member.name):
                    continue
                if not member.isreg():
                    raise MediaError(
                        f"{name}: {member.name} is a link or device, not a file; shard the files themselves"
                    )
                key, ext = split_name(member.name)
                if ext in members:
                    raise UserError(f"{name}: {_twice(member.name)}")
                file = tar.extractfile(member)
                members[ext] = file.read() if file else b""
    except UserError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise MediaError(f"{name}: the tar is damaged ({error}); fetch it again") from None
    return key, members


def _twice(name: str) -> str:
    return f"{name} is there twice (upper and lower case are one); give each member a name of its own"


@lru_cache(maxsize=64)
def ranges_of(path: str, wanted: Wanted = Wanted()) -> np.ndarray:
    """Start and size in bytes (N, 2) of each sample of a shard: from the index beside it, else found and cached.

    Raises:
        UserError: if it is no tar, or its samples cannot be told apart.
    """
    index = re.sub(r"\.tar$", ".json", path)
    if is_remote(path) or Path(index).is_file():
        try:
            told = json.loads(read_text(index))
            if isinstance(told, dict) and "ranges" in told:  # else a description of the shard by somebody else
                if not is_remote(path) and os.path.isfile(path) and told.get("bytes") != os.stat(path).st_size:
                    raise UserError(f"{path}: has changed since {index} was written; shard again, or remove the index")
                return np.array(told["ranges"], dtype=np.int64).reshape(-1, 2)
        except RemoteFileNotFound:
            pass
        except UserError:
            raise
        except (ValueError, TypeError):
            raise UserError(f"{index}: not an index that mmgpt data shard wrote; move it elsewhere") from None
    return _cached_scan(path, wanted)


def _cached_scan(path: str, wanted: Wanted) -> np.ndarray:
    size = size_of(path)
    changed = 0 if is_remote(path) else os.stat(path).st_mtime_ns
    where = path if is_remote(path) else str(Path(path).resolve())
    rule = (SCANNED_AS, sorted(wanted.fields), sorted(wanted.kinds), wanted.ignore) if wanted.ignore else SCANNED_AS
    name = hashlib.sha256(f"{where}|{size}|{changed}|{rule}".encode(errors="surrogateescape")).hexdigest()[:32]
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgpt" / "shards" / f"{name}.npy"
    if kept.is_file():
        found: np.ndarray = np.load(kept, allow_pickle=False)
        return found
    found = np.array(list(_scan(path, size, wanted)), dtype=np.int64).reshape(-1, 2)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(draft, found)
        draft.replace(kept)
    except OSError:  # a home that cannot be written to: it is found anew next time
        pass
    return found


class _Member(NamedTuple):
    """A member's name, None where its header is cut off, and its first byte and the one after its last."""

    name: str | None
    start: int
    end: int


def _scan(path: str, size: int, wanted: Wanted) -> Iterator[tuple[int, int]]:
    """Start and size of each sample of a tar. A tar cut short keeps its last sample, whose reading will say so."""
    seen: dict[str, str] = {}  # the first member of each sample
    members = (one for one in _members(path, size) if one.name is None or not is_system_file(one.name))
    for key, group in groupby(members, lambda one: one.name and split_name(one.name)[0]):
        own = list(group)
        if key is not None:
            names = [str(one.name) for one in own]
            if key in seen:
                raise UserError(f"{path}: {seen[key]} and {names[0]} are {_apart(key, names[0])}")
            seen[key] = names[0]
            exts = [split_name(name)[1] for name in names]
            for number, ext in enumerate(exts):
                if ext in exts[:number]:
                    raise UserError(f"{path}: {_twice(names[number])}")
            if all(wanted.leaves_out(key, ext) for ext in exts):
                continue
        yield own[0].start, own[-1].end - own[0].start


def _apart(key: str, name: str) -> str:
    dotted = " (a sample's name ends at the first dot)" if "." in split_name(name)[1] else ""
    return (
        f"two pieces of the sample {key}{dotted}, with others between them; members of a sample stand beside each "
        "other, as tar --sort=name writes them, and no two samples have one name"
    )


def _members(path: str, size: int) -> Iterator[_Member]:
    """The members of a tar but for folders; what is cut off in a header comes as one without a name."""
    file = _Ranged(path, size)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while True:
                try:
                    member = tar.next()
                except tarfile.ReadError:  # cut within a member, or within a header of several blocks
                    member = None
                if member is None:
                    break
                if not member.isdir():
                    yield _Member(member.name, member.offset, tar.offset)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a tar file ({error}); compressed ones must be unpacked to .tar first") from None
    if end < size:
        yield from _after(path, end, size, is_cut=file.at >= size)


def _after(path: str, end: int, size: int, is_cut: bool) -> Iterator[_Member]:
    """What stands after the last header that can be read: blocks of zeros, half a header, or an error."""
    rest = read_range(path, end, min(PADDING, size - end))
    if rest[:BLOCK].strip(b"\0"):
        if not is_cut:
            raise UserError(
                f"{path}: the header at byte {end:,} is damaged, and what follows would be lost; fetch the tar again"
            )
        yield _Member(None, end, size + BLOCK)
        return
    first = (len(rest) - len(rest.lstrip(b"\0"))) // BLOCK * BLOCK
    try:
        tarfile.TarInfo.frombuf(rest[first : first + BLOCK], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):  # nothing, or something that no tar is; the format ends at the zeros
        return
    raise UserError(
        f"{path}: another tar begins at byte {end + first:,}; join tars with tar --concatenate instead of cat, "
        "or leave them apart"
    )


class _Ranged(io.RawIOBase):
    """A file read in pieces wherever it lies; the reader of headers skips the rest."""

    PIECE = 1 << 16  # bytes

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size, self.at = path, size, 0
        self.held, self.held_from = b"", 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def read(self, count: int | None = -1) -> bytes:
        count = max(0, self.size - self.at) if count is None or count < 0 else count
        if not self.held_from <= self.at <= self.at + count <= self.held_from + len(self.held):
            self.held_from, self.held = self.at, read_range(self.path, self.at, max(count, self.PIECE))
        first = self.at - self.held_from
        payload = self.held[first : first + count]
        self.at += len(payload)
        return payload

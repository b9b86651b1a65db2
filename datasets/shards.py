"""Webdataset shards: tar files of samples, here or at an address, read at any index.

A shard's members that share a name up to its first dot are one sample (`000123.jpg`, `000123.txt`, `000123.0.png`), and
stand beside each other. What `mmgpt data shard` wrote has an index beside each tar; other tars are gone through once,
header by header, and what was found is kept in the user's cache. A sample is then one read of a range of bytes, so that
the order of a training is drawn over all samples, not over a buffer of a few.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, Literal

import numpy as np

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.media import MEDIA, Media, MediaError
from mmgpt.datasets.remote import AbsentError, is_remote, read_range, read_text, size_of
from mmgpt.datasets.sample import Message, Part, Sample, Text, parse_messages
from mmgpt.datasets.source import Source, SourceConfig, resolve

INDEX = "index.json"
BLOCK = 512  # bytes; a tar is made of them
MODALITIES = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("wav", "flac", "mp3", "ogg", "opus", "aiff"), "audio"),
    **dict.fromkeys(("mp4", "webm", "mkv", "mov", "avi"), "video"),
}


class ShardsConfig(SourceConfig):
    """Webdataset shards, of mmgpt or of others.

    A sample whose `.json` holds `messages` is those; of any other, `prompt` and `answer` are filled with its members:
    {image}, {audio} and {video} stand for all its media of that kind, {txt}, {cls} and the like for a text member, and
    any other name for a key of its `.json`.
    """

    reader: Literal["shards"]
    path: str  # a folder with index.json, or tars: shard-{000000..000123}.tar; an address works as well
    prompt: str = "{image}"
    answer: str = "{txt}"


class ShardSource(Source):
    """Samples of shards; each is read when it is asked for."""

    def __init__(self, config: ShardsConfig, data_root: Path) -> None:
        self.config = config
        self.name = config.label or _stem(config.path)
        self.shards, counts = _find_shards(config.path, data_root)
        self.is_remote = is_remote(self.shards[0])
        self.starts = np.cumsum([0, *counts])
        super().__init__(config, int(self.starts[-1]), config.path)

    def __getitem__(self, index: int) -> Sample:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        path, place = self.shards[shard], index - int(self.starts[shard])
        start, size = (int(number) for number in ranges_of(path)[place])
        payload = read_range(path, start, size)
        name = f"{_stem(path)}/{place}"
        if len(payload) < size:
            raise MediaError(
                f"{path}: truncated, sample {place} has {len(payload):,} of {size:,} bytes; fetch it again"
            )
        return self._sample(read_members(payload, name), name)

    def _sample(self, members: dict[str, bytes], name: str) -> Sample:
        columns = {ext: _decode(data, ext, name) for ext, data in members.items() if _modality(ext) is None}
        described = columns.pop("json", None)
        row = {} if described is None else _parse_json(described, name)
        media = {ext: MEDIA[kind](data) for ext, data in members.items() if (kind := _modality(ext))}
        if "messages" in row:
            return self._conversation(row, media, name)
        columns = {**{key: str(value) for key, value in row.items()}, **columns}
        prompt = tuple(self._parts(self.config.prompt, columns, list(media.values()), name))
        answer = Message("assistant", tuple(self._parts(self.config.answer, columns, [], name)))
        return Sample((Message("user", prompt), answer) if prompt else (answer,), self.name, name)

    def _conversation(self, row: dict[str, Any], media: dict[str, Media], name: str) -> Sample:
        """Messages whose media name members, as in {"type": "image", "path": "0.png"}."""

        def filled(message: Message) -> Message:
            return replace(message, parts=tuple(fill(part) for part in message.parts))

        def fill(part: Part) -> Part:
            if isinstance(part, Text):
                return part
            if part.source not in media:
                raise UserError(
                    f"{name}: {part.source!r} is no member of the sample; {did_you_mean(part.source, media)}"
                )
            return replace(part, source=media[part.source].source)

        branches = tuple(tuple(map(filled, parse_messages(branch))) for branch in row.get("branches", ()))
        messages = tuple(map(filled, parse_messages(row["messages"])))
        return Sample(
            messages, self.config.label or row.get("source") or self.name, str(row.get("key", name)), branches
        )

    def _parts(self, template: str, columns: dict[str, str], media: list[Media], name: str) -> Iterator[Part]:
        for literal, field, _, _ in Formatter().parse(template):
            if literal:
                yield Text(literal)
            if field in MEDIA:
                yield from (one for one in media if one.modality == field)  # type: ignore[misc]
            elif field is not None:
                if field not in columns:
                    raise UserError(f"{name}: the template names {{{field}}}; {did_you_mean(field, columns)}")
                yield Text(columns[field])


def read_members(payload: bytes, name: str) -> dict[str, bytes]:
    """The members of one sample by what follows the first dot of their names.

    Raises:
        MediaError: if it is no piece of a tar, or holds a link or a device: only plain files are read.
    """
    members = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as tar:
            for member in tar:
                if not member.isreg():
                    raise MediaError(
                        f"{name}: {member.name} is a link or device, not a file; shard the files themselves"
                    )
                file = tar.extractfile(member)
                members[_split_name(member.name)[1]] = file.read() if file else b""
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise MediaError(f"{name}: the tar is damaged ({error}); fetch it again") from None
    return members


@lru_cache(maxsize=64)
def ranges_of(path: str) -> np.ndarray:
    """Start and size in bytes (N, 2) of each sample of a shard: from the index beside it, else found and cached."""
    index = re.sub(r"\.tar$", ".json", path)
    if is_remote(path) or Path(index).is_file():
        try:
            return np.array(json.loads(read_text(index))["ranges"], dtype=np.int64).reshape(-1, 2)
        except AbsentError:
            pass
        except UserError:
            raise
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{index}: not an index that mmgpt data shard wrote; move it elsewhere") from None
    return _cached_scan(path)


def _cached_scan(path: str) -> np.ndarray:
    size = size_of(path)
    changed = 0 if is_remote(path) else os.stat(path).st_mtime_ns
    where = path if is_remote(path) else str(Path(path).resolve())
    name = hashlib.sha256(f"{where}|{size}|{changed}".encode()).hexdigest()[:32]
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgpt" / "shards" / f"{name}.npy"
    if kept.is_file():
        found: np.ndarray = np.load(kept, allow_pickle=False)
        return found
    found = np.array(list(_scan(path, size)), dtype=np.int64).reshape(-1, 2)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(draft, found)
        draft.replace(kept)
    except OSError:  # a home that cannot be written to: it is found anew next time
        pass
    return found


def _scan(path: str, size: int) -> Iterator[tuple[int, int]]:
    """Start and size of each sample of a tar. A tar cut short keeps its last sample, whose reading will say so."""
    try:
        with tarfile.open(fileobj=_Ranged(path, size), mode="r:") as tar:
            spans = []
            while True:
                try:
                    member = tar.next()
                except tarfile.ReadError:  # cut within a member
                    break
                if member is None:
                    break
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                spans.append((_split_name(member.name)[0], member.offset, end, member.isdir()))
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a tar file ({error}); compressed ones must be unpacked to .tar first") from None
    for _, group in groupby((span for span in spans if not span[3] and not span[0].startswith("__")), lambda s: s[0]):
        found = list(group)
        yield found[0][1], found[-1][2] - found[0][1]


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


def _find_shards(path: str, data_root: Path) -> tuple[list[str], list[int]]:
    """The tars that a path names, and the samples in each."""
    named = expand_braces(path)
    if not named[0].endswith(".tar"):
        folder = re.sub(rf"/?({re.escape(INDEX)})?$", "", path)
        folder = folder if is_remote(folder) else str(resolve(data_root, folder or ".").absolute())
        try:
            listed = json.loads(read_text(f"{folder}/{INDEX}"))["shards"]
            names, counts = [str(one["name"]) for one in listed], [int(one["num_samples"]) for one in listed]
            if any("/" in name or "\\" in name for name in names):
                raise ValueError("its names lead elsewhere")
            shards = [f"{folder}/{name}" for name in names]
            return [one if is_remote(one) else str(resolve(data_root, one)) for one in shards], counts
        except AbsentError:
            if is_remote(folder):
                raise UserError(
                    f"{folder}: holds no {INDEX}; name its tars: {folder}/shard-{{000000..000123}}.tar"
                ) from None
            shards = sorted(str(resolve(data_root, str(tar))) for tar in Path(folder).glob("*.tar"))
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}/{INDEX}: not an index that mmgpt data shard wrote ({error!r})") from None
    else:
        shards = [one if is_remote(one) else str(resolve(data_root, one)) for one in named]
    if not shards:
        raise UserError(f"{data_root / path}: holds no .tar; give a folder of shards, or name them")
    return shards, [len(ranges_of(shard)) for shard in shards]


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` as a-000.tar, a-001.tar, a-002.tar; `{x,y}` as x and y."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    first, dots, last = found.group(1).partition("..")
    if not dots:
        options = found.group(1).split(",")
    elif first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        options = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        raise UserError(f"{pattern}: {{{found.group(1)}}} is no range; write {{000000..000123}} or {{a,b}}")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for option in options for one in expand_braces(before + option + after)]


def _split_name(name: str) -> tuple[str, str]:
    """A member's sample, and what follows the first dot: `set/000123.0.png` is (set/000123, 0.png)."""
    folder, base = PurePosixPath(name).parent, PurePosixPath(name).name
    stem, _, ext = base.partition(".")
    return str(folder / stem), ext.lower()


def _stem(path: str) -> str:
    """What to call a path's samples: the file's name without .tar and numbers in braces, or the folder's."""
    name = PurePosixPath(path.removesuffix(f"/{INDEX}")).name.removesuffix(".tar")
    return re.sub(r"[-_.]?\{.*?\}", "", name) or "shards"


def _modality(ext: str) -> str | None:
    return MODALITIES.get(ext.rpartition(".")[2])


def _decode(data: bytes, ext: str, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MediaError(
            f"{name}: member .{ext} is not UTF-8 text ({error.reason}); name media by their usual ends"
        ) from None


def _parse_json(text: str, name: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError(f"it holds a {type(row).__name__}, not an object")
    except ValueError as error:
        raise MediaError(f"{name}: its .json cannot be read ({error}); write it again") from None
    return row

"""Answers on disk, so that a stopped evaluation goes on: lines of JSON, found again by a digest of all they depend on.

Every process appends to a file of its own; what a kill cut off in the middle of a line is dropped.
"""

import hashlib
import json
import os
import socket
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmgpt.datasets.media import Image, Media
from mmgpt.datasets.sample import Message, Text
from mmgpt.evaluation.predict import Prediction
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.files import name_disk_errors

ANSWER_FOLDER = "parts"  # the folder of an evaluation's answers


def digest_of(fingerprint: str, config: TaskConfig, number: int, item: TaskItem, messages: tuple[Message, ...]) -> str:
    """A hash of all that an answer depends on: model, prompt with the content of its media, kind, choices, options.

    Raises:
        MediaError: if a medium cannot be read.
    """
    options: dict[str, Any] = {"normalise": config.length_normalise, "raw": config.plain_text, "choices": item.choices}
    if config.kind == "generate":
        options = config.generate.model_dump(mode="json")
        options["seed"] = config.generate.seed + number if config.generate.temperature > 0 else None
    elif config.kind == "score":
        options = {"text": item.reference}
    turns = [[message.role, [_content(part) for part in message.parts]] for message in messages]
    described = json.dumps([_version(), fingerprint, config.kind, options, turns])
    return hashlib.sha256(described.encode(errors="surrogatepass")).hexdigest()


@cache
def _version() -> str:
    return version("mmgpt")


def _content(part: Text | Media) -> list[Any]:
    """What a part holds, however it came: for a medium a hash, with the rate that an array of sound needs."""
    if isinstance(part, Text):
        return ["text", part.text]
    return [part.modality, getattr(part, "rate", None), _hash_of(part)]


def _hash_of(medium: Media) -> str:
    path = medium.path
    if path is not None and path.startswith(("http://", "https://")):  # fetched when it is asked
        return path
    if path is not None and os.path.isfile(path):
        found = os.stat(path)
        return _hash_of_file(path, found.st_size, found.st_mtime_ns)
    payload = medium.read()
    if payload is not None:
        return hashlib.sha256(payload).hexdigest()
    array = np.asarray(medium.load()) if isinstance(medium, Image) else medium.array()
    described = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    described.update(np.ascontiguousarray(array).data)
    return described.hexdigest()


@lru_cache(maxsize=65_536)  # exemplars recur
def _hash_of_file(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class AnswerCache:
    """Answers by digest: those of earlier evaluations, and those of this one as they are given.

    Attributes:
        known: all of them.
    """

    def __init__(self, out: str | Path | None, cache: str | Path | None, fingerprint: str, rank: int) -> None:
        """Read what is known.

        Args:
            out: the folder of an evaluation, whose answers are kept in `parts/`; None keeps none.
            cache: a folder of answers that several evaluations share.
            fingerprint: of the model.
            rank: of this process, which names its files.
        """
        self.rank, self.known = rank, dict[str, Prediction]()
        self.offsets = dict[Path, int]()  # bytes read of each file, whole lines
        self.parts = Path(out) / ANSWER_FOLDER if out is not None else None
        self.part: IO[bytes] | None = None
        self.shared: Path | None = None
        self.from_cache_only = set[str]()  # digests that the cache holds and the parts do not
        if cache is not None:
            of_model = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
            folder = Path(cache)
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob(f"{of_model}-*.jsonl")):
                self.from_cache_only |= self._read(file)
            self.shared = folder / f"{of_model}-{socket.gethostname()}-{os.getpid()}.jsonl"
        if self.parts is not None:
            self.parts.mkdir(parents=True, exist_ok=True)
            self.refresh()

    @property
    def folder(self) -> Path | None:
        """Where else to keep what was computed once: the cache, or with the parts."""
        return self.shared.parent if self.shared is not None else self.parts

    def begin(self, name: str) -> None:
        """Write to `parts/NAME.RANK.jsonl` from now on."""
        self.close()
        if self.parts is not None:
            own = self.parts / f"{name}.{self.rank}.jsonl"
            own.touch()
            self._read(own)
            os.truncate(own, self.offsets[own])  # a line that a kill cut off
            self.part = own.open("ab")

    def find(self, digest: str, key: str) -> Prediction | None:
        """What was answered before, now also in the parts if the cache alone had it."""
        if digest in self.from_cache_only:
            self.from_cache_only.discard(digest)
            self._write(self.part, _line(digest, key, self.known[digest]))
        return self.known.get(digest)

    def add(self, digest: str, key: str, answer: Prediction) -> None:
        """Keep an answer; `key` is its item's, for readers of the file."""
        self.known[digest] = answer
        line = _line(digest, key, answer)
        self._write(self.part, line)
        if self.shared is not None:
            with self.shared.open("ab") as file:
                self._write(file, line)

    def refresh(self) -> None:
        """Read what other processes have written since."""
        if self.parts is not None:
            for file in sorted(self.parts.glob("*.jsonl")):
                self.from_cache_only -= self._read(file)

    def close(self) -> None:
        """Close the file of this process's part."""
        if self.part is not None:
            self.part.close()
            self.part = None

    def _write(self, file: IO[bytes] | None, line: bytes) -> None:
        if file is not None:
            with name_disk_errors(Path(file.name)):
                file.write(line)
                file.flush()

    def _read(self, path: Path) -> set[str]:
        """Read the lines that a file has more; the digests in them."""
        start = self.offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self.offsets[path] = start + whole
        found = set[str]()
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                self.known[row["digest"]] = Prediction(row["prediction"], tuple(row.get("logprobs", ())))
                found.add(row["digest"])
            except (ValueError, KeyError, TypeError):  # damaged: it is answered again
                continue
        return found


def _line(digest: str, key: str, answer: Prediction) -> bytes:
    row: dict[str, Any] = {"digest": digest, "key": key, "prediction": answer.prediction}
    if answer.logprobs:
        row["logprobs"] = answer.logprobs
    return json.dumps(row).encode() + b"\n"

"""What tells that the data of a source have changed: how many samples, from how many files and bytes, and a hash.

The hash is of a few blocks of a few files and of a few samples with their media, so that it takes as long for a billion
samples as for a thousand. Paths and dates are no part of it: data that were moved or copied are the same.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmgpt.config import UserError
from mmgpt.datasets.media import Media
from mmgpt.datasets.sample import Sample, Text

if TYPE_CHECKING:
    from mmgpt.datasets.source import Source

Fingerprint = dict[str, Any]  # samples, files, bytes, hash
SIZES = 4096  # files whose sizes are looked up, of more than that
READ = 4  # files that are read, at their beginning, middle and end
BLOCK = 4096  # bytes
PROBED = 6  # samples


def fingerprint_of(source: "Source") -> Fingerprint:
    """The fingerprint of a source: of its files, of the sources that it draws from, and of a few samples."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    for file in _spread(source.files, SIZES):
        own = os.stat(file).st_size
        size += own
        digest.update(f"{own}\n".encode())
    for file in _spread(source.files, READ):
        digest.update(_blocks(file))
    for part in source.parts:
        inner = fingerprint_of(part)
        size += inner["bytes"]
        digest.update(repr(inner).encode())
    digest.update(source.facts.encode())
    if not (source.parts or source.is_remote or any(str(file).endswith(".parquet") for file in source.files)):
        for index in _spread(range(len(source)), PROBED):  # of parquet, each would decode a whole row group
            digest.update("\n".join(_told(source, index)).encode(errors="surrogatepass"))
    return {"samples": len(source), "files": len(source.files), "bytes": size, "hash": digest.hexdigest()}


def difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """What differs between two fingerprints in words, with both figures; None if nothing does."""
    counts = [
        f"{before[name]:,} {name} then, {now[name]:,} now" for name in ("samples", "files", "bytes") if name in before
    ]
    told = [
        words for words, name in zip(counts, ("samples", "files", "bytes"), strict=False) if before[name] != now[name]
    ]
    if told:
        return "; ".join(told)
    return "as many samples and bytes, of other content" if before.get("hash") != now["hash"] else None


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly: the first and the last with them."""
    count = min(len(items), most)
    return [items[at * (len(items) - 1) // max(1, count - 1)] for at in range(count)]


def _blocks(file: str | Path) -> bytes:
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        blocks = []
        for at in (0, (size - BLOCK) // 2, size - BLOCK):
            opened.seek(max(0, at))
            blocks.append(opened.read(BLOCK))
    return b"".join(blocks)


def _told(source: "Source", index: int) -> Iterator[str]:
    """A sample as lines: its words, and of its media what can be had without decoding them."""
    try:
        sample: Sample = source[index]
    except UserError as error:  # told when the training comes to it
        yield type(error).__name__
        return
    for turn in sample.turns:
        yield turn.role
        for part in turn.parts:
            yield part.text if isinstance(part, Text) else _medium(part)


def _medium(medium: Media) -> str:
    source = medium.source
    if isinstance(source, bytes):
        return f"{medium.modality} {len(source)} {hashlib.blake2b(source[:BLOCK] + source[-BLOCK:]).hexdigest()}"
    if medium.path is not None:
        try:
            return (
                f"{medium.modality} {hashlib.blake2b(_blocks(medium.path)).hexdigest()} {os.stat(medium.path).st_size}"
            )
        except (OSError, ValueError):  # absent, or within a zip
            return f"{medium.modality} {Path(medium.path).name}"
    return medium.modality

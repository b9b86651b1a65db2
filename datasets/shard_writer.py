"""Writing of shards: any source's samples as webdataset tars with an index, in parallel, by parts, resumable.

The samples are cut into blocks of a number that depends on the source and the greatest size alone, and a block fills
one shard (more where its samples are unusually large). So a block's bytes do not depend on who writes it, and the work
of N machines is, byte for byte, that of one. A shard gets its name when it is whole, and counts when its index stands.
"""

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile

from mmgpt.config import UserError
from mmgpt.datasets.dedup import keep_texts
from mmgpt.datasets.media import Audio, Image, Media, MediaError
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.shards import INDEX
from mmgpt.datasets.readers.tars import BLOCK
from mmgpt.datasets.sample import Message, Part, Sample, Text
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.locking import hold

NUM_MEASURED_SAMPLES = 64  # samples that are measured to choose how many fill a shard
PLANNED_SHARE_OF_SHARD = 0.8  # of the greatest size is what a shard is planned to hold
END = 2 * BLOCK  # bytes that close a tar

CountTokens = Callable[[str], int]
OnProgress = Callable[[int, int], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is written where; the same for every part of the work.

    Attributes:
        max_bytes: of one tar. A single sample larger than that is an error.
        kept: indexes of the source's samples that are written; None for all.
        count_tokens: of a text, for the index; None leaves tokens out.
        skip_bad: leave out samples whose media cannot be decoded, and count them; otherwise the first one stops.
    """

    config: SourceConfig
    data_root: Path
    out: Path
    max_bytes: int
    kept: tuple[int, ...] | None = None
    count_tokens: CountTokens | None = None
    skip_bad: bool = False

    def open(self) -> Source:
        """The source."""
        return open_source(self.config, self.data_root)

    def indexes(self, source: Source) -> Sequence[int]:
        """The samples to write, in order."""
        return range(len(source)) if self.kept is None else self.kept


def write_shards(
    job: Job, *, part: tuple[int, int] = (1, 1), workers: int = 1, on_progress: OnProgress = lambda done, total: None
) -> Record | None:
    """Write the blocks of one part of the work; the index of all of them too where it is the only part.

    Blocks that stand already, from a run that was stopped, are left as they are.

    Args:
        part: (k, n): the k-th of n parts, from 1.
        workers: processes.
        on_progress: called with the blocks that are done, and their number.
    Returns:
        The index, or None where there are other parts.
    Raises:
        UserError: if a sample is wrong or too large, or `out` holds shards of other data or is being written.
    """
    which, parts = part
    if not 1 <= which <= parts:
        raise UserError(f"part {which}/{parts}: the parts of {parts} are 1 to {parts}")
    with hold(job.out / f".part-{which}-of-{parts}.lock"):
        _write_part(job, which, parts, workers, on_progress)
    return merge_shards(job.out) if parts == 1 else None


def _write_part(job: Job, which: int, parts: int, workers: int, on_progress: OnProgress) -> None:
    source = job.open()
    plan = _plan(job, source)
    job.out.mkdir(parents=True, exist_ok=True)
    mine = range(which - 1, plan.num_blocks, parts)
    missing = [block for block in mine if not _is_done(job.out, block, plan.fingerprint)]
    on_progress(len(mine) - len(missing), len(mine))
    with ProcessPoolExecutor(
        max(1, min(workers, len(missing))), multiprocessing.get_context("spawn"), _begin, (job, plan)
    ) as pool:
        try:
            for number, future in enumerate(as_completed([pool.submit(_write_block, block) for block in missing]), 1):
                future.result()
                on_progress(len(mine) - len(missing) + number, len(mine))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def deduplicate(job: Job, rules: Record) -> tuple[Job, Counter[str]]:
    """The job for what `keep_texts` keeps of its source, and the counts of what it drops.

    The first of the parts to come here finds it out; the others read kept.json in the folder of the shards.
    """
    told = hashlib.sha256((job.config.model_dump_json() + json.dumps(rules)).encode()).hexdigest()
    path = job.out / "kept.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["fingerprint"] != told:
            raise UserError(f"{path}: kept of other data or by other rules; give another folder, or remove it")
    else:
        found = keep_texts(job.open(), **rules)
        kept = {"fingerprint": told, "dropped": found.dropped, "indexes": found.indexes}
        job.out.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(kept).encode())
    return replace(job, kept=tuple(kept["indexes"])), Counter(kept["dropped"])


def merge_shards(out: Path) -> Record:
    """Join what the parts wrote to index.json, and return it.

    Raises:
        UserError: if blocks are missing, naming the parts of the work to run again, or come from different data.
    """
    found = [
        (path, json.loads(path.read_text())) for path in out.glob("shard-*.json") if path.with_suffix(".tar").is_file()
    ]
    if not found:
        raise UserError(f"{out}: holds no shards; write them with mmgpt data shard")
    beside, shards = zip(*sorted(found, key=lambda one: (one[1]["block"], one[1]["number"])), strict=True)
    if len({one["fingerprint"] for one in shards}) > 1:
        raise UserError(f"{out}: holds shards of different data or sizes; write each to a folder of its own")
    ended = {one["block"] for one in shards if one["ends_block"]}
    missing = [block for block in range(shards[0]["num_blocks"]) if block not in ended]
    if missing:
        told = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise UserError(
            f"{out}: blocks {told} of {shards[0]['num_blocks']} are missing; run the parts that stopped again"
        )
    listed = [
        {"name": path.with_suffix(".tar").name, **{key: one[key] for key in ("num_samples", "bytes", "sha256")}}
        for path, one in zip(beside, shards, strict=True)
    ]
    totals: Counter[str] = Counter()
    for one in shards:
        totals.update(one["totals"])
    index = {
        "format": "mmgpt shards",
        "version": 1,
        "num_samples": sum(one["num_samples"] for one in shards),
        "bytes": sum(one["bytes"] for one in shards),
        "totals": {key: round(count, 3) for key, count in sorted(totals.items())},
        "shards": listed,
    }
    _write_whole(out / INDEX, json.dumps(index, indent=1).encode())
    return index


@dataclass(frozen=True)
class _Plan:
    """How the samples are cut into blocks."""

    num_samples: int
    per_block: int
    fingerprint: str

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.per_block)


def _plan(job: Job, source: Source) -> _Plan:
    indexes = job.indexes(source)
    if not len(indexes):
        raise UserError(f"{source.name}: no sample is left to write")
    step = max(1, len(indexes) // NUM_MEASURED_SAMPLES)
    sizes = []
    for index in indexes[::step]:
        try:
            sizes.append(sum(len(data) + 1024 for _, data in _members(source[index], None)[0]))
        except MediaError:
            continue
    mean = sum(sizes) / len(sizes) if sizes else job.max_bytes
    per_block = max(1, int(PLANNED_SHARE_OF_SHARD * job.max_bytes / mean))
    told = job.config.model_dump_json() + json.dumps([job.max_bytes, len(indexes), per_block, job.skip_bad])
    told += json.dumps(source.fingerprint())
    told += "" if job.kept is None else hashlib.sha256(repr(job.kept).encode()).hexdigest()
    told += "" if job.count_tokens is None else str(job.count_tokens("The quick brown fox jumps over 13 lazy dogs."))
    return _Plan(len(indexes), per_block, hashlib.sha256(told.encode()).hexdigest())


def _is_done(out: Path, block: int, fingerprint: str) -> bool:
    """Whether a block stands, whole."""
    done = False
    for path in sorted(out.glob(f"shard-{block:06d}*.json")):
        told = json.loads(path.read_text())
        if told["fingerprint"] != fingerprint:
            raise UserError(f"{path}: shards of other data, or of another size; give another folder, or remove them")
        tar = path.with_suffix(".tar")
        if not tar.is_file() or tar.stat().st_size != told["bytes"]:
            return False
        done = done or told["ends_block"]
    return done


_worker: list[tuple[Job, _Plan, Source]] = []  # what this process writes; set once when it starts


def _begin(job: Job, plan: _Plan) -> None:
    _worker[:] = [(job, plan, job.open())]


def _write_block(block: int) -> None:
    job, plan, source = _worker[0]
    for draft in job.out.glob(f".shard-{block:06d}*"):  # of a run that was killed
        draft.unlink()
    shard, number = _Shard(), 0
    for index in job.indexes(source)[block * plan.per_block : (block + 1) * plan.per_block]:
        try:
            sample = source[index]
            members, lengths = _members(sample, job.count_tokens)
        except MediaError:
            if not job.skip_bad:
                raise
            shard.totals["skipped"] += 1
            continue
        packed = _packed(f"{index:09d}", members)
        if len(packed) + END > job.max_bytes:
            raise UserError(f"{sample.key}: {len(packed):,} bytes, a shard takes {job.max_bytes:,}; raise --max-size")
        if shard.size + len(packed) + END > job.max_bytes:
            shard.write(job, plan, block, number, ends_block=False)
            shard, number = _Shard(), number + 1
        shard.add(packed, lengths)
    shard.write(job, plan, block, number, ends_block=True)


@dataclass
class _Shard:
    """A tar in the making."""

    pieces: list[bytes] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[Record] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    size: int = 0

    def add(self, packed: bytes, lengths: Record) -> None:
        self.ranges.append((self.size, len(packed)))
        self.pieces.append(packed)
        self.size += len(packed)
        self.lengths.append(lengths)
        self.totals["characters"] += lengths["characters"]
        self.totals["tokens"] += lengths.get("tokens", 0)
        for kind, *sizes in lengths["media"]:
            self.totals[f"{kind}s"] += 1
            if kind == "audio":
                self.totals["audio_seconds"] += sizes[0]

    def write(self, job: Job, plan: _Plan, block: int, number: int, ends_block: bool) -> None:
        """The tar first, then its index: a shard without one is written again."""
        name = f"shard-{block:06d}" + (f"-{number}" if number else "")
        payload = b"".join((*self.pieces, bytes(END)))
        _write_whole(job.out / f"{name}.tar", payload)
        told = {
            "fingerprint": plan.fingerprint,
            "num_blocks": plan.num_blocks,
            "block": block,
            "number": number,
            "ends_block": ends_block,
            "num_samples": len(self.ranges),
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "totals": {key: round(count, 3) for key, count in sorted(self.totals.items()) if count},
            "ranges": self.ranges,
            "lengths": self.lengths,
        }
        _write_whole(job.out / f"{name}.json", json.dumps(told).encode())


def _write_whole(path: Path, payload: bytes) -> None:
    """Write a file so that its name stands for all of it or does not exist, whenever the process ends."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _packed(key: str, members: list[tuple[str, bytes]]) -> bytes:
    """A sample as its piece of a tar; nothing in it depends on when and by whom it is written.

    webdataset.TarWriter would make the same bytes, but importing it brings torch to every process that writes.
    """
    pieces = []
    for ext, data in members:
        member = tarfile.TarInfo(f"{key}.{ext}")
        member.size = len(data)
        pieces += [member.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)]
    return b"".join(pieces)


def _members(sample: Sample, count_tokens: CountTokens | None) -> tuple[list[tuple[str, bytes]], Record]:
    """A sample's json and media by the ends of their names, and the lengths of its texts and media."""
    media: dict[str, bytes] = {}
    groups: dict[str, str] = {}
    texts: list[str] = []
    measured: list[tuple[Any, ...]] = []

    def stored(message: Message) -> Record:
        return replace(message, parts=tuple(map(store, message.parts))).to_dict()

    def store(part: Part) -> Part:
        if isinstance(part, Text):
            texts.append(part.text)
            return part
        suffix, data = _encode(part)
        name = f"{len(media)}.{suffix}"
        media[name] = data
        if part.group is not None:
            groups[name] = part.group
        measured.append(_measure(part))
        return replace(part, source=name)

    try:
        row: Record = {
            "key": sample.key,
            "source": sample.source,
            "messages": [stored(message) for message in sample.messages],
            "branches": [[stored(message) for message in branch] for branch in sample.branches],
        }
    except MediaError as error:
        raise MediaError(f"{sample.key}: {error}") from None
    row |= {"groups": groups} if groups else {}
    row |= {"truths": [asdict(one) | {"tags": dict(one.tags)} for one in sample.truths]} if sample.truths else {}
    lengths: Record = {"characters": sum(map(len, texts)), "media": measured}
    if count_tokens:
        lengths["tokens"] = sum(map(count_tokens, texts))
    return [("json", json.dumps(row, ensure_ascii=False).encode()), *media.items()], lengths


def _encode(medium: Media) -> tuple[str, bytes]:
    """A file's bytes as they are; what came as an array or object, without loss."""
    if medium.read() is None and isinstance(medium, Audio):
        sound, buffer = medium.load(), io.BytesIO()
        soundfile.write(buffer, sound.samples, sound.rate, format="WAV", subtype="FLOAT")
        wav = bytearray(buffer.getvalue())
        peak = wav.index(b"PEAK")  # a chunk that libsndfile adds to floats: id, size, version, then the time of day
        wav[peak + 12 : peak + 16] = bytes(4)
        return "wav", bytes(wav)
    mime, data = medium.encoded()
    kind = mime.rpartition("/")[2]
    return {"jpeg": "jpg", "mpeg": "mp3", "octet-stream": "mp4"}.get(kind, kind), data


def _measure(medium: Media) -> tuple[Any, ...]:
    """Kind and size: width and height in pixels, or seconds; it is decoded for that, so that what is kept is whole."""
    if isinstance(medium, Image):
        return "image", *medium.load().size
    if isinstance(medium, Audio):
        return "audio", round(medium.load().seconds, 3)
    return (medium.modality,)

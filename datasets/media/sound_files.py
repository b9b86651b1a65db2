"""What files of sound state about their size, and what of it is there: libsndfile takes a torn one for a shorter one.

Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF), EBU Tech 3306 (RF64), RFC 3533 (Ogg).
"""

from collections.abc import Iterator
from typing import Literal

UNKNOWN_BYTES = 0x7FFF0000  # a WAV written to a pipe states this size of its data or more, not knowing better
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"  # Sony's: GUIDs for names, sizes of 64 bits
RIFF = (b"RIFF", b"RF64", b"BW64")


def missing_of(payload: bytes) -> str:
    """What a truncated WAV, AIFF, AU or OGG still holds of what it states; or ""."""
    if payload[:4] == b"OggS":
        return "" if _ends_as_ogg_does(payload) else f"{len(payload):,} bytes without the page that ends an OGG stream"
    stated, held = 0, 0
    if payload[:4] in RIFF and payload[8:12] == b"WAVE":
        stated, held = _data_of(payload)
    elif payload[:4] == b"FORM" and payload[8:12] in (b"AIFF", b"AIFC"):
        stated, held = _size_of_chunk(payload, b"SSND", "big")
    elif payload[:16] == W64:
        stated, held = _data_of_w64(payload)
    elif payload[:4] == b".snd":
        stated, held = int.from_bytes(payload[8:12], "big"), len(payload) - int.from_bytes(payload[4:8], "big")
    is_known = stated < UNKNOWN_BYTES or payload[:4] in (b"RF64", b"BW64", b"riff")
    return f"{held:,} of {stated:,} bytes of samples" if held < stated and is_known else ""


def with_its_size(payload: bytes) -> bytes:
    """A WAV whose header states no bytes of samples though some follow, as one that states them; others as they are."""
    if payload[:4] != b"RIFF" or payload[8:12] != b"WAVE":
        return payload
    at = 12
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at + 4 : at + 8], "little")
        if payload[at : at + 4] == b"data":
            end = next((end for end in _ends(payload, at + 8)), len(payload))
            if size or end == at + 8:
                return payload
            return payload[: at + 4] + (end - at - 8).to_bytes(4, "little") + payload[at + 8 :]
        at += 8 + size + size % 2
    return payload


def mended(payload: bytes) -> bytes | None:
    """A WAV of its format and samples alone, in this order; None where it is no WAV, or lacks one of them."""
    if payload[:4] != b"RIFF" or payload[8:12] != b"WAVE":
        return None
    chunks, at = dict[bytes, bytes](), 12
    while at + 8 <= len(payload):
        if not _is_name(payload[at : at + 4]) and _is_name(payload[at - 1 : at + 3]):
            at -= 1  # the chunk before is of odd length and was not filled up
        end = at + 8 + int.from_bytes(payload[at + 4 : at + 8], "little")
        chunks.setdefault(payload[at : at + 4], payload[at:end])
        at = end + (end - at) % 2
    if b"fmt " not in chunks or b"data" not in chunks:
        return None
    body = b"WAVE" + b"".join(chunks[name] + b"\0" * (len(chunks[name]) % 2) for name in (b"fmt ", b"data"))
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _data_of(payload: bytes) -> tuple[int, int]:
    """Bytes of samples that a WAV states and holds; the 64-bit size stands in a chunk of its own."""
    stated, held = _size_of_chunk(payload, b"data", "little")
    if payload[:4] != b"RIFF" and payload[12:16] == b"ds64" and stated >= UNKNOWN_BYTES:
        stated = int.from_bytes(payload[28:36], "little")
    return stated, held


def _data_of_w64(payload: bytes) -> tuple[int, int]:
    """Bytes of samples that a W64 states and holds: its chunks' sizes count their own heads."""
    at = 40
    while at + 24 <= len(payload):
        size = int.from_bytes(payload[at + 16 : at + 24], "little")
        if payload[at : at + 4] == b"data":
            return size - 24, len(payload) - at - 24
        at += max(24, -(-size // 8) * 8)
    return 0, 0


def _size_of_chunk(payload: bytes, name: bytes, order: Literal["little", "big"]) -> tuple[int, int]:
    """Bytes that a chunk states, and that are there from its beginning on; 0 and 0 where there is no such chunk."""
    at = 12
    while at + 8 <= len(payload):
        stated = int.from_bytes(payload[at + 4 : at + 8], order)
        if payload[at : at + 4] == name:
            return stated, len(payload) - at - 8
        at += 8 + stated + stated % 2
    return 0, 0


def _ends(payload: bytes, at: int) -> Iterator[int]:
    """Where samples of a size that is not stated may end: where nothing but chunks that tell of the sound follows."""
    if _are_chunks(payload, at):
        yield at
    for name in (b"LIST", b"id3 ", b"bext"):
        begin = payload.rfind(name, at)
        if begin >= 0 and _are_chunks(payload, begin):
            yield begin


def _are_chunks(payload: bytes, at: int) -> bool:
    """Whether chunks of RIFF stand from here to the end, and no samples."""
    while at + 8 <= len(payload) and _is_name(payload[at : at + 4]):
        size = int.from_bytes(payload[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return at in (len(payload), len(payload) + 1)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= letter < 127 for letter in name)


def _ends_as_ogg_does(payload: bytes) -> bool:
    """Whether the last page is there as a whole, and flagged as the last (RFC 3533, section 6)."""
    at = payload.rfind(b"OggS")
    segments = at + 27 + payload[at + 26] if at + 26 < len(payload) else len(payload)
    is_whole = segments < len(payload) and segments + sum(payload[at + 27 : segments]) <= len(payload)
    return is_whole and bool(payload[at + 5] & 4)

"""PNG files without what adds nothing to their pixels: a text or colour profile that is damaged or huge hides none.

Source: the PNG specification, third edition, https://www.w3.org/TR/png-3/ (5 "Datastream structure", 11.3 "Ancillary
chunks"): a decoder may leave out ancillary chunks, those whose type begins with a small letter.
"""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHAPING = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # transparency and frames
TURNING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that may hold the orientation
MOST_TEXT = 2**20  # bytes; Pillow refuses a file whose text is longer unpacked


def without_extras(payload: bytes) -> bytes:
    """The file with its critical chunks, its transparency, frames and orientation alone; as it is if it is no PNG."""
    if not payload.startswith(SIGNATURE):
        return payload
    view = memoryview(payload)
    kept: list[bytes | memoryview] = [SIGNATURE]
    at = len(SIGNATURE)
    while at + 12 <= len(payload):
        end = at + 12 + int.from_bytes(payload[at : at + 4], "big")
        if end > len(payload):
            break
        if _is_wanted(payload[at + 4 : at + 8], view[at + 8 : end - 4], view[end - 4 : end]):
            kept.append(view[at:end])
        at = end
    return b"".join([*kept, view[at:]])


def _is_wanted(kind: bytes, data: memoryview, checksum: memoryview) -> bool:
    if not kind[0] & 32 or kind in SHAPING[1:]:  # critical, or of a frame: damage there is damage
        return True
    if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
        return False
    if kind in (b"tRNS", b"eXIf"):
        return True
    return kind in (b"tEXt", b"zTXt", b"iTXt") and bytes(data[:32]).startswith(TURNING) and _is_short(kind, data)


def _is_short(kind: bytes, data: memoryview) -> bool:
    """Whether a text takes no more than MOST_TEXT bytes unpacked."""
    if len(data) > MOST_TEXT:
        return False
    if kind == b"tEXt":
        return True
    packed = bytes(data).partition(b"\0")[2]  # after the keyword: the method, then the stream
    if kind == b"iTXt":
        if packed[:1] != b"\1":
            return True
        packed = packed[1:2] + packed[2:].split(b"\0", 2)[-1]  # without the flag, the language and the keyword in it
    try:
        return len(zlib.decompressobj().decompress(packed[1:], MOST_TEXT + 1)) <= MOST_TEXT
    except zlib.error:
        return False

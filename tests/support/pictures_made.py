"""A small picture, in the bytes of any format, and the chunks that PNG files are made of."""

import io
import struct
import zlib

import numpy as np
import PIL.Image

from mmgpt.datasets.media import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB = PIL.Image.fromarray(PIXELS)


def encode(picture: PIL.Image.Image = RGB, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(source: object) -> np.ndarray:
    return np.asarray(Image(source).load())


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

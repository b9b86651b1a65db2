"""PNG files with chunks that are damaged or huge: the pixels, where these are whole."""

import zlib

import numpy as np
import PIL.Image
import pytest
from pictures_made import PIXELS, chunk, encode, pixels

from mmgpt.datasets.media import Image, MediaError

MEGABYTE = 2**20


PNG = encode()
HEAD, TAIL = PNG[:33], PNG[33:]  # the signature with the header, and what follows
LONG = zlib.compress(bytes(2 * MEGABYTE))
EXTRAS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "tEXt": chunk(b"tEXt", b"Comment\0" + b"x" * (65 * MEGABYTE)),
    "many": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(MEGABYTE - 9))) * 70,
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "exif in a text": chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "a wrong checksum": chunk(b"tIME", bytes(7), checksum=1),
    "a short chunk": chunk(b"pHYs", b"\0"),
    "a broken stream": chunk(b"zTXt", b"Comment\0\0" + LONG[:-9] + bytes(9)),
    "an unknown chunk": chunk(b"vpAg", bytes(9), checksum=0),
    "an empty name": chunk(b"iCCP", b""),
    "broken exif": chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_what_adds_nothing_to_a_png_hides_no_pixels(extra, where):
    end = TAIL.rindex(b"IEND") - 4
    content = HEAD + extra + TAIL if where == "before" else HEAD + TAIL[:end] + extra + TAIL[end:]
    assert np.array_equal(pixels(content), PIXELS)
    assert Image(content).encoded() == ("image/png", content)


def test_the_orientation_in_a_text_of_a_png_still_counts():
    turned = PIL.Image.Exif()
    turned[0x0112] = 3
    text = b"\nexif\n" + str(len(turned.tobytes())).encode().rjust(8) + b"\n" + turned.tobytes().hex().encode() + b"\n"
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><tiff:Orientation>3</tiff:Orientation></x:xmpmeta>"
    for extra in (profile, chunk(b"iTXt", xmp)):
        assert np.array_equal(pixels(HEAD + extra + TAIL), PIXELS[::-1, ::-1])


def test_damage_to_the_pixels_of_a_png_is_not_hidden():
    broken = bytearray(PNG)
    broken[PNG.index(b"IDAT") + 40] ^= 255
    with pytest.raises(MediaError, match="the picture is damaged"):
        pixels(bytes(broken))

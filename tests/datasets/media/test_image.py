"""Pictures of every depth, colour space and orientation, written to real files, come out as 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from mmgpt.datasets.media import Image, Limits, MediaError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB = PIL.Image.fromarray(PIXELS)
GREY_16 = np.array([[0, 128, 1000], [25_700, 40_000, 65_535]], dtype=np.uint16)
GREY_8 = [[0, 0, 4], [100, 156, 255]]  # round(value / 257)


def encode(picture: PIL.Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(source: object, **limits) -> np.ndarray:
    return np.asarray(Image(source).load(Limits(**limits)))


def greys(rows: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(rows, dtype=np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_picture_is_turned_and_mirrored_as_its_exif_says(format, orientation):
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    plain = encode(RGB, format)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encode(RGB, format, exif=exif)), turns[orientation](pixels(plain)))


@pytest.mark.parametrize(("format", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_grey_of_16_bits_is_scaled_and_not_clipped(format, dtype):
    assert np.array_equal(pixels(encode(PIL.Image.fromarray(GREY_16.astype(dtype)), format)), greys(GREY_8))


def test_a_big_endian_tiff_and_a_pgm_of_16_bits_are_scaled():
    pgm = b"P5 3 2 65535\n" + GREY_16.astype(">u2").tobytes()
    assert np.array_equal(pixels(pgm), greys(GREY_8))
    big = PIL.Image.frombytes("I;16B", (3, 2), GREY_16.astype(">u2").tobytes())
    assert np.array_equal(pixels(encode(big, "TIFF")), greys(GREY_8))


@pytest.mark.parametrize(("top", "values"), [(1.0, [[0, 0.25, 1.0]]), (255.0, [[0, 63.75, 255]])])
def test_floats_lie_in_0_to_1_or_in_0_to_255(top, values):
    tiff = encode(PIL.Image.fromarray(np.array(values, dtype=np.float32)), "TIFF")
    assert np.array_equal(pixels(tiff), greys([[0, 64, 255]]))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            np.array([[-3, 7]], np.float32),
            "float32 values from -3 to 7, which must lie in 0 to 1 or 0 to 255; scale them",
        ),
        (np.array([[0, np.nan]], np.float32), "1 of 2 values are not finite; replace them"),
        (np.array([[0, 70_000]], np.int32), "int32 values from 0 to 70000, which must lie in 0 to 65535; scale them"),
    ],
)
def test_numbers_on_no_known_scale_are_refused(values, told):
    with pytest.raises(MediaError, match=told):
        pixels(encode(PIL.Image.fromarray(values), "TIFF"))


def test_rgb_of_16_bits_is_scaled():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.array([0, 25_700, 65_535], dtype=">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels(png).tolist() == [[[0, 100, 255]]]


def test_a_palette_gives_its_colours_and_one_with_transparency_white():
    palette = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    assert pixels(encode(palette)).tolist() == [[[10, 20, 30], [200, 0, 0]], [[0, 0, 200], [200, 0, 0]]]
    clear = encode(palette, transparency=1)
    assert pixels(clear).tolist() == [[[10, 20, 30], [255, 255, 255]], [[0, 0, 200], [255, 255, 255]]]
    halved = encode(palette, transparency=bytes([255, 128, 255]))
    assert pixels(halved)[0, 1].tolist() == [227, 127, 127]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(format):
    colours = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 128]]], dtype=np.uint8)
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(PIL.Image.fromarray(colours), format, **options)
    assert pixels(content).tolist() == [[[255, 255, 255], [200, 0, 0], [227, 127, 127]]]
    assert pixels(encode(PIL.Image.fromarray(colours[..., [0, 3]]), "PNG"))[0, :2, 0].tolist() == [255, 200]


def test_pa_and_1_bit_pictures_are_read():
    alpha = PIL.Image.new("PA", (1, 1))
    alpha.putpalette([9, 8, 7])
    alpha.putpixel((0, 0), (0, 255))
    assert np.asarray(Image(alpha).load()).tolist() == [[[9, 8, 7]]]
    bits = np.array([[True, False], [False, True]])
    for content in (encode(PIL.Image.fromarray(bits)), encode(PIL.Image.fromarray(bits), "TIFF"), bits):
        assert np.array_equal(pixels(content), greys([[255, 0], [0, 255]]))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_read_as_pillow_reads_it_also_where_adobe_inverted_it(format):
    cmyk = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # a JPEG of Pillow's holds Adobe's marker, inverted
    content = encode(cmyk, format)
    assert (b"Adobe" in content) == (format == "JPEG")
    np.testing.assert_allclose(pixels(content), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_the_picture(format):
    frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert np.array_equal(pixels(content), np.asarray(frames[0]))


def test_arrays_off_their_scale_are_refused_and_16_bit_ones_scaled():
    assert np.array_equal(pixels(GREY_16), greys(GREY_8))
    assert np.array_equal(pixels(PIXELS.astype(np.float64)), PIXELS)
    for array, told in (
        (PIXELS.astype(np.int16) - 1, "values from -1 to 254, which must lie in 0 to 255; scale them"),
        (np.full((2, 2), np.nan), "4 of 4 values are not finite; replace them"),
        (np.zeros((0, 4)), r"shape \(0, 4\) of float64 is not a picture"),
    ):
        with pytest.raises(MediaError, match=told):
            pixels(array)


def test_the_limit_of_pixels_is_the_callers_and_at_the_limit_a_picture_is_read():
    assert pixels(encode(RGB), pixels=600).shape == (20, 30, 3)
    with pytest.raises(MediaError, match=r"30x20 pixels, limit 599; shrink it, or raise limits.pixels"):
        pixels(encode(RGB), pixels=599)


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ],
)
def test_drawings_that_a_program_would_have_to_run_are_no_pictures(content):
    with pytest.raises(MediaError, match="not a picture that can be read; give a PNG"):
        pixels(content)

"""Media as other programs write and break them: opened, or refused with what they are."""

import io
import struct

import numpy as np
import PIL.Image
import pytest
import soundfile
from pictures_made import PIXELS, RGB, chunk, encode, pixels

from mmgpt.datasets.media import Audio, MediaError, Video
from mmgpt.datasets.media.image import FORMATS

RATE = 16_000
TONE = (0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32)


def sound(format: str = "WAV", subtype: str | None = "PCM_16", samples: np.ndarray = TONE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=format, subtype=subtype)
    return buffer.getvalue()


PNG = encode()
BITMAP_32 = struct.pack("<IiiHHIIiiII", 40, 2, -1, 1, 32, 0, 8, 0, 0, 0, 0) + bytes([30, 20, 10, 0] * 2)
OPENED = {
    "rubbish after the end": (encode(RGB, "JPEG") + b"rubbish" * 99, "JPEG"),
    "two pictures": (encode(RGB, "MPO", save_all=True, append_images=[RGB]), "JPEG"),
    "progressive": (encode(RGB, "JPEG", progressive=True), "JPEG"),
    "broken exif": (encode(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), "JPEG"),
    "odd exif": (
        encode(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0"),
        "JPEG",
    ),
    "lzw": (encode(RGB, "TIFF", compression="tiff_lzw"), "PNG"),
    "deflate": (encode(RGB, "TIFF", compression="tiff_adobe_deflate"), "PNG"),
    "pages": (encode(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(90)]), "PNG"),
    "big tiff": (encode(RGB, "TIFF", big_tiff=True), "PNG"),
    "apng": (encode(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]), "PNG"),
    "webp": (encode(RGB, "WEBP", lossless=True), "PNG"),
    "bmp": (encode(RGB, "BMP"), "PNG"),
    "ppm": (encode(RGB, "PPM"), "PNG"),
    "ico": (encode(RGB.resize((16, 16)), "ICO", sizes=[(16, 16)]), "ICO"),
}


@pytest.mark.parametrize(("content", "like"), OPENED.values(), ids=OPENED)
def test_varieties_of_pictures_are_opened(content, like, tmp_path):
    (tmp_path / "a.png").write_bytes(content)  # whatever the name says
    expected = PIXELS if like == "PNG" else np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)


def test_a_bitmap_of_32_bits_is_opaque_and_a_gif_is_its_first_frame_whatever_follows():
    header = b"BM" + struct.pack("<IHHI", 14 + len(BITMAP_32), 0, 0, 54)
    assert pixels(header + BITMAP_32).tolist() == [[[10, 20, 30]] * 2]
    moving = encode(RGB.quantize(16), "GIF", save_all=True, append_images=[RGB.rotate(180).quantize(16)], duration=99)
    assert np.array_equal(pixels(moving[: -len(moving) // 4]), pixels(moving))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_pictures_of_no_known_orientation_are_as_they_are(format):
    exif = PIL.Image.Exif()
    exif[0x0112] = 77
    assert np.array_equal(pixels(encode(RGB, format, exif=exif)), pixels(encode(RGB, format)))


def test_grey_of_16_bits_in_files_is_on_the_scale_of_its_format():
    dark = np.array([[0, 257, 514, 2570]], np.uint16)
    expected = np.repeat(np.array([[[0], [1], [2], [10]]], np.uint8), 3, axis=2)
    for format in ("PNG", "TIFF", "JPEG2000"):
        options = {"irreversible": False} if format == "JPEG2000" else {}
        assert np.array_equal(pixels(encode(PIL.Image.fromarray(dark), format, **options)), expected)
        picture = PIL.Image.open(io.BytesIO(encode(PIL.Image.fromarray(dark), format, **options)))
        assert np.array_equal(pixels(picture), expected)
    inverted = encode(PIL.Image.fromarray(65535 - dark), "TIFF", tiffinfo={262: 0})
    if PIL.Image.open(io.BytesIO(inverted)).tag_v2[262] == 0:
        assert np.array_equal(pixels(inverted), expected)
    clear = chunk(b"tRNS", struct.pack(">H", 514))
    png = encode(PIL.Image.fromarray(dark))
    assert pixels(png[:33] + clear + png[33:])[0, :, 0].tolist() == [0, 1, 255, 10]


OTHERS = {
    "html": (b"\n<!DOCTYPE html><html><title>404</title>", "an HTML page, not a picture .*fetch the file"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer.*run git lfs pull",
    ),
    "annex": (b"/annex/objects/MD5E-s1--0.jpg\n", "a git-annex pointer"),
    "svg": (
        b'<?xml version="1.0"?>\n<!-- made --><svg xmlns="http://www.w3.org/2000/svg"/>',
        "an SVG drawing",
    ),
    "s3": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text"),
    "pdf": (b"%PDF-1.7\n", "a PDF document, .*render its pages to PNG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture, .*pillow-heif"),
    "jxl": (b"\xff\x0a" + bytes(9), "a JPEG XL picture"),
    "psd": (b"8BPS\0\1", "a Photoshop file"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "an MP4 or MOV file, .*give it as Video"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(9), "a WebM or Matroska file, .*give it as Video"),
    "wav": (sound(), "a WAV sound, .*give it as Audio"),
    "mp3": (b"ID3\x03" + bytes(9), "an MP3 sound, .*give it as Audio"),
    "apple": (b"\0\x05\x16\x07" + bytes(20), "what macOS keeps beside a file"),
    "npy": (b"\x93NUMPY\1\0", "a NumPy array, .*np.load"),
    "zip": (b"PK\x03\x04" + bytes(20), "a zip archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "a packed file, .*unpack it"),
    "dicom": (bytes(128) + b"DICM", "a DICOM file"),
    "json": (b'{"error": "not found"}', 'a text \\(\'{"error": "not found"}\'\\)'),
    "utf-16": ("no picture".encode("utf-16"), "a text \\('no picture'\\)"),
    "path": (b"/data/a.jpg", "a text .*a path goes in as a string"),
    "zeros": (bytes(999), "nothing but zeros"),
    "nothing": (b"", "0 bytes, not a picture"),
    "a torn header": (encode(RGB, "JPEG")[:4], "a JPEG picture, damaged or of a rare kind, not a picture"),
}


@pytest.mark.parametrize(("content", "told"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_picture_is_called_by_its_name(content, told, tmp_path):
    with pytest.raises(MediaError, match=f"^image given as bytes: {told}"):
        pixels(content)
    if content:
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(MediaError, match=f"a.jpg: {told}"):
            pixels(tmp_path / "a.jpg")


def test_a_torn_jpeg_is_truncated_and_says_so():
    torn = encode(RGB.resize((300, 300)), "JPEG", progressive=True)
    with pytest.raises(MediaError, match=r"the picture is damaged .*truncated"):
        pixels(torn[: len(torn) // 2])


def test_formats_that_pillow_lacks_are_passed_over_and_one_of_a_plug_in_is_read(monkeypatch):
    assert "HEIF" in FORMATS
    monkeypatch.delitem(PIL.Image.OPEN, "AVIF", raising=False)
    PIL.Image.init()
    assert np.array_equal(pixels(PNG), PIXELS)
    monkeypatch.setitem(PIL.Image.OPEN, "HEIF", (lambda file, name: RGB.copy(), lambda head: head[4:12] == b"ftypheic"))
    assert np.array_equal(pixels(OTHERS["heic"][0]), PIXELS)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PNG, "a PNG picture, not a sound that can be read; give a WAV, FLAC, OGG or MP3 file; give it as Image"),
        (OTHERS["html"][0], "an HTML page, not a sound"),
        (OTHERS["lfs"][0], "a Git LFS pointer, .*git lfs pull"),
        (b"MThd" + bytes(9), "a MIDI score"),
        (sound("FLAC")[:40], "a FLAC sound, damaged or of a rare kind"),
    ],
)
def test_what_is_no_sound_is_called_by_its_name(content, told):
    with pytest.raises(MediaError, match=told):
        Audio(content).load()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (encode(RGB, "JPEG"), "a JPEG picture, not a video .*give it as Image"),
        (OTHERS["html"][0], "an HTML page, not a video that can be read"),
        (OTHERS["lfs"][0], "a Git LFS pointer, .*git lfs pull"),
    ],
)
def test_what_is_no_video_is_called_by_its_name(content, told):
    pytest.importorskip("av")
    with pytest.raises(MediaError, match=told):
        Video(content).load()

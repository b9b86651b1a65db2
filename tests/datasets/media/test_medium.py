import base64
import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.datasets.media import Audio, Image, MediaError

RATE = 8000


def encode(picture: PIL.Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PNG = encode(PIL.Image.fromarray(PIXELS))


def bomb(width: int, height: int) -> bytes:
    """A PNG that is a header with a huge size and one row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PNG[: len(PNG) // 2], "damaged"),
        (PNG[:20], "not a picture"),
        (b"just some text", "not a picture"),
        (b"", "the file is empty; replace or remove it"),
        (b"\0" * 1000, "not a picture"),
        (bomb(20_000, 20_000), "shrink it"),
        (bomb(9_000, 9_000), r"9000x9000 pixels.* 64,000,000; shrink it"),
        (None, "no such file"),
    ],
    ids=["torn", "header", "text", "empty", "zeros", "bomb", "over-our-limit", "missing"],
)
def test_a_picture_that_cannot_be_used_is_refused_with_its_file_and_the_reason(content, reason, tmp_path):
    file = tmp_path / "holiday.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MediaError, match=rf"holiday.png: .*{reason}"):
        Image(str(file)).load()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@settings(max_examples=60)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4), keep=st.floats(0.05, 1)
)
def test_damage_of_any_kind_gives_a_picture_or_a_media_error_and_nothing_else(format, edits, keep):
    content = bytearray(encode(PIL.Image.fromarray(PIXELS), format))
    for share, piece in edits:
        at = int(share * len(content))
        content[at : at + len(piece)] = piece
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert Image(bytes(content[: int(keep * len(content))])).load().mode == "RGB"
        except MediaError as error:
            assert str(error).startswith("image given as bytes: ")  # noqa: PT017


def test_every_way_of_giving_a_picture_gives_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("deep/a.png", PNG)
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for source in (
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        str(tmp_path / "some.zip" / "deep" / "a.png"),
        PNG,
        url,
        PIXELS,
        PIL.Image.fromarray(PIXELS),
    ):
        assert np.array_equal(np.asarray(Image(source).load()), PIXELS)


def test_a_picture_is_upright_rgb_with_transparency_on_white():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: to be rotated by 270 degrees
    turned = Image(encode(PIL.Image.fromarray(PIXELS), "PNG", exif=exif)).load()
    assert np.array_equal(np.asarray(turned), np.rot90(PIXELS, -1))
    clear = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    clear.putpixel((1, 0), (200, 0, 0, 255))
    assert np.asarray(Image(encode(clear)).load()).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    grey = Image(np.full((2, 2), 7, np.uint8)).load()
    assert np.asarray(grey).tolist() == [[[7, 7, 7]] * 2] * 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.com/a.png", "does not fetch media from the network"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png", "has no comma"),
        ("absent.zip/a.png", "no such file"),
        (".", "cannot be read"),
        (object(), "not a picture"),
        (np.zeros((2, 2, 7)), "not a picture"),
    ],
)
def test_a_source_that_leads_nowhere_is_refused_with_the_reason(source, reason):
    with pytest.raises(MediaError, match=reason):
        Image(source).load()


def test_a_zip_that_lacks_the_member_or_is_none_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    (tmp_path / "torn.zip").write_bytes(b"PK nonsense")
    for name, reason in (("some.zip/b.png", "the zip holds no such member"), ("torn.zip/a.png", "cannot be read")):
        with pytest.raises(MediaError, match=rf"{name}: {reason}"):
            Image(str(tmp_path / name)).load()


def tone(seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", **options})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format_", "subtype", "error"),
    [
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "PCM_U8", 1e-2),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.1),
        ("MP3", None, 0.1),
    ],
)
def test_a_file_of_any_format_is_the_sound_that_was_written(format_, subtype, error, tmp_path):
    rate = 16000 if format_ == "MP3" else RATE
    path = tmp_path / "a.wav"  # whatever the name says
    path.write_bytes(wav(tone(rate=rate), rate, format=format_, subtype=subtype))
    sound = Audio(str(path)).load()
    assert sound.rate == rate
    assert sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples[: len(tone(rate=rate))], tone(rate=rate), atol=error)


def test_channels_are_averaged_whatever_their_number():
    samples = np.stack([tone() * share for share in (1, 0.5, 0, -1, 0.25, 0.75, 2)], axis=1)
    sound = Audio(wav(samples, subtype="FLOAT")).load()
    np.testing.assert_allclose(sound.samples, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "turn", [np.asarray, torch.as_tensor, lambda a: np.stack([a, a]), lambda a: np.stack([a, a], axis=1)]
)
def test_an_array_is_a_sound_at_its_rate_with_its_longer_axis_as_time(turn):
    sound = Audio(turn(tone()), rate=RATE).load()
    np.testing.assert_allclose(sound.samples, tone(), atol=1e-7)
    assert sound.seconds == 0.5


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_integers_are_scaled_to_one(dtype):
    limits = np.iinfo(dtype)
    middle = 128 if dtype == np.uint8 else 0
    array = np.array([limits.min, middle, limits.max], dtype=dtype)
    np.testing.assert_allclose(Audio(array, rate=RATE).load().samples, [-1, 0, 1], atol=1e-2)


def test_one_sample_and_silence_are_sounds():
    assert len(Audio(wav(np.zeros(1))).load().samples) == 1
    assert not Audio(wav(np.zeros(100))).load().samples.any()


@pytest.mark.parametrize(
    ("source", "rate", "told"),
    [
        (wav(np.zeros(0)), None, "the sound is empty"),
        (np.zeros(0, np.float32), RATE, "the sound is empty"),
        (np.array([0, np.nan, np.inf], np.float32), RATE, "2 of 3 samples are not finite"),
        (wav(np.array([0, np.nan]), subtype="FLOAT"), None, "1 of 2 samples are not finite"),
        (tone(), None, "an array does not tell its rate; write Audio"),
        (np.zeros((2, 2, 2)), RATE, r"shape \(2, 2, 2\) of float64 is no sound"),
        (np.array(["a"]), RATE, "is no sound"),
        (b"RIFF", None, "not a sound that can be read; give a WAV"),
        (b"", None, "not a sound that can be read"),
        (np.zeros(3601 * 10, np.float32), 10, "3,601 s of sound, limit 3,600 s; cut it"),
        (wav(np.zeros(3601 * 10), 10), None, "3,601 s of sound, limit 3,600"),
    ],
)
def test_what_is_no_sound_is_refused_with_the_reason(source, rate, told):
    with pytest.raises(MediaError, match=told):
        Audio(source, rate=rate).load()


def test_a_truncated_file_is_refused_and_a_wav_that_does_not_know_its_length_gives_what_there_is():
    whole = wav(tone(), format="FLAC")
    with pytest.raises(MediaError, match=r"truncated|not a sound"):
        Audio(whole[: len(whole) // 2]).load()
    lying = bytearray(wav(tone(), subtype="PCM_16"))
    for unknown in (0xFFFFFFFF, 0x7FFFF000):  # of a program that writes to a pipe, as ffmpeg and sox put it
        lying[40:44] = unknown.to_bytes(4, "little")  # the size of the data chunk
        assert len(Audio(bytes(lying)).load().samples) == len(tone())
    lying[40:44] = (10**8).to_bytes(4, "little")
    with pytest.raises(MediaError, match=r"truncated, 8,000 of 100,000,000 bytes of samples; replace or remove it"):
        Audio(bytes(lying)).load()


def test_an_array_is_handed_on_as_a_wav_and_a_file_as_it_is():
    mime, payload = Audio(tone(), rate=RATE).encoded()
    assert mime == "audio/wav"
    np.testing.assert_allclose(Audio(payload).load().samples, tone(), atol=1e-4)
    flac = wav(tone(), format="FLAC")
    assert Audio(flac).encoded() == ("audio/flac", flac)

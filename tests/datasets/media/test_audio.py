"""Sounds of every depth, rate and number of channels, written to real files, and how much memory they may take."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from mmgpt.datasets.media import Audio, Limits, MediaError

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("format", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_16", 4e-5),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 4e-5),
        ("AIFF", "PCM_16", 4e-5),
        ("AIFF", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.1),
    ],
)
def test_a_sound_of_any_depth_and_number_of_channels_is_their_mean(format, subtype, error, channels):
    shares = np.arange(1, channels + 1) / channels
    sound = Audio(encode(TONE[:, None] * shares, RATE, format, subtype)).load()
    assert sound.rate == RATE
    assert sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples, TONE * shares.mean(), atol=error)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_a_sound_keeps_its_rate(rate):
    sound = Audio(encode(TONE, rate)).load()
    assert (sound.rate, len(sound.samples)) == (rate, RATE)


@pytest.mark.parametrize(
    ("format", "subtype", "channels"),
    [("WAV", None, 1), ("WAV", None, 3), ("FLAC", None, 3), ("OGG", "VORBIS", 3), ("OGG", "OPUS", 2), ("MP3", None, 2)],
)
def test_a_sound_of_many_blocks_is_that_decoded_at_once(format, subtype, channels, monkeypatch):
    noise = 0.1 * np.random.default_rng(0).standard_normal((3 * RATE, channels)).astype(np.float32)
    content = encode(noise, RATE, format, subtype)
    whole = Audio(content).load()
    monkeypatch.setattr("mmgpt.datasets.media.audio.BLOCK", 1000)
    assert np.array_equal(Audio(content).load().samples, whole.samples)


def test_many_channels_take_the_memory_of_the_mono_sound():
    content = encode(np.zeros((60 * 96_000, 7), np.int16), 96_000, "FLAC")
    mono_bytes = 4 * 60 * 96_000
    tracemalloc.start()
    sound = Audio(content).load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sound.samples.nbytes == mono_bytes
    assert peak < mono_bytes + 20e6, f"{peak:,} bytes for a sound of {mono_bytes:,}"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"seconds": 0.5}, r"1 s of sound, limit 0 s; cut it into pieces"),
        ({"bytes": 50_000}, r"16,000 samples at 16,000 Hz, limit 12,500 \(limits.bytes / 4\)"),
    ],
)
def test_a_sound_over_a_limit_is_refused_by_its_header(limits, told, monkeypatch):
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("decoded"))
    for source in (Audio(encode(TONE, RATE, "FLAC")), Audio(TONE, rate=RATE)):
        with pytest.raises(MediaError, match=told):
            source.load(Limits(**limits))


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", None), ("WAV", None)])
@pytest.mark.parametrize("keep", [0.6, 0.9, 0.999])
def test_what_libsndfile_would_take_for_a_shorter_sound_is_truncated(format, subtype, keep):
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    content = encode(noise, RATE, format, subtype)
    assert len(Audio(content).load().samples) == 4 * RATE
    with pytest.raises(MediaError, match=r"truncated, [\d,]+ (of [\d,]+ bytes of samples|bytes without the page)"):
        Audio(content[: int(keep * len(content))]).load()

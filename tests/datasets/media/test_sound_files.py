"""Sounds as other programs write and tear them: opened whole, or refused with the reason."""

import io
import struct
import sys

import numpy as np
import pytest
import soundfile

from mmgpt.datasets.media import Audio, MediaError

RATE = 16_000
TONE = (0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32)


def sound(format: str = "WAV", subtype: str | None = "PCM_16", samples: np.ndarray = TONE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=format, subtype=subtype)
    return buffer.getvalue()


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


FMT, DATA = sound()[12:36], sound()[36:]
LIST = b"LIST" + struct.pack("<I", 14) + b"INFOISFT\2\0\0\0x\0"
ODD = b"LIST" + struct.pack("<I", 9) + b"INFOabcde"  # without the byte that fills it up
UNSIZED = b"data" + bytes(4) + DATA[8:]
WAVS = {
    "no size": riff(FMT, UNSIZED),
    "no sizes": b"RIFF" + bytes(4) + riff(FMT, UNSIZED)[8:],
    "no size, and a list": riff(FMT, UNSIZED, LIST),
    "no size, after a list": riff(FMT, LIST, UNSIZED),
    "size unknown": riff(FMT, b"data\xff\xff\xff\xff" + DATA[8:]),
    "samples first": riff(DATA, FMT),
    "lists all over": riff(LIST, FMT, LIST, DATA, LIST),
    "a broken list": riff(b"LIST" + struct.pack("<I", 10) + b"INFOabcdef", FMT, DATA),
    "an odd list": riff(FMT, ODD, DATA),
    "an odd list first": riff(ODD, FMT, DATA),
    "rf64": sound("RF64"),
    "w64": sound("W64"),
    "extensible": sound("WAVEX"),
    "24 bits": sound(subtype="PCM_24"),
    "32 bits": sound(subtype="PCM_32"),
    "doubles": sound(subtype="DOUBLE"),
    "au": sound("AU"),
    "caf": sound("CAF"),
    "flac behind an ID3 tag": b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + sound("FLAC"),
    "flac of unknown length": sound("FLAC")[:21] + bytes([sound("FLAC")[21] & 0xF0]) + bytes(4) + sound("FLAC")[26:],
}


@pytest.mark.parametrize("content", WAVS.values(), ids=WAVS)
def test_varieties_of_sounds_are_opened_whole(content):
    heard = Audio(content).load()
    assert (heard.rate, len(heard.samples)) == (RATE, len(TONE))
    np.testing.assert_allclose(heard.samples, TONE, atol=5e-5)


@pytest.mark.parametrize("subtype", ["ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32"])
def test_packed_sounds_are_opened(subtype):
    heard = Audio(sound(subtype=subtype)).load().samples
    assert np.corrcoef(heard[1000 : len(TONE)], TONE[1000:])[0, 1] > 0.99


@pytest.mark.parametrize("front", [b"", b"ID3\x03\0\0\0\x08\x00\x00" + b"\xff\xd8\xff" + bytes(131_069)])
@pytest.mark.parametrize("end", [b"", b"TAG" + bytes(125)])
def test_an_mp3_with_tags_and_a_cover_is_opened(front, end):
    heard = Audio(front + sound("MP3", None) + end).load()
    assert len(heard.samples) == len(TONE)
    np.testing.assert_allclose(heard.samples, TONE, atol=0.1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (riff(FMT, b"data" + bytes(4)), "the sound is empty; remove it"),
        (riff(FMT, b"data" + bytes(4), LIST), "the sound is empty; remove it"),
        (sound("RF64")[:20_000], r"truncated, [\d,]+ of 32,000 bytes of samples"),
        (sound("W64")[:20_000], r"truncated, [\d,]+ of 32,000 bytes of samples"),
        (sound("AU")[:20_000], r"truncated, [\d,]+ of 32,000 bytes of samples"),
        (riff(FMT), "a WAV sound, damaged or of a rare kind"),
    ],
)
def test_torn_and_empty_sounds_tell_both_numbers(content, told):
    with pytest.raises(MediaError, match=told):
        Audio(content).load()


def clip(kind: str, codec: str) -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=48_000, layout="mono")
        samples = np.repeat(TONE, 3)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=48_000)
        for ready in resampler.resample(frame):
            out.mux(stream.encode(ready))
        out.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("ipod", "aac"), ("adts", "aac"), ("webm", "libopus")])
def test_sounds_that_libsndfile_does_not_know_are_read_by_pyav(kind, codec, monkeypatch):
    content = clip(kind, codec)
    heard = Audio(content).load()
    assert (heard.rate, heard.samples.dtype) == (48_000, np.float32)
    assert heard.seconds == pytest.approx(1, abs=0.1)
    assert np.abs(heard.samples).max() == pytest.approx(0.5, abs=0.1)
    with pytest.raises(MediaError):
        Audio(content[: len(content) // 2]).load()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r'which needs PyAV; pip install "mmgpt\[video\]", or convert it to WAV'):
        Audio(content).load()

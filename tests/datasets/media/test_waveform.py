"""Sounds as numbers, and at what rate: of any type and layout the right level, or an error that says what to write."""

import io

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmgpt.datasets.media import Audio, MediaError, Video, Waveform
from mmgpt.datasets.sample import parse_messages
from mmgpt.datasets.source import media_from_cell

RATE = 8000
TONE = (0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32)
TONE[0] = 0.5
WORDS = np.round(TONE * 2**15).astype(np.int16)  # its peak is 16,384

SCALED = {  # a type, and a sound in -1 to 1 as it holds one; how far that rounds
    "int16": (lambda x: np.clip(np.round(x * 2**15), -(2**15), 2**15 - 1).astype(np.int16), 2**-15),
    ">i2": (lambda x: np.clip(np.round(x * 2**15), -(2**15), 2**15 - 1).astype(">i2"), 2**-15),
    "int32": (lambda x: np.clip(np.round(x * 2.0**31), -(2**31), 2**31 - 1).astype(np.int32), 2**-15),
    "int8": (lambda x: np.clip(np.round(x * 2**7), -(2**7), 2**7 - 1).astype(np.int8), 2**-7),
    "uint8": (lambda x: np.clip(np.round(x * 2**7 + 2**7), 0, 255).astype(np.uint8), 2**-7),
    "float16": (lambda x: x.astype(np.float16), 2**-11),
    "float32": (lambda x: x.astype(np.float32), 2**-15),
    ">f8": (lambda x: x.astype(">f8"), 2**-15),
    "list of floats": (lambda x: x.tolist(), 2**-15),
    "bfloat16": (lambda x: torch.from_numpy(x).bfloat16().requires_grad_(), 2**-8),
    "torch int16": (lambda x: torch.from_numpy(SCALED["int16"][0](x)), 2**-15),
}


@settings(deadline=None, max_examples=150)
@given(
    samples=arrays(np.float64, st.integers(3, 40), elements=st.floats(-1, 1, width=32)),
    kind=st.sampled_from(list(SCALED)),
    channels=st.sampled_from(["", "first", "last", "batch"]),
)
def test_a_sound_in_any_type_and_layout_is_itself_or_refused(samples, kind, channels):
    make, error = SCALED[kind]
    if kind == "list of floats":
        samples = samples + 2**-20  # of whole numbers a list tells no scale
    array = make(np.clip(samples, -1, 1))
    if channels and kind != "list of floats":
        stack = torch.stack if isinstance(array, torch.Tensor) else np.stack
        array = stack([array, array], -1 if channels == "last" else 0)
        array = array[None] if channels == "batch" else array
    if kind == "int32" and 0 < np.abs(np.asarray(array, np.int64)).max() <= 2**23:
        with pytest.raises(MediaError, match="does not tell their scale"):
            Audio(array, rate=RATE).load()
    else:
        np.testing.assert_allclose(Audio(array, rate=RATE).load().samples, samples, atol=error + 1e-6)


@pytest.mark.parametrize(
    "array",
    [
        WORDS.astype(np.int64),
        WORDS.astype(np.int32),
        WORDS.tolist(),
        WORDS.astype(np.uint16),
        WORDS.astype(np.uint32),
        WORDS.astype(np.uint64),
        WORDS.astype(np.int32) * 256,  # 24 bits
        torch.from_numpy(WORDS.astype(np.int64)),
        [[0, 1, -1, 2]],
    ],
)
def test_whole_numbers_of_a_type_that_tells_no_scale_are_refused(array):
    with pytest.raises(MediaError, match=r"does not tell their scale; give 16-bit ones as int16, .*, or floats in"):
        Audio(array, rate=RATE).load()


def test_silence_is_silence_on_every_scale():
    for dtype in (np.int64, np.int32, np.uint16, np.int16, np.float32):
        assert not Audio(np.zeros(9, dtype), rate=RATE).load().samples.any()
    assert not Audio([0, 0, 0], rate=RATE).load().samples.any()


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (
            WORDS.astype(np.float32),
            r"values from -1638\d to 16384, which must lie in -1 to 1; divide 16-bit",
        ),
        (WORDS.astype(np.float64).tolist(), "divide 16-bit numbers by 32768"),
        (TONE * 18, "values from -9 to 9"),
        (TONE * np.nan, "8,?000 of 8000 samples are not finite"),
        (np.append(TONE, np.inf), "1 of 8001 samples are not finite"),
        (TONE.astype(complex), "of complex64 is no sound|of complex128 is no sound"),
        (TONE > 0, r"shape \(8000,\) of bool is no sound"),
        (TONE.astype(object), "of object is no sound"),
        (np.array(["1"]), "is no sound"),
        (np.zeros((2, 2)), r"shape \(2, 2\) does not tell which axis is time"),
        (np.zeros((80, 300)), "would be a sound of 80 channels; give samples, not a spectrogram"),
        (np.zeros((2, 2, 9)), r"shape \(2, 2, 9\) of float64 is no sound"),
        (np.zeros((2, 0)), "the sound is empty"),
        (np.array(0.5), "is no sound; give a path"),
        ([[0.1], [0.1, 0.2]], "cannot be read as an array"),
        ([0.1, None], "of object is no sound"),
        ({"array": TONE}, "dict is no sound"),
        (
            np.frombuffer(b"RIFF\0\0\0\0WAVEfmt ", np.uint8),
            "the bytes of a WAV sound in an array; give array.tobytes()",
        ),
    ],
)
def test_what_is_no_sound_or_on_no_scale_is_refused(array, told):
    with pytest.raises(MediaError, match=told):
        Audio(array, rate=RATE).load()


@pytest.mark.parametrize(
    ("array", "seconds"),
    [
        (TONE[None], 1),
        (TONE[:, None], 1),
        (np.stack([TONE, TONE]), 1),
        (np.stack([TONE, TONE], axis=1)[::-1], 1),
        (TONE[None, None], 1),
        (np.ones((1, 1), np.float32), 1 / RATE),
        (1.02 * TONE, 1),
        (2.04 * TONE, 1),
    ],
)
def test_layouts_and_what_resampling_leaves_over_1(array, seconds):
    sound = Audio(array, rate=RATE).load()
    assert sound.seconds == seconds
    assert sound.samples.max() == pytest.approx(array.max())


@pytest.mark.parametrize("rate", [8000, 8000.0, np.int32(8000), np.float32(8000), np.array(8000), torch.tensor(8000)])
def test_a_rate_is_a_whole_number_of_any_type(rate):
    audio = Audio(TONE, rate=rate)
    assert (audio.rate, type(audio.rate), audio.load().rate) == (8000, int, 8000)


@pytest.mark.parametrize(
    "rate",
    ["16000", 0, -1, True, False, float("nan"), float("inf"), 44_100.5, 10**12, 10**400, [16000], b"8000", 0.5, 1j],
)
def test_a_rate_that_is_none_is_refused_at_the_door(rate):
    with pytest.raises(MediaError, match=r"rate=.* is no whole number of samples a second; write Audio\("):
        Audio(TONE, rate=rate)


@pytest.mark.parametrize("source", [None, 5, 0.5, True, np.float32(1), float("nan"), "", " \n", 1j])
@pytest.mark.parametrize("kind", [Audio])
def test_what_holds_nothing_is_refused_at_the_door(kind, source):
    with pytest.raises(MediaError, match="is no audio; give a path, bytes, an open file, a data URL or an array"):
        kind(source)


def test_a_decoded_sound_keeps_its_level(tmp_path):
    loud = Waveform(5 * TONE, RATE)
    assert np.array_equal(Audio(loud).load().samples, loud.samples)
    mime, payload = Audio(loud).encoded()
    assert mime == "audio/wav"
    np.testing.assert_allclose(Audio(payload).load().samples, loud.samples)
    assert soundfile.info(io.BytesIO(Audio(TONE, rate=RATE).encoded()[1])).subtype == "PCM_16"


def test_rows_of_datasets_keep_the_type_of_their_samples(tmp_path):
    for make in (
        lambda array: media_from_cell(
            "audio", {"array": array, "sampling_rate": RATE, "path": None}, tmp_path, tmp_path
        )[0],
        lambda array: parse_messages(
            [{"role": "user", "content": [{"type": "audio", "audio": {"array": array, "sampling_rate": float(RATE)}}]}]
        )[0].parts[0],
    ):
        assert make(WORDS).load().samples.max() == 0.5
        assert make(TONE.tolist()).load().samples.max() == 0.5
        with pytest.raises(MediaError, match="does not tell their scale"):
            make(WORDS.tolist()).load()
        with pytest.raises(MediaError, match="of object is no sound"):
            make([0.5, None]).load()
    with pytest.raises(MediaError, match="is no image"):
        media_from_cell("image", {"array": TONE, "sampling_rate": RATE}, tmp_path, tmp_path)
    with pytest.raises(MediaError, match="rate='8000' is no whole number"):
        media_from_cell("audio", {"array": TONE, "sampling_rate": "8000"}, tmp_path, tmp_path)
    assert media_from_cell("audio", float("nan"), tmp_path, tmp_path) == []


@pytest.mark.parametrize(
    "samples",
    [
        (TONE * 2**15).astype(np.int16),
        np.stack([TONE, TONE]),
        TONE.astype(np.float64),
        TONE.tolist(),
        torch.from_numpy(TONE),
    ],
)
def test_a_sound_made_by_hand_is_read_as_its_array_is(samples):
    for source in (Waveform(samples, 8000.0), lambda: Waveform(samples, 8000.0)):
        sound = Audio(source).load()
        assert (sound.samples.dtype, sound.samples.shape, type(sound.rate)) == (np.float32, TONE.shape, int)
        assert np.abs(sound.samples - TONE).max() < 1e-4


def test_a_rate_that_is_not_that_of_the_file_or_sound_is_refused():
    payload = Audio(TONE, rate=RATE).encoded()[1]
    assert Audio(payload, rate=RATE).load().rate == RATE
    for source in (payload, Waveform(TONE.astype(np.float32), RATE)):
        with pytest.raises(MediaError, match=r"rate=16000, but it states 8,000 Hz; leave rate out"):
            Audio(source, rate=16_000).load()
    with pytest.raises(MediaError, match=r"rate=1 is for frames, and a file tells its own; leave it out"):
        Video("film.mp4", rate=1)


def test_masked_samples_are_not_taken_for_samples():
    with pytest.raises(MediaError, match="some of it is masked"):
        Audio(np.ma.masked_greater(TONE, 0.2), rate=RATE).load()
    assert Audio(np.ma.masked_greater(TONE, 2), rate=RATE).load().seconds == 1

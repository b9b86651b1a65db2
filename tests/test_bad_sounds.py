"""Real files of sound as they turn up, through the doors that a user takes: `Audio.load`, `mmgpt ask`, a training."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, MediaError
from mmgpt.files import write_folder
from mmgpt.training.loop import train

RATE = 8000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return buffer.getvalue()


def with_header(offset: int, form: str, value: int) -> bytes:
    """A WAV of the tone whose header states something else at an offset."""
    content = bytearray(encode(TONE))
    struct.pack_into(form, content, offset, value)
    return bytes(content)


FINE = {
    "one-sample": (encode(TONE[:1]), 1),
    "silence": (encode(np.zeros(RATE)), RATE),
    "clipped": (encode(np.sign(TONE)), len(TONE)),
    "over-one": (encode(5 * TONE, subtype="FLOAT"), len(TONE)),
    "8-bit": (encode(TONE, subtype="PCM_U8"), len(TONE)),
    "96-kHz": (encode(np.repeat(TONE, 12), 96_000), 12 * len(TONE)),
    "odd-rate": (with_header(24, "<I", 44_101), len(TONE)),
    "absurd-rate": (with_header(24, "<I", 2**31 - 1), len(TONE)),
    "7-channels": (encode(np.stack([TONE] * 7, axis=1)), len(TONE)),
    "mp3-under-a-wav-name": (encode(np.repeat(TONE, 2), 16_000, format="MP3", subtype=None), 2 * len(TONE)),
    "header-claims-less": (with_header(40, "<I", len(TONE)), len(TONE) // 2),
    "header-claims-nothing": (with_header(40, "<I", 0), len(TONE)),
    "length-unknown": (with_header(40, "<I", 0xFFFFFFFF), len(TONE)),
}
EMPTY = "the sound is empty; remove it"
A_WAV = "a WAV sound, damaged or of a rare kind"
NO_SOUND = "not a sound that can be read; give a WAV, FLAC, OGG or MP3 file"
WRONG = {
    "empty-file": (b"", "the file is empty; replace or remove it"),
    "empty-clip": (encode(TONE[:0]), EMPTY),
    "header-claims-more": (
        with_header(40, "<I", 16_000),
        "truncated, 8,000 of 16,000 bytes of samples; replace or remove it",
    ),
    "cut": (encode(TONE)[:3044], "truncated, 3,000 of 8,000 bytes of samples; replace or remove it"),
    "no-rate": (with_header(24, "<I", 0), f"{A_WAV} (its header states no rate), {NO_SOUND}"),
    "no-channels": (with_header(22, "<H", 0), f"{A_WAV} (Channel count is zero), {NO_SOUND}"),
    "text": (
        b"not a sound at all",
        f"a text ('not a sound at all'), {NO_SOUND}",
    ),
    "not-numbers": (
        encode(np.array([0, np.nan, np.inf]), subtype="FLOAT"),
        "2 of 3 samples are not finite or over 1e+12; replace or remove it",
    ),
    "beyond-all-sense": (
        encode(np.array([0, 1e38]), subtype="FLOAT"),
        "1 of 2 samples are not finite or over 1e+12; replace or remove it",
    ),
    "over-an-hour": (encode(np.zeros(36_010), 10), "3,601 s of sound, limit 3,600 s; cut it into pieces"),
}
TOO_LONG_TO_HEAR = (
    encode(np.zeros(31 * RATE)),
    "31.00 s of sound, over the encoder's limit of 30 s; cut it, or raise max_seconds of the encoder",
)


@pytest.fixture
def give(tmp_path):
    def write(content: bytes) -> Path:
        (tmp_path / "clip.wav").write_bytes(content)
        return tmp_path / "clip.wav"

    return write


@pytest.fixture(scope="module")
def hearing(make_bundle, tmp_path_factory) -> Path:
    """A model with an audio encoder."""
    folder = tmp_path_factory.mktemp("hearing") / "model"
    write_folder(folder, lambda draft: save_bundle(make_bundle(audio={"kind": "linear"}), draft))
    return folder


@pytest.mark.parametrize(("content", "samples"), FINE.values(), ids=FINE)
def test_a_strange_sound_is_loaded_and_gets_an_answer(content, samples, give, hearing, mmgpt_says):
    file = give(content)
    sound = Audio(str(file)).load()
    assert len(sound.samples) == samples
    assert np.isfinite(sound.samples).all()
    code, _, told = mmgpt_says("ask", hearing, "What is this?", "--audio", file, "--max-new-tokens", 2)
    assert (code, told) == (0, "")


@pytest.mark.parametrize(("content", "reason"), [*WRONG.values(), TOO_LONG_TO_HEAR], ids=[*WRONG, "over-the-limit"])
def test_a_sound_that_cannot_be_used_is_refused_in_one_line_with_file_reason_and_remedy(
    content, reason, give, hearing, mmgpt_says
):
    file = give(content)
    if content == TOO_LONG_TO_HEAR[0]:
        assert Audio(str(file)).load().seconds == 31
    else:
        with pytest.raises(MediaError) as refused:
            Audio(str(file)).load()
        assert str(refused.value) == f"{file}: {reason}"
    assert mmgpt_says("ask", hearing, "What is this?", "--audio", file) == (2, "", f"error: {file}: {reason}\n")


def test_a_sound_given_to_a_model_that_does_not_hear_is_refused(give, make_bundle, mmgpt_says, tmp_path):
    write_folder(tmp_path / "model", lambda draft: save_bundle(make_bundle(), draft))
    file = give(encode(TONE))
    told = f"error: {file}: this model has no audio encoder; it takes text, image, video: leave it out\n"
    assert mmgpt_says("ask", tmp_path / "model", "What is this?", "--audio", file) == (2, "", told)


@pytest.fixture
def learn(tmp_path, make_bundle, make_recipe):
    """Train a model that hears on seven good files and one bad one; the records of its log."""

    def run(bad: bytes, max_skipped: float) -> list[dict]:
        (tmp_path / "good.wav").write_bytes(encode(TONE))
        (tmp_path / "bad.wav").write_bytes(bad)
        talk = [{"role": "user", "content": "<audio>What is it?"}, {"role": "assistant", "content": "a tone"}]
        rows = [{"messages": talk, "audios": [name]} for name in ["bad.wav"] + ["good.wav"] * 7]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        stage = {"data": [{"reader": "messages", "path": "rows.jsonl"}], "steps": 4, "max_skipped": max_skipped}
        tree = make_bundle(audio={"kind": "linear"}).model.config.model_dump(mode="json")
        train(make_recipe(stage, model=tree), out=tmp_path / "run", data_root=tmp_path, device="cpu")
        return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]

    return run


@pytest.mark.train
@pytest.mark.parametrize(("content", "reason"), [*WRONG.values(), TOO_LONG_TO_HEAR], ids=[*WRONG, "over-the-limit"])
def test_training_counts_and_skips_a_bad_sound_and_tells_the_reason(content, reason, learn):
    log = learn(content, max_skipped=0.2)
    assert [record["skipped"] for record in log if "loss" in record][-1] == 1
    (shown,) = [record["reason"] for record in log if record.get("event") == "skipped"]
    assert shown.startswith("rows/0: ")
    assert shown.endswith(f"bad.wav: {reason}")


@pytest.mark.train
def test_training_stops_with_the_reason_where_no_bad_sound_is_allowed(learn):
    with pytest.raises(UserError, match=rf"over max_skipped=0.0; first: rows/0: .*bad.wav: {EMPTY}"):
        learn(WRONG["empty-clip"][0], max_skipped=0.0)

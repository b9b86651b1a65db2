"""Media as they go wrong on disk, through the doors they come in by: `Media.load`, and a training that skips them."""

import io
import json
import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.media import MEDIA, Audio, Image, Limits, MediaError, Video
from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.readers.registry import MessagesConfig, open_source
from mmgpt.inputs.dataloader import StepDataset, iterate_steps
from mmgpt.training.loop import train

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
TONE = (0.5 * np.sin(np.arange(8000) / 3)).astype(np.float32)
TALK = [{"role": "user", "content": "<{}>What is it?"}, {"role": "assistant", "content": "a thing"}]


def picture(format: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(NOISE).save(buffer, format)
    return buffer.getvalue()


def sound(samples: np.ndarray = TONE, rate: int = 8000, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def huge_png(side: int = 50_000) -> bytes:
    """A header that states so many pixels, and one row of nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def zipped(member: str, content: bytes, keep: float = 1.0) -> bytes:
    """A zip of one packed member, whose last bytes were overwritten where not all is kept."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    packed = bytearray(buffer.getvalue())
    at = packed.index(member.encode()) + len(member)
    size = packed.index(b"PK\x01\x02") - at
    packed[at + int(keep * size) : at + size] = bytes(size - int(keep * size))
    return bytes(packed)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def pretending(content: bytes, size: int) -> bytes:
    """A zip whose directory states another size of its member than that has."""
    at = content.index(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


LYING = bytearray(sound())
LYING[40:44] = (10**8).to_bytes(4, "little")
BOMB = zipped("a.png", bytes(3_000_000))
NO_PICTURE = "not a picture that can be read; give a PNG, JPEG or WebP file"
BAD: dict[str, tuple[str, str, bytes, str]] = {  # modality, file, its content, the reason
    "torn-jpg": ("image", "a.jpg", cut(picture("JPEG")), "the picture is damaged (image file is truncated"),
    "torn-png": ("image", "a.png", cut(picture("PNG")), "the picture is damaged ("),
    "empty-png": ("image", "a.png", b"", "the file is empty; replace or remove it"),
    "text-png": ("image", "a.png", b"<html>404 not found</html>", NO_PICTURE),
    "svg": ("image", "a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_PICTURE),
    "sound-png": ("image", "a.png", sound(), NO_PICTURE),
    "huge-png": ("image", "a.png", huge_png(), "limit of 178956970 pixels"),
    "large-png": ("image", "a.png", huge_png(8001), "8001x8001 pixels, limit 64,000,000; shrink it"),
    "torn-zip": ("image", "a.zip/a.png", cut(zipped("a.png", picture("PNG"))), "cannot be read (File is not a zip"),
    "torn-member": (
        "image",
        "a.zip/a.png",
        zipped("a.png", picture("PNG"), 0.5),
        "the zip's member cannot be unpacked",
    ),
    "empty-member": ("image", "a.zip/a.png", zipped("a.png", b""), "the zip's member is empty"),
    "climbing-member": ("image", "a.zip/../../a.png", zipped("a.png", b"x"), "the zip holds no such member"),
    "unpacks-too-large": ("image", "a.zip/a.png", BOMB, "3,000,000 bytes, limit 1,000,000; cut or compress it"),
    "unpacks-to-more": ("image", "a.zip/a.png", pretending(BOMB, 1000), "the zip's member cannot be unpacked"),
    "too-many-bytes": ("image", "a.png", bytes(1_000_001), "1,000,001 bytes, limit 1,000,000; cut or compress it"),
    "torn-wav": ("audio", "a.wav", cut(sound()), "truncated, 7,978 of 16,000 bytes of samples; replace or remove it"),
    "torn-ogg": ("audio", "a.ogg", cut(sound(format="OGG", subtype="OPUS")), "bytes without the page that ends an OGG"),
    "torn-flac": ("audio", "a.flac", cut(sound(format="FLAC")), "not a sound that can be read; give a WAV"),
    "lying-wav": ("audio", "a.wav", bytes(LYING), "truncated, 16,000 of 100,000,000 bytes of samples"),
    "no-samples": ("audio", "a.wav", sound(TONE[:0]), "the sound is empty; remove it"),
    "three-hours": (
        "audio",
        "a.flac",
        sound(np.zeros(3 * 36_000), 10, "FLAC"),
        "10,800 s of sound, limit 3,600 s; cut",
    ),
    "text-wav": ("audio", "a.wav", b"not a sound", "not a sound that can be read; give a WAV"),
}
LIMITS = Limits(bytes=1_000_000)


@pytest.fixture
def lay(tmp_path):
    """Write a bad file; the path by which it is named."""

    def write(name: str, content: bytes) -> Path:
        file = tmp_path / (name.split("/")[0])
        file.write_bytes(content)
        return tmp_path / name if ".." not in name else Path(f"{tmp_path}/{name}")

    return write


@pytest.fixture
def learn(tmp_path, make_bundle):
    """The first step of a stream over seven good media and one bad one."""

    def run(modality: str, bad: str, **encoders):
        (tmp_path / "good.png").write_bytes(picture("PNG"))
        (tmp_path / "good.wav").write_bytes(sound())
        good = "good.png" if modality == "image" else "good.wav"
        talk = [{**TALK[0], "content": TALK[0]["content"].format(modality)}, TALK[1]]
        rows = [{"messages": talk, f"{modality}s": [name]} for name in [bad] + [good] * 7]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        source = open_source(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path)
        bundle = make_bundle(**{"audio": {"kind": "linear"}, **encoders})
        bundle.limits = LIMITS
        options = {"objective": "respond", "batch_size": 8, "micro_batch_tokens": 10_000}
        order = MixtureSampler([len(source)], [1.0], 0)
        return next(iterate_steps(StepDataset([source], order, bundle.renderer, **options), 0))

    return run


@pytest.mark.parametrize(("modality", "name", "content", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_its_path_and_the_reason(modality, name, content, reason, lay):
    file = lay(name, content)
    with pytest.raises(MediaError) as refused:
        MEDIA[modality](f"{file.parent}/{file.name}" if ".." not in name else str(file)).load(LIMITS)
    assert str(refused.value).startswith(f"{file}: ")
    assert reason in str(refused.value)


def test_a_training_stops_at_a_path_that_climbs_out_of_the_data(lay, learn):
    modality, name, content, _ = BAD["climbing-member"]
    with pytest.raises(UserError, match="leads out of the data root"):
        learn(modality, str(lay(name, content)))


SKIPPED = {name: bad for name, bad in BAD.items() if name != "climbing-member"}


@pytest.mark.parametrize(("modality", "name", "content", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_a_training_counts_and_skips_a_bad_file_and_tells_the_reason(modality, name, content, reason, lay, learn):
    step = learn(modality, str(lay(name, content)))
    assert step.counts["rows"] == {"samples": 8, "skipped": 1, "trimmed": 0}
    assert sum(len(batch.ids) for batch in step.batches) == 7
    (told,) = step.faults
    assert told.startswith("rows/0: ")
    assert reason in told


@pytest.mark.parametrize("kind", [Image, Audio, Video])
@pytest.mark.parametrize("what", ["fifo", "folder", "device", "fifo.zip/a", "absent", "nul\0byte", "x" * 300])
def test_what_is_no_regular_file_is_refused_at_once(kind, what, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo.zip")
    (tmp_path / "folder").mkdir()
    path = "/dev/zero" if what == "device" else str(tmp_path / what)
    before = time.monotonic()
    with pytest.raises(MediaError, match="no such file" if what == "absent" else "cannot be read"):
        kind(path).load()
    assert time.monotonic() - before < 5


def test_a_training_skips_a_named_pipe_and_a_folder(tmp_path, learn):
    os.mkfifo(tmp_path / "a.png")
    assert "a.png: cannot be read, for it is no regular file" in learn("image", "a.png").faults[0]
    assert "cannot be read, for it is no regular file" in learn("audio", ".").faults[0]


@pytest.mark.train
def test_a_recipe_sets_the_limits_of_its_training(tmp_path, make_recipe):
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    talk = [{**TALK[0], "content": "<image>What is it?"}, TALK[1]]
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"messages": talk, "images": ["a.png"]})] * 4))
    stage = {"data": [{"reader": "messages", "path": "rows.jsonl"}], "steps": 1}
    train(make_recipe(stage), out=tmp_path / "fine", data_root=tmp_path, device="cpu")
    small = make_recipe(stage, limits={"pixels": 4095})
    with pytest.raises(
        UserError, match=r"first: rows/\d: .*a.png: 64x64 pixels, limit 4,095; shrink it, or raise limits"
    ):
        train(small, out=tmp_path / "small", data_root=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("limits", "told"), [({"pixels": 10**9}, "limits.pixels"), ({"pixel": 1}, "did you mean pixels")]
)
def test_limits_that_are_none_are_refused(limits, told, make_recipe):
    with pytest.raises(UserError, match=told):
        make_recipe(limits=limits)


def video() -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(NOISE[level : level + 32, :32].copy(), format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (Image, lambda: picture("TIFF")),
        (Video, lambda: picture("GIF")),
        (Video, video),
        (Audio, lambda: sound(format="FLAC")),
        (Audio, lambda: sound(format="OGG", subtype="VORBIS")),
        (Audio, lambda: sound(format="AIFF")),
    ],
    ids=["tiff", "gif", "mp4", "flac", "ogg", "aiff"],
)
@settings(max_examples=40)
@given(data=st.data())
def test_damage_of_any_kind_gives_a_medium_or_a_media_error_and_nothing_else(kind, make, data):
    content = bytearray(make())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        kept = data.draw(st.integers(0, 8))
        content[at : at + kept] = data.draw(st.binary(max_size=8))
    try:
        kind(bytes(content[: data.draw(st.integers(1, len(content)))])).load(LIMITS)
    except MediaError as error:
        assert str(error).startswith(f"{kind.modality} given as bytes: ")  # noqa: PT017


def test_a_training_of_a_model_that_neither_sees_nor_hears_stops_at_a_video(learn):
    with pytest.raises(UserError, match=r"rows/\d: .*: this model has no video encoder; it takes text: leave it out"):
        learn("video", "a.mp4", image=None, audio=None)


def test_a_video_that_is_none_is_counted_and_named(learn):
    assert "a.mp4: no such file; check the video's path" in " ".join(learn("video", "a.mp4").faults)

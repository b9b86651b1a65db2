"""Videos, written to real files by PyAV and Pillow: which frames are picked, when, with what sound."""

import io
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError
from mmgpt.datasets.media import Limits, MediaError, Video

av = pytest.importorskip("av")

SIZE = (64, 48)
RATE = 48_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Write a video of grey frames, the n-th one of level 10 * n, at some times in tenths of a second."""

    def make(
        kind: str, codec: str, times=range(20), sound: str = "", levels=None, delay: float = 0, **options
    ) -> bytes:
        file = tmp_path_factory.mktemp("film") / f"a.{kind}"
        with av.open(str(file), "w", options=options) as out:
            if times:
                stream = out.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
                stream.thread_count = 1
            track = out.add_stream(sound, rate=RATE, layout="stereo") if sound else None
            for number, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(np.full((*SIZE[::-1], 3), 10 * number, np.uint8), format="rgb24")
                frame.pts = time
                out.mux(stream.encode(frame))
            if times:
                out.mux(stream.encode())
            if track:
                frame = av.AudioFrame.from_ndarray(np.stack([TONE, 0 * TONE]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = RATE, round(delay * RATE)
                out.mux(track.encode(frame))
                out.mux(track.encode())
        return file.read_bytes()

    return make


@pytest.fixture(scope="session")
def mp4(film) -> bytes:
    return film("mp4", "libx264", sound="aac", movflags="faststart")


def numbers(frames: list[PIL.Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame).mean()) / 10) for frame in frames]


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mkv", "mpeg4")]
)
def test_frames_are_those_on_the_screen_at_a_rate_or_in_a_number(kind, codec, film):
    video = Video(film(kind, codec))
    shown = video.load(rate=5)
    assert [round(time, 6) for time in shown.times] == [round(0.2 * at, 6) for at in range(10)]
    assert numbers(shown.frames) == list(range(0, 20, 2))
    assert {(frame.mode, frame.size) for frame in shown.frames} == {("RGB", SIZE)}
    assert shown.sound is None
    few = video.load(count=4)
    assert few.times == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.01)
    assert numbers(few.frames) == [2, 7, 12, 17]
    assert numbers(video.load().frames) == [0, 10]
    assert numbers(video.load(rate=20).frames)[:6] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx")])
def test_frames_of_a_variable_rate_are_found_by_their_time_stamps(kind, codec, film):
    content = film(kind, codec, times=[0, 1, 2, 3, 15, 16, 17, 18, 19, 20])
    assert numbers(Video(content).load(rate=2).frames) == [0, 3, 3, 4, 9]
    assert numbers(Video(content).load(count=3).frames) == [3, 3, 7]


def test_the_same_file_gives_the_same_pixels(mp4):
    first, again = Video(mp4).load(rate=10), Video(mp4).load(rate=10)
    for one, other in zip(first.frames, again.frames, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert np.array_equal(first.sound.samples, again.sound.samples)


@pytest.mark.parametrize(("kind", "codec", "sound"), [("mp4", "libx264", "aac"), ("webm", "libvpx", "libopus")])
def test_the_sound_is_mono_and_begins_with_the_first_frame(kind, codec, sound, film):
    heard = Video(film(kind, codec, sound=sound)).load().sound
    assert heard.rate == RATE
    assert heard.seconds == pytest.approx(2, abs=0.05)
    middle = slice(RATE // 2, RATE)
    np.testing.assert_allclose(heard.samples[middle], TONE[middle] / 2, atol=0.03)  # the other channel is silent
    late = Video(film(kind, codec, sound=sound, delay=1.0)).load().sound
    begins = int(np.argmax(np.abs(late.samples) > 0.02)) / RATE
    assert begins == pytest.approx(1, abs=0.002)  # a WebM tells times in milliseconds


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_is_a_video(format):
    frames = [PIL.Image.new("RGB", (8, 6), (0, 60 * at, 0)) for at in range(4)]
    options = {"lossless": True} if format == "WEBP" else {}
    durations = [100, 100, 600, 200]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], duration=durations, **options)
    shown = Video(buffer.getvalue()).load(count=5)
    assert shown.times == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [frame.getpixel((0, 0))[1] // 60 for frame in shown.frames] == [1, 2, 2, 2, 3]
    assert shown.sound is None


def test_a_video_filmed_upright_is_upright(film):
    content = bytearray(film("mp4", "libx264", times=range(3)))
    upright = Video(bytes(content)).load().frames[0]
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12: rotated by 90 degrees to the right
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
    turned = Video(bytes(content)).load().frames[0]
    assert turned.size == SIZE[::-1]
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


REFUSED = {
    "cut-mp4": (lambda film, mp4: half(mp4), r"truncated or damaged after \d+ frames"),
    "cut-mp4-index-last": (
        lambda film, mp4: half(film("mp4", "libx264")),
        "without pictures|not a video that can be read",
    ),
    "cut-fragments": (
        lambda film, mp4: half(film("mp4", "mpeg4", movflags="frag_keyframe+empty_moov")),
        r"truncated or damaged after \d+ frames",
    ),
    "cut-webm": (
        lambda film, mp4: half(film("webm", "libvpx")),
        r"truncated, \d\.\d\d of 2\.0\d s; replace or remove it",
    ),
    "only-sound": (
        lambda film, mp4: film("mp4", "", times=(), sound="aac"),
        "a video without pictures: it holds audio; replace or remove it",
    ),
    "no-frames": (
        lambda film, mp4: without_frames(),
        "a video without pictures: it holds nothing; replace",
    ),
    "text": (lambda film, mp4: b"just some text", "not a video that can be read, or damaged"),
    "nothing": (lambda film, mp4: b"", "the file is empty"),
    "still": (lambda film, mp4: b"\xff\xd8\xff\xe0 no video", "not a video that can be read"),
}


def without_frames() -> bytes:
    """An MP4 that is a header and an index of nothing."""
    box = lambda kind, data: struct.pack(">I", 8 + len(data)) + kind + data  # noqa: E731
    header = struct.pack(">IIIII", 0, 0, 0, 1000, 0) + b"\0" * 80
    return box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", box(b"mvhd", header))


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_video_that_cannot_be_used_is_refused_with_the_reason(make, reason, film, mp4, tmp_path):
    (tmp_path / "a.mp4").write_bytes(make(film, mp4))
    with pytest.raises(MediaError, match=rf"a.mp4: .*({reason})"):
        Video(str(tmp_path / "a.mp4")).load()


def test_a_video_written_to_a_pipe_states_no_length_and_is_read(film):
    live = film("webm", "libvpx", live="1")
    with av.open(io.BytesIO(live)) as container:
        assert container.duration is None
    assert numbers(Video(live).load(rate=5).frames) == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("limits", "rate", "told"),
    [
        ({"seconds": 1.5}, 1, r"2 s of video, limit 2 s; cut it"),
        ({"pixels": 3071}, 1, "64x48 pixels, limit 3,071; shrink it"),
        ({"frames": 19}, 1, "20 frames, limit 19; cut it"),
        ({"bytes": 100_000}, 10, "20 frames of 64x48 pixels take over 100,000 bytes; take fewer"),
    ],
)
def test_a_video_over_a_limit_is_refused_before_a_frame_is_decoded(limits, rate, told, mp4, monkeypatch):
    monkeypatch.setattr("mmgpt.datasets.media.video._Container._shown", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match=told):
        Video(mp4).load(Limits(**limits), rate=rate)


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_an_animation_over_a_limit_is_refused(form):
    frames = [PIL.Image.new("RGB", (8, 6), (0, 60 * at, 0)) for at in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=1000)
    for limits, told in (
        ({"seconds": 3}, "4 s of video"),
        ({"frames": 3}, "4 frames"),
        ({"pixels": 47}, "8x6 pixels"),
        ({"bytes": 575}, "4 frames of 8x6"),
    ):
        with pytest.raises(MediaError, match=told):
            Video(buffer.getvalue()).load(Limits(**limits))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {path}\n",
    ],
)
def test_a_playlist_opens_no_other_file(playlist, mp4, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(mp4)
    with pytest.raises(MediaError, match="not a video that can be read"):
        Video(playlist.format(path=tmp_path / "secret.mp4").encode()).load()


@pytest.mark.parametrize("wish", [{"rate": 0}, {"rate": -1}, {"count": 0}])
def test_a_video_is_looked_at_in_moments(wish, mp4):
    with pytest.raises(UserError, match="give numbers above 0"):
        Video(mp4).load(**wish)


def test_without_pyav_the_error_names_the_extra(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'videos need PyAV; pip install "mmgpt\[video\]"'):
        Video(mp4).load()


def test_media_import_without_pyav():
    code = "import sys, mmgpt.datasets.media; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0

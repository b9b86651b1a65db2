"""Videos: frames at a rate or in a number asked for, found by their time stamps, and the sound beside them.

Shape letters: S samples, C channels.
"""

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import PIL.Image

from mmgpt.config import UserError
from mmgpt.datasets.media.ffmpeg import MAX_SECONDS_MISSING, decode_sound, open_container, use_one_thread
from mmgpt.datasets.media.formats import kind_of
from mmgpt.datasets.media.image import DAMAGE, Image, check_pixels, open_picture, to_rgb
from mmgpt.datasets.media.levels import to_levels, white_of
from mmgpt.datasets.media.medium import LIMITS, Limits, Media, MediaError, to_number
from mmgpt.datasets.media.waveform import Waveform

ANIMATED = ("GIF", "WEBP", "PNG")
UNTIMED = 100  # milliseconds that browsers show a frame which states none
SAME_TIMESTAMP_SECONDS = 1e-6  # seconds; time stamps nearer than this are the same

Shown = tuple[float, Callable[[], PIL.Image.Image]]  # when a frame begins, in seconds, and what makes a picture of it


@dataclass(frozen=True)
class FrameSelection:
    """Which frames are looked at, and if the sound is listened to.

    Attributes:
        rate: moments a second, the first at 0.
        count: as many moments instead, in the middles of as many equal parts.
        most: where the rate gives more moments, so many, as for `count`.
        decode_frames: False for no frames.
        decode_audio: False for no sound.
    """

    rate: float = 1.0
    count: int | None = None
    most: int | None = None
    decode_frames: bool = True
    decode_audio: bool = True


class DecodedVideo(NamedTuple):
    """A decoded video: RGB frames, the moment of each in seconds from the first, and the sound from there on."""

    frames: list[PIL.Image.Image]
    times: list[float]
    sound: Waveform | None


@dataclass(frozen=True, eq=False)
class Video(Media):
    """A video file, or an animated GIF, WebP or PNG: path, bytes, open file or base64; or frames with their `rate`.

    Frames are what an `Image` takes, in a list or along the first axis of an array; all of one type are on one scale,
    told from the brightest of them. `rate` is how many make a second.
    """

    rate: float | None = None
    modality: ClassVar[str] = "video"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is None:
            return
        if not _is_positive(self.rate):
            raise MediaError(
                f"{self.name()}: rate={self.rate!r} is no number of frames a second; write Video(frames, rate=25)"
            )
        if self.is_encoded:
            raise MediaError(f"{self.name()}: rate={self.rate} is for frames, and a file tells its own; leave it out")

    def load(self, limits: Limits = LIMITS, **wishes: Any) -> DecodedVideo:
        """Decode what is on the screen at evenly spaced moments; each frame stays until the next one's time stamp.

        Args:
            limits: what is larger is refused.
            **wishes: fields of `FrameSelection`.
        Raises:
            MediaError: if there is no such file, or it is no video, truncated, without frames, or over the limits.
            UserError: if rate, count or most are not above 0, or PyAV is not installed.
        """
        selection = FrameSelection(**wishes)
        wholes = [number for number in (selection.count, selection.most) if number is not None]
        if not _is_positive(selection.rate) or not all(_is_positive(number) and not number % 1 for number in wholes):
            raise UserError(
                f"rate={selection.rate}, count={selection.count}, most={selection.most}: a video is looked at in "
                "moments; give numbers above 0"
            )
        payload = self.read(limits)
        if payload is None:
            return _Frames(self.name(), b"", limits, selection, self._frames()).decode(float(self.rate or 0))
        if payload[:4] in (b"GIF8", b"\x89PNG") or payload[8:12] == b"WEBP":
            return _Animation(self.name(), payload, limits, selection).decode()
        return _Container(self.name(), payload, limits, selection).decode()

    def _frames(self) -> list[Image]:
        """The frames that it was given as."""
        made = self.value
        if getattr(made, "ndim", 0) == 5 and len(made) == 1:
            made = made[0]
        if not isinstance(made, list | tuple) and getattr(made, "ndim", 0) != 4:
            raise MediaError(
                f"{self.name()}: not a video; give a path, bytes, an open file, a data URL, or frames with their rate: "
                "a list, or an array (frames, H, W, 3)"
            )
        if self.rate is None:
            raise MediaError(f"{self.name()}: frames do not tell their rate; write Video(frames, rate=25)")
        return _on_one_scale(
            self.name(),
            [Image(frame, label=f"{self.name()}, frame {number}") for number, frame in enumerate(made)],
        )

    def encoded(self) -> tuple[str, bytes]:
        """A WebP of the frames, without loss, where it came as such; else the bytes as they are."""
        if self.read() is not None:
            return super().encoded()
        first, *rest = [frame.load() for frame in self._frames()]
        milliseconds, buffer = round(1000 / (self.rate or 1)), io.BytesIO()
        first.save(buffer, "webp", save_all=True, append_images=rest, duration=milliseconds, lossless=True)
        return "image/webp", buffer.getvalue()


def _is_positive(number: object) -> bool:
    value = to_number(number)
    return value is not None and 0 < value < math.inf


def _on_one_scale(name: str, frames: list[Image]) -> list[Image]:
    """Frames as levels: a dark one among those of its type is not taken for one of another scale."""
    groups: dict[str, list[tuple[int, np.ndarray]]] = {}
    for at, frame in enumerate(frames):
        pixels = frame.numbers()
        if pixels is not None:
            groups.setdefault(pixels.dtype.str, []).append((at, pixels))
    for group in groups.values():
        white = white_of(name, [pixels for _, pixels in group])
        for at, pixels in group:
            frames[at] = Image(partial(to_levels, pixels, white), label=frames[at].label)
    return frames


@dataclass(frozen=True)
class _Moving:
    """Encoded frames, and how they are picked."""

    name: str
    payload: bytes
    limits: Limits
    selection: FrameSelection

    def timestamps(self, seconds: float, size: tuple[int, int]) -> list[float]:
        """When to look; refuses what would not fit into the limits."""
        rate, count, most = self.selection.rate, self.selection.count, self.selection.most
        self.check_seconds(seconds)
        if not self.selection.decode_frames:
            return []
        at_rate = max(1, math.ceil(seconds * rate - SAME_TIMESTAMP_SECONDS))
        count = most if count is None and most is not None and at_rate > most else count
        number = count or at_rate
        self.check_frames(number, size)
        return [(at + 0.5) * seconds / number if count else at / rate for at in range(number)]

    def check_seconds(self, seconds: float) -> None:
        """Refuse a video that lasts too long."""
        if seconds > self.limits.seconds:
            raise MediaError(
                f"{self.name}: {seconds:,.0f} s of video, limit {self.limits.seconds:,.0f} s; cut it into pieces"
            )

    def check_frames(self, number: int, size: tuple[int, int]) -> None:
        """Refuse frames that are too large, alone or together."""
        check_pixels(self.name, *size, self.limits)
        if number * size[0] * size[1] * 3 > self.limits.bytes:
            raise MediaError(
                f"{self.name}: {number:,} frames of {size[0]}x{size[1]} pixels take over {self.limits.bytes:,} bytes; "
                "take fewer, or shrink them"
            )

    def check_count(self, frames: int) -> None:
        """Refuse a video of no frames or of too many."""
        if not frames:
            raise MediaError(f"{self.name}: the video has no frames; remove it")
        if frames > self.limits.frames:
            raise MediaError(f"{self.name}: {frames:,} frames, limit {self.limits.frames:,}; cut it into pieces")


def _pick(shown: Iterable[Shown], timestamps: list[float]) -> list[PIL.Image.Image]:
    """The picture on the screen at each moment; those that nobody looks at are not made."""
    picked: list[PIL.Image.Image] = []
    on_screen: Callable[[], PIL.Image.Image] | None = None
    for begins, make in shown:
        due = bisect_left(timestamps, begins - SAME_TIMESTAMP_SECONDS) - len(picked)
        if on_screen and due:
            picked += [on_screen()] * due
        if len(picked) == len(timestamps):
            return picked
        on_screen = make
    return picked + [on_screen()] * (len(timestamps) - len(picked)) if on_screen else picked


@dataclass(frozen=True)
class _Frames(_Moving):
    """Frames that are here."""

    frames: list[Image]

    def decode(self, rate: float) -> DecodedVideo:
        self.check_count(len(self.frames))
        timestamps = self.timestamps(len(self.frames) / rate, self.frames[0].load(self.limits).size)
        shown = ((at / rate, partial(frame.load, self.limits)) for at, frame in enumerate(self.frames))
        return DecodedVideo(_pick(shown, timestamps) if timestamps else [], timestamps, None)


class _Animation(_Moving):
    """An animated picture, read by Pillow."""

    def decode(self) -> DecodedVideo:
        picture = open_picture(self.name, self.payload, ANIMATED)
        try:
            frames = getattr(picture, "n_frames", 1)
            self.check_count(frames)
            begins = [0.0]
            for number in range(frames):
                picture.seek(number)
                self.check_frames(frames, picture.size)  # Pillow has to decode them all
                picture.load()  # before which a WebP does not tell
                begins.append(begins[-1] + (picture.info.get("duration") or UNTIMED) / 1000)
            timestamps = self.timestamps(begins[-1], picture.size)
            return DecodedVideo(_pick(self._shown(picture, begins[:-1]), timestamps), timestamps, None)
        except MediaError:
            raise
        except DAMAGE as error:
            raise MediaError(f"{self.name}: the video is damaged ({error}); replace or remove it") from None

    def _shown(self, picture: PIL.Image.Image, begins: list[float]) -> Iterator[Shown]:
        for number, time in enumerate(begins):
            picture.seek(number)
            frame = picture.copy()
            frame.format = picture.format  # by whose rules its numbers are on a scale
            yield time, partial(to_rgb, self.name, frame)


class _Container(_Moving):
    """A file that FFmpeg reads, through PyAV: one thread, so that the same file gives the same pixels."""

    def decode(self) -> DecodedVideo:
        try:
            import av
        except ImportError:
            raise UserError(f'{self.name}: videos need PyAV; pip install "mmgpt[video]"') from None
        try:
            start, seconds, size = self._survey(av)
            timestamps = self.timestamps(seconds, size)
            frames = _pick(self._shown(av, start, len(timestamps)), timestamps) if timestamps else []
            sound = (
                decode_sound(av, self.name, self.payload, self.limits, start) if self.selection.decode_audio else None
            )
            return DecodedVideo(frames, timestamps, sound)
        except MediaError:
            raise
        except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            kind, remedy = kind_of(self.payload)
            is_other = bool(kind) and "Video" not in remedy
            raise MediaError(
                f"{self.name}: {kind + ', ' if is_other else ''}not a video that can be read, or damaged ({reason}); "
                f"give an MP4 or WebM file{'; ' + remedy if is_other and remedy else ''}"
            ) from None

    def _survey(self, av: Any) -> tuple[float, float, tuple[int, int]]:
        """Start and length in seconds, and frame size, by all packets' time stamps, without decoding one."""
        with open_container(av, self.payload) as container:
            stated = (container.duration or 0) / 1e6
            self.check_seconds(stated)
            if not container.streams.video:
                kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
                raise MediaError(f"{self.name}: a video without pictures: it holds {kinds}; replace or remove it")
            video = container.streams.video[0]
            if video.codec_context is None:
                raise MediaError(f"{self.name}: its codec is not known to FFmpeg; convert it to MP4 or WebM")
            begins: list[float] = []
            ends = 0.0
            for packet in container.demux():
                if packet.is_corrupt:
                    raise MediaError(
                        f"{self.name}: truncated or damaged after {len(begins)} frames; replace or remove it"
                    )
                if packet.pts is None:
                    continue
                time = float(packet.pts * packet.time_base)
                ends = max(ends, time + float((packet.duration or 0) * packet.time_base))
                if packet.stream is video:
                    begins.append(time)
                    self.check_count(len(begins))
            self.check_count(len(begins))
            if stated > ends + MAX_SECONDS_MISSING:
                raise MediaError(f"{self.name}: truncated, {ends:.2f} of {stated:.2f} s; replace or remove it")
            start, gaps = min(begins), len(begins) - 1
            # the last frame stays as long as the others do on average: packets tell that in the order of decoding only
            seconds = (max(begins) - start) * len(begins) / gaps if gaps else ends - start
            return start, seconds, (video.codec_context.width, video.codec_context.height)

    def _shown(self, av: Any, start: float, number: int) -> Iterator[Shown]:
        with open_container(av, self.payload) as container:
            stream = container.streams.video[0]
            use_one_thread(stream, self.limits)
            for frame in container.decode(stream):
                self.check_frames(number, (frame.width, frame.height))
                if frame.time is None:
                    raise MediaError(f"{self.name}: its frames carry no times; convert it to MP4 or WebM")
                if frame.is_corrupt:
                    raise MediaError(f"{self.name}: damaged at {frame.time:.2f} s; replace or remove it")
                yield frame.time - start, partial(_upright, frame)


def _upright(frame: Any) -> PIL.Image.Image:
    """A decoded frame as a picture, turned as whoever filmed it held the camera."""
    picture: PIL.Image.Image = frame.to_image().rotate(frame.rotation, expand=True)
    return picture

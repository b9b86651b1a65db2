"""How a video enters a model that reads pictures, sounds or both: as frames, each after its time, and its sound."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import PositiveFloat, PositiveInt, model_validator

from mmgpt.config import Config
from mmgpt.datasets.media import Audio, Image, Limits, MediaError, Video, Waveform
from mmgpt.datasets.sample import Part, Text


class VideoConfig(Config):
    """What of a video is shown and played."""

    rate: PositiveFloat = 1.0  # frames a second, the first at 0:00
    frames: PositiveInt = 32  # at the most; of a longer video so many, from the middles of equal parts of it
    sound: bool = (
        True  # after the frames, if the model hears and the video has one; longer than its encoder takes: in pieces
    )
    time: str = "{minutes}:{seconds:02} "  # before each frame; {tenths} of a second are known too; "" for nothing

    @model_validator(mode="after")
    def _time_can_be_written(self) -> Self:
        try:
            self.timestamp_text(0.0)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"time={self.time!r} cannot be written ({error}); use {{minutes}}, {{seconds:02}} and {{tenths}}"
            ) from None
        return self

    def timestamp_text(self, seconds: float) -> str:
        """A moment in the words that stand before its frame."""
        tenths = int(10 * seconds + 1e-6)
        return self.time.format(minutes=tenths // 600, seconds=tenths // 10 % 60, tenths=tenths % 10)


@dataclass(frozen=True)
class VideoReader:
    """Makes texts, pictures and a sound of a video, decoded once; picklable.

    Attributes:
        limits: a larger video is refused.
        has_image_encoder: whether the model has an image encoder.
        longest_sound: seconds that its audio encoder takes at a time; None where there is none.
    """

    config: VideoConfig
    limits: Limits
    has_image_encoder: bool
    longest_sound: float | None

    def __call__(self, video: Video) -> list[Part]:
        """The parts that stand for a video, in reading order.

        Raises:
            MediaError: if it cannot be decoded, or holds nothing that the model takes.
        """
        config, hears = self.config, self.config.sound and self.longest_sound is not None
        name = video.name()
        if not self.has_image_encoder and not hears:
            raise MediaError(f"{name}: the model has no image encoder, and video.sound is false; set it to true")
        film = video.load(
            self.limits, rate=config.rate, most=config.frames, decode_frames=self.has_image_encoder, decode_audio=hears
        )
        parts: list[Part] = []
        for frame, time in zip(film.frames, film.times, strict=True):
            told = config.timestamp_text(time)
            parts += [Text(told)] if told else []
            parts.append(Image(frame, label=f"{name} at {time:.2f} s"))
        if film.sound is not None:
            parts += self._pieces(film.sound, name)
        if not parts:
            raise MediaError(f"{name}: has no sound, and the model has no image encoder; it hears sounds alone")
        return parts

    def _pieces(self, sound: Waveform, name: str) -> Iterator[Part]:
        """The sound; one that is longer than the encoder takes as equal pieces, each after the time that it begins."""
        samples_S, rate = sound
        count = math.ceil(len(samples_S) / max(1, int((self.longest_sound or 0) * rate)))
        at = 0
        for piece_S in np.array_split(samples_S, count):
            told = self.config.timestamp_text(at / rate) if count > 1 else ""
            if told:
                yield Text(told)
            yield Audio(
                Waveform(piece_S, rate),
                label=f"{name}'s sound at {at / rate:.2f} s" if count > 1 else f"{name}'s sound",
            )
            at += len(piece_S)

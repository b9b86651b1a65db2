"""How many tokens a prompt is over a model's context, told without decoding its media each time.

How many tokens a medium takes depends on its size alone, which stands in its header. So one medium of each size is
measured, prompts are measured in words, and both are added up. Only where the sum comes near the context, or a size
cannot be told (of videos, and of damaged files), is a prompt rendered as a whole.
"""

import io
from collections.abc import Callable
from typing import Any

import PIL.ExifTags
import soundfile

from mmgpt.datasets.media import Audio, Image, Media
from mmgpt.datasets.media.image import open_picture
from mmgpt.datasets.sample import Message, media_of
from mmgpt.evaluation.models.model import Model, Talk
from mmgpt.generation.prompts import without_media

TEMPLATE_SLACK_TOKENS = 32  # tokens, for templates of others that join what stands on both sides of a medium


class ContextFit:
    """Measures talks for one model; remembers what media of each size take."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.costs: dict[Any, int] = {}  # tokens, by size

    def tokens_over_context(self, messages: Talk, room: int) -> int:
        """By how many tokens a talk with an answer of `room` tokens is over the context: 0 or less if it fits.

        Raises:
            MediaError: if a medium cannot be used.
        """
        media = media_of(messages)
        sizes = [size_key(medium) for medium in media]
        if media and None not in sizes:
            words = self.model.tokens_over_context(without_media(messages), room)
            told = words + sum(self._cost(size, medium) for size, medium in zip(sizes, media, strict=True))
            if abs(told) > TEMPLATE_SLACK_TOKENS:
                return told
        return self.model.tokens_over_context(messages, room)

    def _cost(self, size: Any, medium: Media) -> int:
        if size not in self.costs:
            with_medium = Message("user", (medium, *Message.of("user", "?").parts))  # type: ignore[arg-type]
            alone = self.model.tokens_over_context((Message.of("user", "?"),), 0)
            self.costs[size] = self.model.tokens_over_context((with_medium,), 0) - alone
        return self.costs[size]


def min_dropped(most: int, is_over: Callable[[int], bool]) -> int:
    """How many of `most` exemplars must go so that a prompt is not over, found by halves; it is if none goes."""
    over, fits = 0, most
    while fits - over > 1:
        at = (over + fits) // 2
        over, fits = (at, fits) if is_over(at) else (over, at)
    return fits


def size_key(medium: Media) -> Any:
    """What a medium's tokens depend on: pixels and orientation, or samples and their rate; None if it cannot be told.

    Raises:
        MediaError: if there is no such file, or it is no picture.
    """
    payload = medium.read() if isinstance(medium, Image | Audio) else None
    if isinstance(medium, Image):
        if payload is None:
            return "image", medium.load().size
        picture = open_picture(medium.name(), payload)
        if picture.format == "PNG":  # whose orientation may stand at its end: Pillow would decode it to look there
            return None if b"eXIf" in payload or b"exif" in payload else ("image", picture.size, 1)
        return "image", picture.size, picture.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    if isinstance(medium, Audio):
        if payload is None:
            return "audio", medium.array().shape, medium.rate
        try:
            header = soundfile.info(io.BytesIO(payload))
        except (soundfile.SoundFileError, ValueError, OverflowError):
            return None
        return "audio", header.frames, header.samplerate
    return None

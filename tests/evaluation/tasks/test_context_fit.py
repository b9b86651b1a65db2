import io

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message, media_of
from mmgpt.evaluation.tasks.context_fit import ContextFit, min_dropped, size_key
from mmgpt.generation.assistant import Assistant


class Watched(Assistant):
    """Counts the media that it renders."""

    rendered = 0

    def tokens_over_context(self, messages, room):
        self.rendered += len(media_of(messages))
        return super().tokens_over_context(messages, room)


@pytest.fixture
def model(make_bundle) -> Watched:
    return Watched(make_bundle(audio={"kind": "mlp", "stride": 2}, context=1_000))


def picture(width: int, height: int, shade: int = 0, kind: str = "PNG", **options) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (shade, 9, 9)).save(buffer, kind, **options)
    return Image(buffer.getvalue())


def sound(samples: int, shade: float = 0.1) -> Audio:
    buffer = io.BytesIO()
    soundfile.write(buffer, shade * np.sin(np.arange(samples, dtype=np.float32)), 16_000, format="WAV")
    return Audio(buffer.getvalue())


def talk(*media) -> tuple[Message, ...]:
    return tuple(
        turn
        for n, medium in enumerate(media)
        for turn in (Message.of("user", f"the {n}th?", medium, "what?"), Message.of("assistant", f"{n}"))
    )[:-1]


def test_the_told_excess_is_the_rendered_one_and_media_of_one_size_are_rendered_once(model):
    media = [picture(64, 48, shade) for shade in range(10)]
    media += [sound(8_000, 0.1 * n) for n in range(1, 5)] + [sound(12_000), picture(30, 90)]
    fit = ContextFit(model)
    for count in (1, 3, 10, 16):
        assert fit.tokens_over_context(talk(*media[:count]), 7) == Assistant.tokens_over_context(
            model, talk(*media[:count]), 7
        )
    assert model.rendered == 4  # two sizes of pictures, two lengths of sounds


def test_near_the_context_and_where_a_size_is_not_told_the_prompt_is_rendered(model):
    one = talk(picture(64, 48))
    room = -Assistant.tokens_over_context(model, one, 0)
    fit = ContextFit(model)
    assert fit.tokens_over_context(one, room) == 0
    assert model.rendered == 2
    assert fit.tokens_over_context(one, room + 1) == 1
    assert fit.tokens_over_context(one, 0) == -room
    assert model.rendered == 3


def test_a_size_is_that_of_the_header_with_the_orientation():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert size_key(picture(8, 4, kind="JPEG", exif=exif)) == ("image", (8, 4), 6)
    assert size_key(picture(8, 4, kind="PNG")) == ("image", (8, 4), 1)
    assert size_key(picture(8, 4, kind="PNG", exif=exif)) is None
    assert size_key(Image(np.zeros((4, 8, 3), np.uint8))) == ("image", (8, 4))
    assert size_key(sound(50)) == ("audio", 50, 16_000)
    assert size_key(Audio(np.zeros(50, np.float32), rate=8_000)) == ("audio", (50,), 8_000)
    assert size_key(Audio(b"no sound")) is None
    assert size_key(Video(b"any")) is None


@pytest.mark.parametrize("most", range(1, 9))
def test_as_few_go_as_must(most):
    for fewest in range(1, most + 1):
        asked: list[int] = []
        found = min_dropped(most, lambda n, fewest=fewest, asked=asked: asked.append(n) or n < fewest)
        assert found == fewest
        assert len(asked) <= most.bit_length()


def test_a_damaged_picture_is_refused(model):
    with pytest.raises(UserError, match="not a picture that can be read"):
        ContextFit(model).tokens_over_context(talk(Image(b"none", label="p.png")), 0)

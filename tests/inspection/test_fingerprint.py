import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import soundfile

from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.inspection.fingerprint import Fingerprint, NearDuplicateIndex, fingerprint


def drawing(seed: int, size: tuple[int, int] = (90, 60)) -> PIL.Image.Image:
    """A few coloured discs on a plain ground: flat, as a difference hash does not like it."""
    rng = np.random.default_rng(seed)
    picture = PIL.Image.new("RGB", size, "#eeeeee")
    for _ in range(3):
        x, y, radius = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(8, 20)
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        PIL.ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def melody(seed: int, rate: int = 16_000) -> np.ndarray:
    tones = np.random.default_rng(seed).integers(200, 3000, 6)
    times = np.arange(rate // 5) / rate
    return 0.4 * np.concatenate([np.sin(2 * np.pi * tone * times) * np.exp(-6 * times) for tone in tones])


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> Image:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return Image(buffer.getvalue())


def written(samples: np.ndarray, rate: int, kind: str) -> Audio:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return Audio(buffer.getvalue())


def test_a_picture_in_another_format_or_size_is_the_same_and_other_pictures_are_not():
    alike = NearDuplicateIndex("image")
    numbers = [alike.number(fingerprint(Image(drawing(seed)))) for seed in range(60)]
    assert numbers == list(range(60))
    for seed in range(60):
        for copy in (
            encoded(drawing(seed), "JPEG", quality=90),
            encoded(drawing(seed).resize((180, 120), PIL.Image.Resampling.BICUBIC), "WEBP", quality=90),
        ):
            assert alike.number(fingerprint(copy)) == seed


def test_the_same_drawing_in_another_colour_or_proportion_is_another_picture():
    disc = PIL.Image.new("RGB", (64, 64), "white")
    PIL.ImageDraw.Draw(disc).ellipse((20, 20, 50, 50), fill="red")
    other = PIL.Image.new("RGB", (64, 64), "white")
    PIL.ImageDraw.Draw(other).ellipse((20, 20, 50, 50), fill="blue")
    alike = NearDuplicateIndex("image", near=16)
    assert [alike.number(fingerprint(Image(p))) for p in (disc, other, disc.resize((64, 48)), disc)] == [0, 1, 2, 0]


def test_a_sound_softer_or_in_another_format_or_rate_is_the_same_and_other_sounds_are_not():
    alike = NearDuplicateIndex("audio")
    numbers = [alike.number(fingerprint(Audio(melody(seed), rate=16_000))) for seed in range(30)]
    assert numbers == list(range(30))
    for seed in range(30):
        assert alike.number(fingerprint(written(melody(seed) / 3, 16_000, "WAV"))) == seed
        assert alike.number(fingerprint(written(melody(seed), 16_000, "FLAC"))) == seed
        assert alike.number(fingerprint(written(melody(seed, 24_000), 24_000, "WAV"))) == seed


@pytest.mark.parametrize("near", [0, 1, 3, 6])
def test_fingerprints_are_compared_up_to_the_distance_asked_for_and_no_further(near):
    base, vector = 0x0123_4567_89AB_CDEF, bytes(12)
    for seed in range(50):
        flipped = np.random.default_rng(seed).permutation(64)
        within = base ^ sum(1 << int(bit) for bit in flipped[:near])
        beyond = base ^ sum(1 << int(bit) for bit in flipped[: near + 1])
        alike = NearDuplicateIndex("image", near)
        numbers = [alike.number(Fingerprint("image", bits, vector, 1.0)) for bits in (base, within, beyond)]
        assert numbers[:2] == [0, 0]
        assert numbers[2] == 1


def test_a_video_has_no_fingerprint():
    assert fingerprint(Video(b"")) is None

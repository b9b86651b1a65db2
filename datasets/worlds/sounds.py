"""Short sounds one after the other, with captions and questions; and pictures with sounds that must be compared.

A clip holds one to three sounds, no two of the same timbre and tone (how its pitch moves), played quickly or slowly.
Pitch, level, duration and the noise behind them jitter. A clip's length is drawn without regard to what it holds, and
the sounds begin anywhere in it: neither the number of its tokens nor the silence around tells the answer to anything.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.worlds.scenes import NUM_QUESTIONS, Scene, Thing, picture_of, scene_of
from mmgpt.datasets.worlds.things import (
    Pair,
    Turn,
    Vocabulary,
    absent_pair,
    ask_count,
    ask_exists,
    draw_pairs,
    plural,
    sample_of,
    told_apart,
    with_article,
)

RATE = 8_000  # Hz
MOVES: dict[str, Callable[[np.ndarray, random.Random], np.ndarray]] = {  # of the pitch, over a sound's course of 0 to 1
    "rising": lambda course, rng: 2 * course - 1,
    "falling": lambda course, rng: 1 - 2 * course,
    "steady": lambda course, rng: 0 * course,
    "wavering": lambda course, rng: 0.7 * np.sin(2 * math.pi * (course * rng.uniform(2.5, 3.5) + rng.random())),
    "arching": lambda course, rng: 1 - np.abs(4 * course - 2),
    "dipping": lambda course, rng: np.abs(4 * course - 2) - 1,
}
TONES = tuple(MOVES)
TIMBRES = ("beep", "horn", "buzz", "bell", "trill", "hiss", "organ", "rattle")
PITCH = (560.0, 840.0)  # Hz, of every timbre: what moves in one place of the spectrum is learned for all of them
UNSEEN_SOUNDS = frozenset(
    {
        ("rising", "horn"),
        ("falling", "beep"),
        ("steady", "hiss"),
        ("wavering", "buzz"),
        ("falling", "trill"),
        ("dipping", "bell"),
    }
)
PARTIALS = {  # multiples of the pitch and their levels, for timbres that have more than one
    "horn": {1.0: 1.0, 3.0: 0.6, 5.0: 0.4, 7.0: 0.3},
    "buzz": {float(k): 0.8 for k in range(1, 11)},
    "bell": {1.0: 1.0, 2.76: 0.7, 5.4: 0.4},
    "organ": {1.0: 1.0, 2.0: 0.8, 4.0: 0.6},
}
SLOW = np.hanning(64).astype(np.float32)  # smooths noise until it changes some 100 times a second
SECONDS = (1.9, 2.2)  # of a clip
LASTS = (0.28, 0.36)  # seconds of one sound
PACES = {"quick": (0.40, 0.44), "slow": (0.60, 0.68)}  # seconds from one sound's start to the next
ORDER = ("first", "second", "third")
CAPTION_PROMPT = "Describe the sound."

EVERY = Vocabulary(TONES, TIMBRES, "tone", "sound")
SEEN = Vocabulary(TONES, TIMBRES, "tone", "sound", UNSEEN_SOUNDS)


@dataclass(frozen=True)
class Clip:
    """Sounds in the order they are played, and how fast."""

    sounds: tuple[Pair, ...]
    pace: str


def draw_clip(rng: random.Random, words: Vocabulary, subjects: Sequence[Pair] = ()) -> tuple[Clip, Pair]:
    """One to three sounds, and the one that is asked about: one of the `subjects` if there are any."""
    pairs = draw_pairs(rng, words, subjects)
    return Clip(tuple(rng.sample(pairs, len(pairs))), rng.choice(tuple(PACES))), pairs[0]


def sound_of(clip: Clip, rng: random.Random) -> Audio:
    """The sound of a clip, played when it is listened to."""
    return Audio(partial(play, clip, rng.getrandbits(64)), rate=RATE)


def play(clip: Clip, seed: int) -> np.ndarray:
    """The clip as mono float32 samples (S,) at 8 kHz, between -1 and 1."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    total = rng.uniform(*SECONDS)
    starts, at = [], 0.0
    for _ in clip.sounds:
        starts.append(at)
        at += rng.uniform(*PACES[clip.pace])
    pieces = [_tone(timbre, tone, rng.uniform(*LASTS), rng, noise) for tone, timbre in clip.sounds]
    offset = rng.uniform(0.0, total - starts[-1] - LASTS[1])
    samples = noise.standard_normal(round(total * RATE), np.float32) * 10 ** rng.uniform(-3.0, -2.0)
    for start, piece in zip(starts, pieces, strict=True):
        first = round((offset + start) * RATE)
        samples[first : first + len(piece)] += piece * rng.uniform(0.3, 0.6)
    return samples.clip(-1, 1)


def _tone(timbre: str, tone: str, seconds: float, rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    """One sound: a pitch that moves by an octave or more, in one of eight timbres, faded in and out."""
    count = round(seconds * RATE)
    course = np.linspace(0, 1, count, dtype=np.float32)
    octaves = MOVES[tone](course, rng) * rng.uniform(0.5, 0.7)
    pitch = PITCH[0] * (PITCH[1] / PITCH[0]) ** rng.random() * np.exp2(octaves)
    phase = np.cumsum(pitch) * (2 * math.pi / RATE)
    envelope = np.minimum(1, np.minimum(course, 1 - course) * seconds / 0.012)
    if timbre in ("trill", "rattle"):
        envelope *= np.sin(2 * math.pi * rng.uniform(22, 28) * course * seconds) > -0.2
    if timbre == "bell":
        envelope = 1.2 * np.exp(-4 * course) * np.minimum(1, course * seconds / 0.003)
    if timbre in ("hiss", "rattle"):  # slow noise that carries the pitch: a band of noise
        real, imaginary = (np.convolve(noise.standard_normal(count, np.float32), SLOW, "same") for _ in range(2))
        envelope, phase = envelope * np.hypot(real, imaginary) / 5, phase + np.arctan2(imaginary, real)
    wave, power = np.zeros(count, np.float32), 0.0
    for ratio, level in PARTIALS.get(timbre, {1.0: 1.0}).items():
        level *= 10 ** rng.uniform(-0.15, 0.15)  # 3 dB up or down
        wave += level * np.sin(ratio * phase) * (ratio * pitch < RATE / 2)
        power += level
    quieter: np.ndarray = wave * envelope / power**0.5
    return quieter


def caption(clip: Clip) -> str:
    """The sounds in words, in their order."""
    return ", ".join(map(with_article, clip.sounds)) + "."


def questions(clip: Clip, subject: Pair, rng: random.Random, words: Vocabulary) -> list[Turn]:
    """Questions about a clip, those of a single sound about the subject where words can single it out."""
    place = clip.sounds.index(subject)
    turns = [
        ("How many sounds are there?", str(len(clip.sounds))),
        ask_count(clip.sounds, subject, rng, words),
        ask_exists(clip.sounds, subject, rng, words),
        ask_exists(clip.sounds, subject, rng, words),
        (f"When is the {' '.join(subject)} heard?", ORDER[place]),
        _at_place(clip, place),
        _at_place(clip, rng.randrange(3)),
        (f"What tone is the {ORDER[place]} sound?", subject[0]),
        *told_apart(clip.sounds, subject, words),
    ]
    if len(clip.sounds) > 1:
        turns += [_before(clip, subject, rng), ("Are the sounds quick or slow?", clip.pace)]
    return turns


def _at_place(clip: Clip, place: int) -> Turn:
    heard = with_article(clip.sounds[place]) if place < len(clip.sounds) else "nothing"
    return f"What is the {ORDER[place]} sound?", heard


def _before(clip: Clip, subject: Pair, rng: random.Random) -> Turn:
    other = rng.choice([pair for pair in clip.sounds if pair != subject])
    side = rng.choice(("before", "after"))
    is_before = clip.sounds.index(subject) < clip.sounds.index(other)
    answer = "yes" if is_before == (side == "before") else "no"
    return f"Is the {' '.join(subject)} {side} the {' '.join(other)}?", answer


def sounds(rng: random.Random, split: str) -> Sample:
    """A clip with a caption and eight questions, as branches."""
    words, clip, subject = clip_of(rng, split)
    asked = questions(clip, subject, rng, words)
    chosen = rng.sample(asked, min(len(asked), NUM_QUESTIONS))
    return sample_of([sound_of(clip, rng)], [(CAPTION_PROMPT, caption(clip)), *chosen])


def sound_places(rng: random.Random, split: str) -> Sample:
    """A clip and what is heard first, second and third, tone and timbre apart: to align an encoder with."""
    _, clip, _ = clip_of(rng, split)
    turns = [_at_place(clip, place) for place in range(3)]
    for place, (tone, timbre) in enumerate(clip.sounds):
        turns.append((f"What tone is the {ORDER[place]} sound?", tone))
        turns.append((f"What kind is the {ORDER[place]} sound?", timbre))
    return sample_of([sound_of(clip, rng)], turns)


def sound_lookups(rng: random.Random, split: str) -> Sample:
    """A clip with a caption and questions where a sound must be found by its tone or timbre before it is told."""
    words, clip, _ = clip_of(rng, split)
    turns: list[Turn] = []
    for place, sound in enumerate(clip.sounds):
        turns += [(f"When is the {' '.join(sound)} heard?", ORDER[place])]
        turns += [ask_count(clip.sounds, sound, rng, words), ask_exists(clip.sounds, sound, rng, words)]
        turns += told_apart(clip.sounds, sound, words)
        turns += [_before(clip, sound, rng) for _ in clip.sounds[1:]]
    chosen = rng.sample(turns, min(len(turns), NUM_QUESTIONS - 1))
    return sample_of([sound_of(clip, rng)], [(CAPTION_PROMPT, caption(clip)), *chosen])


def clip_of(rng: random.Random, split: str) -> tuple[Vocabulary, Clip, Pair]:
    """Words, clip and subject of a split: training never holds an unseen sound, a test clip always does."""
    words = SEEN if split == "train" else EVERY
    return words, *draw_clip(rng, words, () if split == "train" else sorted(UNSEEN_SOUNDS))


def scene_sounds(rng: random.Random, split: str) -> Sample:
    """A picture and a clip, in either order, with eight questions that need both."""
    both = _both_of(rng, split)
    shapes, sounds = len(both.scene), len(both.clip.sounds)
    more, fewer = ("shapes", "sounds") if shapes > sounds else ("sounds", "shapes")
    turns = [
        ("Are there as many sounds as shapes?", "yes" if shapes == sounds else "no"),
        ("Are there more shapes than sounds?", "yes" if shapes > sounds else "no"),
        ("Are there more sounds than shapes?", "yes" if shapes < sounds else "no"),
        ("How many shapes and sounds are there together?", str(shapes + sounds)),
        (f"How many more {more} than {fewer} are there?", str(abs(shapes - sounds))),
        ("Which are there more of?", "neither" if shapes == sounds else more),
        *(_kinds_compared(both, rng) for _ in range(2)),
        *(_both_there(both, rng) for _ in range(3)),
    ]
    return sample_of(both.media(rng), rng.sample(turns, NUM_QUESTIONS))


@dataclass(frozen=True)
class _Both:
    """A scene and a clip, the thing and the sound that are asked about, and the words for either."""

    scene: Scene
    thing: Thing
    shapes: Vocabulary
    clip: Clip
    sound: Pair
    sounds: Vocabulary

    def media(self, rng: random.Random) -> list[Image | Audio]:
        """Picture and sound, in either order."""
        return rng.sample([picture_of(self.scene, rng), sound_of(self.clip, rng)], 2)


def _both_of(rng: random.Random, split: str) -> _Both:
    shapes, scene, thing = scene_of(rng, split)
    sounds, clip, sound = clip_of(rng, split)
    return _Both(scene, thing, shapes, clip, sound, sounds)


def _kinds_compared(both: _Both, rng: random.Random) -> Turn:
    """Whether there are as many of one timbre as of one shape, the subjects' or any: yes in about half of the cases."""
    shape = both.thing.kind if rng.random() < 0.6 else rng.choice(both.shapes.kinds)
    timbre = both.sound[1] if rng.random() < 0.6 else rng.choice(both.sounds.kinds)
    seen, heard = sum(thing.kind == shape for thing in both.scene), sum(s[1] == timbre for s in both.clip.sounds)
    if rng.random() < 0.5:
        return f"Are there as many {plural(timbre)} as {plural(shape)}?", "yes" if seen == heard else "no"
    return f"How many {plural(shape)} and {plural(timbre)} are there together?", str(seen + heard)


def _both_there(both: _Both, rng: random.Random) -> Turn:
    """Whether a shape and a sound are both there: in half of the cases; else one of them is missing."""
    is_there, shape_missing = rng.random() < 0.5, rng.random() < 0.5
    thing, sound = both.thing.pair, both.sound
    if not is_there and shape_missing:
        thing = absent_pair([one.pair for one in both.scene], thing, rng, both.shapes)
    elif not is_there:
        sound = absent_pair(both.clip.sounds, sound, rng, both.sounds)
    return f"Are there both {with_article(thing)} and {with_article(sound)}?", "yes" if is_there else "no"

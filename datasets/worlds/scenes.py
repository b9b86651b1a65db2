"""Pictures of coloured shapes on a three-by-three grid, with captions and questions.

A scene holds one to three shapes, no two of the same colour and shape. The words are a parameter, so that texts can
tell of other things in the same sentences. Colours, positions, sizes and the background jitter: a thin shape shows
more of the ground, and only where ground and shade vary does a small model learn a color apart from its shape. The
yes/no and small/large questions are balanced, so that the words of a question give little away.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import PIL.Image
import PIL.ImageDraw

from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.worlds.things import (
    Pair,
    Turn,
    Vocabulary,
    ask_count,
    ask_exists,
    draw_pairs,
    sample_of,
    told_apart,
)

COLOURS = {
    "red": (214, 38, 38),
    "orange": (243, 140, 22),
    "yellow": (240, 218, 40),
    "green": (40, 150, 56),
    "teal": (20, 184, 184),
    "blue": (38, 82, 214),
    "purple": (132, 48, 172),
    "pink": (246, 138, 192),
    "brown": (126, 78, 36),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": 4.6, "large": 7.0}  # half the width, in pixels of a 48 x 48 picture
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
UNSEEN = frozenset(
    {
        ("red", "triangle"),
        ("orange", "cross"),
        ("green", "circle"),
        ("blue", "square"),
        ("purple", "triangle"),
        ("pink", "ring"),
    }
)
PICTURE_SIZE = 48  # pixels
OVERSAMPLING = 3  # drawn larger and averaged down: soft edges
NUM_QUESTIONS = 8
CAPTION_PROMPT = "Describe the picture."

ALL = Vocabulary(tuple(COLOURS), SHAPES, "color", "shape")
SEEN = Vocabulary(tuple(COLOURS), SHAPES, "color", "shape", UNSEEN)


@dataclass(frozen=True)
class Thing:
    """One thing in a scene."""

    size: str
    look: str
    kind: str
    place: int  # index into PLACES

    @property
    def pair(self) -> Pair:
        """Look and kind."""
        return self.look, self.kind

    @property
    def noun(self) -> str:
        """Look and kind in words."""
        return f"{self.look} {self.kind}"


Scene = list[Thing]  # in reading order


def draw_scene(rng: random.Random, words: Vocabulary, subjects: Sequence[Pair] = ()) -> tuple[Scene, Thing]:
    """One to three things of different pairs, and the one that is asked about: of one of the `subjects` if given."""
    pairs = draw_pairs(rng, words, subjects)
    places = rng.sample(range(9), len(pairs))
    things = [Thing(rng.choice(("small", "large")), *pair, place) for pair, place in zip(pairs, places, strict=True)]
    return sorted(things, key=lambda thing: thing.place), things[0]


def picture_of(scene: Scene, rng: random.Random) -> Image:
    """The picture of a scene, painted when it is looked at."""
    return Image(partial(paint, scene, rng.getrandbits(64)))


def paint(scene: Scene, seed: int) -> PIL.Image.Image:
    """The picture of a scene: 48 x 48 pixels, RGB."""
    rng = random.Random(seed)
    light = rng.randint(170, 250)
    scale = OVERSAMPLING
    ground = tuple(light + rng.randint(-5, 5) for _ in range(3))
    picture = PIL.Image.new("RGB", (PICTURE_SIZE * scale,) * 2, ground)
    pen = PIL.ImageDraw.Draw(picture)
    for thing in scene:
        row, column = divmod(thing.place, 3)
        x = (column * 16 + 8 + rng.uniform(-1.2, 1.2)) * scale
        y = (row * 16 + 8 + rng.uniform(-1.2, 1.2)) * scale
        half = SIZES[thing.size] * rng.uniform(0.86, 1.14) * scale
        _paint_shape(pen, thing.kind, (x, y), half, _tint(COLOURS[thing.look], rng), ground)
    return picture.reduce(scale)


def _tint(colour: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """A colour in some light, each channel a little off."""
    shade = rng.uniform(0.8, 1.04)
    return tuple(max(0, min(255, round(shade * channel) + rng.randint(-14, 14))) for channel in colour)


def _paint_shape(
    pen: PIL.ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    half: float,
    colour: tuple[int, ...],
    ground: tuple[int, ...],
) -> None:
    x, y = centre
    if shape in ("circle", "ring"):
        pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)
        if shape == "ring":
            hole = half * 0.44
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
    elif shape == "square":
        side = half * 0.88
        pen.rectangle((x - side, y - side, x + side, y + side), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half * 0.8), (x - half, y + half * 0.8)], fill=colour)
    else:
        arm = half * 0.4
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)


def caption(scene: Scene) -> str:
    """The scene in words, in reading order."""
    return ", ".join(f"a {thing.size} {thing.noun} {where(thing.place)}" for thing in scene) + "."


def where(place: int) -> str:
    """A place in words."""
    return "in the middle" if place == 4 else f"at the {PLACES[place]}"


def questions(scene: Scene, subject: Thing, rng: random.Random, words: Vocabulary) -> list[Turn]:
    """Questions about a scene, those of a single thing about the subject where words can single it out."""
    pairs = [thing.pair for thing in scene]
    turns = [
        (f"How many {words.kind}s are there?", str(len(scene))),
        ask_count(pairs, subject.pair, rng, words),
        ask_exists(pairs, subject.pair, rng, words),
        ask_exists(pairs, subject.pair, rng, words),
        _size(subject),
        (f"Where is the {subject.noun}?", where(subject.place)),
        _at_place(scene, subject.place),
        _at_place(scene, rng.randrange(9)),
        (f"What {words.look} is the {words.kind} {where(subject.place)}?", subject.look),
        (f"What {words.kind} is {where(subject.place)}?", subject.kind),
    ]
    turns += told_apart(pairs, subject.pair, words)
    if len(scene) > 1:
        turns.append(_side(scene, subject, rng))
    return turns


def _size(subject: Thing) -> Turn:
    return f"Is the {subject.noun} small or large?", subject.size


def _at_place(scene: Scene, place: int) -> Turn:
    found = [thing for thing in scene if thing.place == place]
    return f"What is {where(place)}?", f"a {found[0].size} {found[0].noun}" if found else "nothing"


def _side(scene: Scene, subject: Thing, rng: random.Random) -> Turn:
    """Left of, right of, above or below another: yes in half of the cases; a row or column in common is neither."""
    other = rng.choice([thing for thing in scene if thing != subject])
    (row, column), (other_row, other_column) = divmod(subject.place, 3), divmod(other.place, 3)
    sides = {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }
    wanted = rng.random() < 0.5
    side = rng.choice([side for side, is_so in sides.items() if is_so == wanted])
    return f"Is the {subject.noun} {side} the {other.noun}?", "yes" if wanted else "no"


def scenes(rng: random.Random, split: str) -> Sample:
    """A picture with a caption and eight questions, as branches."""
    words, scene, subject = scene_of(rng, split)
    chosen = rng.sample(questions(scene, subject, rng, words), NUM_QUESTIONS)
    return sample_of([picture_of(scene, rng)], [(CAPTION_PROMPT, caption(scene)), *chosen])


def scene_places(rng: random.Random, split: str) -> Sample:
    """A picture and what stands at each of the nine places: the densest look at it, to align an encoder with.

    Color and shape are asked for apart as well, so that each is learned whatever the other is.
    """
    words, scene, _ = scene_of(rng, split)
    turns = [_at_place(scene, place) for place in range(9)]
    for thing in scene:
        turns.append((f"What {words.look} is the {words.kind} {where(thing.place)}?", thing.look))
        turns.append((f"What {words.kind} is {where(thing.place)}?", thing.kind))
    return sample_of([picture_of(scene, rng)], turns)


def scene_lookups(rng: random.Random, split: str) -> Sample:
    """A picture with a caption and questions where something must be found by its look or kind before it is told."""
    words, scene, _ = scene_of(rng, split)
    pairs = [thing.pair for thing in scene]
    turns: list[Turn] = []
    for thing in scene:
        turns += [(f"Where is the {thing.noun}?", where(thing.place)), _size(thing)]
        turns += [ask_count(pairs, thing.pair, rng, words), ask_exists(pairs, thing.pair, rng, words)]
        turns += told_apart(pairs, thing.pair, words)
        turns += [_side(scene, thing, rng) for _ in scene[1:]]
    chosen = rng.sample(turns, min(len(turns), NUM_QUESTIONS - 1))
    return sample_of([picture_of(scene, rng)], [(CAPTION_PROMPT, caption(scene)), *chosen])


def scene_of(rng: random.Random, split: str) -> tuple[Vocabulary, Scene, Thing]:
    """Words, scene and subject of a split: training never holds an unseen pair, a test scene always does."""
    words = SEEN if split == "train" else ALL
    return words, *draw_scene(rng, words, () if split == "train" else sorted(UNSEEN))

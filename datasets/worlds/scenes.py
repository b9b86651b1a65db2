"""Pictures of coloured shapes on a three-by-three grid, with captions and questions.

A scene holds one to four shapes, no two of the same colour and shape. Colours, positions, sizes and the background
jitter. The yes/no and small/large questions are balanced, so that the words of a question give little away.
"""

import random
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw

from mmgpt.datasets.sample import Image, Message, Sample

COLOURS = {
    "red": (214, 38, 38),
    "orange": (243, 140, 22),
    "yellow": (238, 216, 40),
    "green": (46, 158, 62),
    "blue": (38, 88, 214),
    "purple": (132, 48, 172),
    "pink": (246, 138, 192),
    "black": (28, 28, 28),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 3.4, "large": 6.2}  # half the width, in pixels of a 48 x 48 picture
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
UNSEEN = frozenset(
    {("red", "triangle"), ("orange", "cross"), ("green", "circle"), ("blue", "square"), ("purple", "triangle"), ("pink", "cross")}
)
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
PICTURE_SIZE = 48  # pixels
OVERSAMPLING = 3  # drawn larger and averaged down: soft edges
NUM_QUESTIONS = 8
CAPTION_PROMPT = "Describe the picture."


@dataclass(frozen=True)
class Shape:
    """One thing in a scene."""

    size: str
    colour: str
    shape: str
    place: int  # index into PLACES

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def noun(self) -> str:
        """Colour and shape in words."""
        return f"{self.colour} {self.shape}"


Scene = list[Shape]  # in reading order
Turn = tuple[str, str]  # question, answer


def draw_scene(rng: random.Random, split: str) -> tuple[Scene, Shape]:
    """A scene, and the shape that single questions are about: in the test split one of an unseen pair."""
    count = rng.randint(1, 4)
    if split == "test":
        subject_pair = rng.choice(sorted(UNSEEN))
        pairs = [subject_pair, *rng.sample([pair for pair in PAIRS if pair != subject_pair], count - 1)]
    else:
        pairs = rng.sample(SEEN, count)
    places = rng.sample(range(9), count)
    shapes = [Shape(rng.choice(("small", "large")), *pair, place) for pair, place in zip(pairs, places, strict=True)]
    return sorted(shapes, key=lambda shape: shape.place), shapes[0]


def paint(scene: Scene, rng: random.Random) -> PIL.Image.Image:
    """The picture of a scene: 48 x 48 pixels, RGB."""
    light = rng.randint(222, 250)
    scale = OVERSAMPLING
    picture = PIL.Image.new("RGB", (PICTURE_SIZE * scale,) * 2, tuple(light + rng.randint(-5, 5) for _ in range(3)))
    pen = PIL.ImageDraw.Draw(picture)
    for shape in scene:
        row, column = divmod(shape.place, 3)
        x = (column * 16 + 8 + rng.uniform(-1.4, 1.4)) * scale
        y = (row * 16 + 8 + rng.uniform(-1.4, 1.4)) * scale
        half = SIZES[shape.size] * rng.uniform(0.9, 1.1) * scale
        colour = tuple(max(0, min(255, channel + rng.randint(-14, 14))) for channel in COLOURS[shape.colour])
        _paint_shape(pen, shape.shape, x, y, half, colour)
    return picture.reduce(scale)


def _paint_shape(pen: PIL.ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float, colour: tuple[int, ...]) -> None:
    if shape == "circle":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    elif shape == "square":
        side = half * 0.88
        pen.rectangle((x - side, y - side, x + side, y + side), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half * 0.8), (x - half, y + half * 0.8)], fill=colour)
    else:
        arm = half * 0.36
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)


def caption(scene: Scene) -> str:
    """The scene in words, in reading order."""
    return ", ".join(f"a {s.size} {s.noun} {where(s)}" for s in scene) + "."


def where(shape: Shape) -> str:
    """The place of a shape as an answer."""
    return "in the middle" if shape.place == 4 else f"at the {PLACES[shape.place]}"


def questions(scene: Scene, subject: Shape, rng: random.Random, split: str) -> list[Turn]:
    """Questions about a scene, those of a single shape about the subject where words can single it out."""
    pairs = SEEN if split == "train" else PAIRS
    turns = [
        ("How many shapes are there?", str(len(scene))),
        _count(scene, subject, rng),
        _count(scene, subject, rng),
        _exists(scene, subject, rng, pairs),
        _exists(scene, subject, rng, pairs),
        (f"Is the {subject.noun} small or large?", subject.size),
        (f"Where is the {subject.noun}?", where(subject)),
        _at_place(scene, subject, rng),
    ]
    if sum(other.shape == subject.shape for other in scene) == 1:
        turns.append((f"What color is the {subject.shape}?", subject.colour))
    if sum(other.colour == subject.colour for other in scene) == 1:
        turns.append((f"What shape is {subject.colour}?", subject.shape))
    if len(scene) > 1:
        turns.append(_side(scene, subject, rng))
    return turns


def _count(scene: Scene, subject: Shape, rng: random.Random) -> Turn:
    known = rng.random() < 0.75
    if rng.random() < 0.5:
        colour = subject.colour if known else rng.choice(tuple(COLOURS))
        return f"How many {colour} shapes are there?", str(sum(s.colour == colour for s in scene))
    shape = subject.shape if known else rng.choice(SHAPES)
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return f"How many {plural} are there?", str(sum(s.shape == shape for s in scene))


def _exists(scene: Scene, subject: Shape, rng: random.Random, pairs: tuple[tuple[str, str], ...]) -> Turn:
    if rng.random() < 0.5:
        return f"Is there a {subject.noun}?", "yes"
    present = {s.pair for s in scene}
    near = [p for p in pairs if p not in present and (p[0] == subject.colour or p[1] == subject.shape)]
    colour, shape = rng.choice(near)
    return f"Is there a {colour} {shape}?", "no"


def _at_place(scene: Scene, subject: Shape, rng: random.Random) -> Turn:
    place = subject.place if rng.random() < 0.7 else rng.randrange(9)
    found = [s for s in scene if s.place == place]
    spot = "in the middle" if place == 4 else f"at the {PLACES[place]}"
    return f"What is {spot}?", f"a {found[0].size} {found[0].noun}" if found else "nothing"


def _side(scene: Scene, subject: Shape, rng: random.Random) -> Turn:
    """Left of or above, about two shapes in different columns or rows; a place in common answers no."""
    other = rng.choice([s for s in scene if s != subject])
    (row, column), (other_row, other_column) = divmod(subject.place, 3), divmod(other.place, 3)
    side, holds = rng.choice(
        [
            ("left of", column < other_column),
            ("right of", column > other_column),
            ("above", row < other_row),
            ("below", row > other_row),
        ]
    )
    return f"Is the {subject.noun} {side} the {other.noun}?", "yes" if holds else "no"


def _sample(picture: PIL.Image.Image, turns: list[Turn]) -> Sample:
    branches = tuple((Message.of("user", question), Message.of("assistant", answer)) for question, answer in turns)
    return Sample((Message.of("user", Image(picture)),), branches=branches)


def scenes(rng: random.Random, split: str) -> Sample:
    """A picture with a caption and eight questions, as branches."""
    scene, subject = draw_scene(rng, split)
    turns = questions(scene, subject, rng, split)
    chosen = rng.sample(turns, NUM_QUESTIONS)
    return _sample(paint(scene, rng), [(CAPTION_PROMPT, caption(scene)), *chosen])


def scene_questions(rng: random.Random, split: str) -> Sample:
    """The picture and questions of `scenes`, without the caption."""
    made = scenes(rng, split)
    return Sample(made.messages, branches=made.branches[1:])


def scene_captions(rng: random.Random, split: str) -> Sample:
    """The picture and caption of `scenes`, without the questions."""
    made = scenes(rng, split)
    return Sample(made.messages, branches=made.branches[:1])

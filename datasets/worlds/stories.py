"""Short texts for language-model pretraining: stories, sums, and scenes told in words with questions and answers.

The told scenes have the sentences of the picture world, so that a decoder knows what a question asks for before it
sees. They are of colored things and of shapes in materials, never of colored shapes: a decoder that has read which
pairs occur would guess a shape from its color instead of looking.
"""

import random

from mmgpt.datasets.sample import Message, Sample
from mmgpt.datasets.worlds.scenes import COLOURS, SHAPES, caption, draw_scene, questions
from mmgpt.datasets.worlds.things import Vocabulary

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jonas")
THINGS = ("ball", "book", "apple", "key", "cup", "hat", "coin", "lamp", "drum", "kite")
MATERIALS = ("wooden", "paper", "iron", "glass", "golden", "silver", "clay", "wax", "stone", "ivory")
ROOMS = ("kitchen", "garden", "hall", "attic", "shed", "school")
TOLD = (
    Vocabulary(tuple(COLOURS), THINGS, "color", "thing"),
    Vocabulary(MATERIALS, SHAPES, "material", "shape"),
)


def stories(rng: random.Random, split: str) -> Sample:
    """One text: a story, a few sums, or a scene told in words."""
    tell = rng.choices((_told_scene, _hiding, _counting, _sums), weights=(5, 1, 1, 1))[0]
    return Sample((Message.of("assistant", tell(rng)),))


def _told_scene(rng: random.Random) -> str:
    words = rng.choice(TOLD)
    scene, subject = draw_scene(rng, words)
    turns = rng.sample(questions(scene, subject, rng, words), 4)
    return "\n".join([caption(scene), *(f"{question}\n{answer}" for question, answer in turns)])


def _hiding(rng: random.Random) -> str:
    (first, second), (one, two) = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    here, there, later = rng.sample(ROOMS, 3)
    colour = rng.choice(tuple(COLOURS))
    lines = [
        f"{first} has a {colour} {one} and {second} has a {two}.",
        f"{first} puts the {one} in the {here}. {second} leaves the {two} in the {there}.",
    ]
    moves = rng.random() < 0.5
    if moves:
        lines.append(f"Then {second} finds the {one} and takes it to the {later}.")
    lines.append(f"Where is the {one}?\nin the {later if moves else here}")
    return "\n".join(lines)


def _counting(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    thing, have, gift = rng.choice(THINGS), rng.randint(2, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        told, left = f"{second} gives {first} {gift} more.", have + gift
    else:
        gift = min(gift, have)
        told, left = f"{first} gives {second} {gift} of them.", have - gift
    return f"{first} has {have} {thing}s. {told}\nHow many {thing}s does {first} have?\n{left}"


def _sums(rng: random.Random) -> str:
    lines = []
    for _ in range(4):
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        high, low = max(a, b), min(a, b)
        lines.append(rng.choice((f"{a} + {b} = {a + b}", f"{high} - {low} = {high - low}")))
    return "\n".join(lines)

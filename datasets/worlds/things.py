"""What the worlds share: things told apart by a look and a kind, and the questions that need nothing else.

A picture's things are colored shapes, a sound's are tones of a timbre, a text's whatever its vocabulary names.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mmgpt.datasets.media import Media
from mmgpt.datasets.sample import Message, Sample

Pair = tuple[str, str]  # how a thing looks (or goes), and what it is: ("red", "circle"), ("rising", "beep")
Turn = tuple[str, str]  # question, answer
MOST_THINGS = 3


@dataclass(frozen=True)
class Vocabulary:
    """The words of a world: any pair of a look and a kind may occur, but those withheld."""

    looks: tuple[str, ...]
    kinds: tuple[str, ...]
    look: str  # what the looks are called in a question
    kind: str
    withheld: frozenset[Pair] = frozenset()

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair that may occur."""
        every = ((look, kind) for look in self.looks for kind in self.kinds)
        return tuple(pair for pair in every if pair not in self.withheld)


def draw_pairs(rng: random.Random, words: Vocabulary, subjects: Sequence[Pair] = ()) -> list[Pair]:
    """One to three different pairs; the first is one of the `subjects` if there are any."""
    count = rng.randint(1, MOST_THINGS)
    if not subjects:
        return rng.sample(words.pairs, count)
    first = rng.choice(subjects)
    return [first, *rng.sample([pair for pair in words.pairs if pair != first], count - 1)]


def ask_count(pairs: Sequence[Pair], subject: Pair, rng: random.Random, words: Vocabulary) -> Turn:
    """How many things share a look or a kind: in half of the cases the subject's, else often none."""
    known = rng.random() < 0.5
    if rng.random() < 0.5:
        look = subject[0] if known else rng.choice(words.looks)
        return f"How many {look} {words.kind}s are there?", str(sum(pair[0] == look for pair in pairs))
    kind = subject[1] if known else rng.choice(words.kinds)
    return f"How many {plural(kind)} are there?", str(sum(pair[1] == kind for pair in pairs))


def ask_exists(pairs: Sequence[Pair], subject: Pair, rng: random.Random, words: Vocabulary) -> Turn:
    """Whether the subject is there, or in half of the cases a pair like it that is not."""
    if rng.random() < 0.5:
        return f"Is there {with_article(subject)}?", "yes"
    return f"Is there {with_article(absent_pair(pairs, subject, rng, words))}?", "no"


def absent_pair(pairs: Sequence[Pair], subject: Pair, rng: random.Random, words: Vocabulary) -> Pair:
    """A pair that is not there, with the subject's look or kind."""
    return rng.choice([p for p in words.pairs if p not in pairs and (p[0] == subject[0] or p[1] == subject[1])])


def told_apart(pairs: Sequence[Pair], subject: Pair, words: Vocabulary) -> list[Turn]:
    """The look of the only thing of its kind, and the kind of the only thing of its look."""
    turns = []
    if sum(pair[1] == subject[1] for pair in pairs) == 1:
        turns.append((f"What {words.look} is the {subject[1]}?", subject[0]))
    if sum(pair[0] == subject[0] for pair in pairs) == 1:
        turns.append((f"What {words.kind} is {subject[0]}?", subject[1]))
    return turns


def with_article(pair: Pair) -> str:
    """`a red circle`, `an orange ring`."""
    return f"{'an' if pair[0][0] in 'aeiou' else 'a'} {pair[0]} {pair[1]}"


def plural(noun: str) -> str:
    """`circles`, `crosses`."""
    return f"{noun}es" if noun[-1] in "sz" else f"{noun}s"


def sample_of(media: Sequence[Media], turns: Sequence[Turn]) -> Sample:
    """Media in one user turn, and every question about them as a branch."""
    branches = tuple((Message.of("user", question), Message.of("assistant", answer)) for question, answer in turns)
    return Sample((Message("user", tuple(media)),), branches=branches)  # type: ignore[arg-type]

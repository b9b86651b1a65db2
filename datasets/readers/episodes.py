"""Episodes: any labelled set as interleaved few-shot sequences, to learn from the examples in a prompt.

An episode shows pictures (or sounds, or texts) of a few classes with their labels, and asks for the labels of others as
branches, so that what is shown is encoded once. Labels are made-up words bound anew in every episode (fast binding,
Tsimpoukelli et al. 2021, arXiv:2106.13884), so that only the examples tell the answer, or the set's own answers
(open-ended classification). An episode depends on the config and its index alone, and asks the same questions whatever
the number of shots.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, Self

import numpy as np
import PIL.Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import GroundTruth, Message, Part, Sample, Text
from mmgpt.datasets.source import Source, SourceConfig

MADE_UP = (
    *("dax", "wug", "fep", "zop", "blick", "toma", "kiki", "gorp", "lorp", "vash", "mib", "jux"),
    *("pilk", "sorn", "nef", "quib", "tref", "yall", "hoon", "crat", "besk", "drim", "ploo", "ziv"),
)


class EpisodesConfig(SourceConfig):
    """How episodes are drawn; a lone number or several that are drawn from."""

    reader: Literal["episodes"]
    classes: list[str] = []  # tags of the source's samples that name a class together; its answer if none are given
    within: str | None = None  # a tag that all classes of an episode share
    ways: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = 5  # classes of an episode
    shots: NonNegativeInt | Annotated[list[NonNegativeInt], Field(min_length=1)] = 1  # examples of each
    queries: PositiveInt | None = None  # questions of an episode, evenly of its classes; one of each if not given
    form: Literal["turns", "line"] = "turns"  # examples as earlier exchanges, or in one user turn, labels behind them
    labels: Literal["made_up", "real", "permuted"] = "made_up"  # permuted: made up, and every example's is wrong
    words: list[str] = Field(list(MADE_UP), min_length=2)  # made-up labels
    bursty: float = Field(default=1.0, ge=0, le=1)  # share of episodes that ask about classes they show
    rotations: Literal[1, 4, 8] = 1  # of all pictures of an episode: none, by 90 degrees, and mirrored; each a class
    side: PositiveInt | None = None  # pixels: pictures are decoded once, made squares of this side, and kept
    size: PositiveInt = 100_000  # episodes
    seed: int = 0

    @model_validator(mode="after")
    def _labels_suffice(self) -> Self:
        if self.ignore:
            raise ValueError("ignore is of the source below of, whose columns it leaves out; move it there")
        if self.split != "train":
            raise ValueError(f"split={self.split} is of the source below of, which is read; move it there")
        most = max(_several(self.ways))
        if self.labels != "real" and len(set(self.words)) < most:
            raise ValueError(f"ways={most} needs as many made-up labels, words has {len(set(self.words))}; add some")
        if self.labels == "permuted" and min(_several(self.ways)) < 2:
            raise ValueError("labels=permuted needs two ways at least, for each example gets another's label")
        if self.bursty < 1 and self.labels != "real":
            raise ValueError(
                f"bursty={self.bursty}: only real labels can be asked for without an example; set labels: real"
            )
        return self


@dataclass(frozen=True)
class Example:
    """A labelled sample: what is shown, the set's own answer, its class, and its tags."""

    parts: tuple[Part, ...]
    answer: str
    of_class: str
    tags: Mapping[str, str]


class EpisodeSource(Source):
    """Episodes of a source.

    Those that are not bursty (Chan et al. 2022, arXiv:2205.05055) ask about a class that they do not show, which only
    what was learned before can tell.
    """

    def __init__(self, config: EpisodesConfig, source: Source, examples: list[Example] | None = None) -> None:
        """Open over a source; `examples` if they have been read from it before."""
        self.draw = 0  # what is shown of the classes, not what is asked, depends on it
        self.parts = [source]
        self.config, self.source, self.name = config, source, config.label or f"{source.name}_episodes"
        self.examples = examples or [one for index in range(len(source)) for one in self._examples(source[index])]
        classes: dict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(self.examples):
            classes[example.of_class].append(number)
        most = max(_several(config.ways))
        self.asked = max(-(-(config.queries or ways) // ways) for ways in _several(config.ways))  # of a class, at most
        needed = self.asked + max(_several(config.shots))
        self.classes = {name: numbers for name, numbers in classes.items() if len(numbers) >= needed}
        groups: dict[str, list[str]] = defaultdict(list)
        for name, numbers in self.classes.items():
            groups[self._group(numbers[0])].append(name)
        self.spare = int(config.bursty < 1)  # classes that are asked about and not shown
        self.groups = list(groups.values())
        largest = max(map(len, self.groups), default=0)
        if largest < most + self.spare:
            where = f" within one {config.within}" if config.within else ""
            raise UserError(
                f"{self.name}: episodes of {most} ways need {most + self.spare} classes of {needed} samples each"
                f"{where}, {source.name} has {largest}; lower ways, shots or queries"
            )
        self.kept: dict[Image, np.ndarray] = {}
        super().__init__(config, config.size, self.name)

    def with_shots(self, count: int, draw: int = 0) -> "EpisodeSource":
        """The same questions after other numbers of examples; another `draw` shows others.

        Raises:
            UserError: if the classes do not have so many.
        """
        other = EpisodeSource(self.config.model_copy(update={"shots": count}), self.source, self.examples)
        other.draw = draw
        return other

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        rng = random.Random(f"{config.seed}/{index}")
        ways, rotation = rng.choice(_several(config.ways)), rng.randrange(config.rotations)
        groups = [names for names in self.groups if len(names) >= ways + self.spare]
        group = rng.choices(groups, [len(names) for names in groups])[0]
        is_bursty = config.bursty == 1 or rng.random() < config.bursty
        named = rng.sample(group, ways if is_bursty else ways + self.spare)
        labels = {name: self.examples[self.classes[name][0]].answer for name in named}
        if config.labels != "real":
            labels = dict(zip(named, rng.sample(config.words, ways), strict=True))
        asked = self._asked(named if is_bursty else named[ways:], rng)
        if self.draw:
            rng = random.Random(f"{config.seed}/{index}/{self.draw}")
        shown = self._shown(named[:ways], set(asked), rng)  # drawn last: other numbers of shots leave the questions
        told = labels
        if config.labels == "permuted":
            shift = rng.randrange(1, ways)
            told = {name: labels[named[(at + shift) % ways]] for at, name in enumerate(named)}
        context = [message for number in shown for message in self._turns(number, told, rotation)]
        if config.form == "line":
            context = [Message("user", tuple(part for message in context for part in message.parts))]
        branches = tuple(self._turns(number, labels, rotation) for number in asked)
        choices = tuple(sorted(labels.values()))
        truths = tuple(GroundTruth(choices=choices, tags=self.examples[number].tags) for number in asked)
        return Sample(
            tuple(context) or (Message("user", ()),), self.name, f"{self.name}/{config.seed}/{index}", branches, truths
        )

    def _examples(self, sample: Sample) -> list[Example]:
        found = []
        for one in sample.unbranched():
            if [message.role for message in one.messages] != ["user", "assistant"]:
                raise UserError(f"{one.key}: episodes are made of one question with its answer; this has other turns")
            question, answer = one.messages
            tags = one.truths[0].tags if one.truths else {}
            for name in [*self.config.classes, *([self.config.within] if self.config.within else [])]:
                if name not in tags:
                    known = ", ".join(tags) or "none"
                    raise UserError(f"{one.key}: has no tag {name!r}, only {known}; add it to the source's tags")
            named = " ".join(tags[name] for name in self.config.classes) or answer.text
            found.append(Example(question.parts, answer.text, named, tags))
        return found

    def _group(self, number: int) -> str:
        return self.examples[number].tags[self.config.within] if self.config.within else ""

    def _asked(self, names: Sequence[str], rng: random.Random) -> list[int]:
        """The samples that are asked about: of each class as many as of the others, or one more."""
        ways, count = len(names), self.config.queries or len(names)
        drawn = [rng.sample(self.classes[name], -(-count // ways)) for name in rng.sample(names, ways)]
        return rng.sample([drawn[at % ways][at // ways] for at in range(count)], count)

    def _shown(self, names: Sequence[str], asked: set[int], rng: random.Random) -> list[int]:
        """The samples that are shown, none of which is asked about."""
        shots = rng.choice(_several(self.config.shots))
        shown: list[int] = []
        for name in names:
            drawn = rng.sample(self.classes[name], min(len(self.classes[name]), shots + self.asked))
            shown += [number for number in drawn if number not in asked][:shots]
        return rng.sample(shown, len(shown))

    def _turns(self, number: int, labels: Mapping[str, str], rotation: int) -> tuple[Message, Message]:
        example = self.examples[number]
        parts = tuple(self._laid(part, rotation, example.of_class) for part in example.parts)
        return Message("user", parts), Message.of("assistant", labels[example.of_class])

    def _laid(self, part: Part, rotation: int, of_class: str) -> Part:
        """A part as the episode shows it; media know their class."""
        if isinstance(part, Text):
            return part
        group = f"{of_class}/{rotation}"
        if not isinstance(part, Image) or (not rotation and not self.config.side):
            return replace(part, group=group)
        if not self.config.side:
            return Image(partial(_load_rotated, part, rotation), label=part.name(), group=group)
        if part not in self.kept:
            self.kept[part] = np.asarray(part.load().resize((self.config.side,) * 2, PIL.Image.Resampling.BICUBIC))
        return Image(_rotated(self.kept[part], rotation), label=part.name(), group=group)


def _several(values: int | list[int]) -> list[int]:
    return values if isinstance(values, list) else [values]


def _rotated(pixels_HWC: np.ndarray, rotation: int) -> np.ndarray:
    rotated_HWC = np.rot90(pixels_HWC, rotation % 4)
    return rotated_HWC[:, ::-1] if rotation >= 4 else rotated_HWC


def _load_rotated(image: Image, rotation: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.ascontiguousarray(_rotated(np.asarray(image.load()), rotation)))

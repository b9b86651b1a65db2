"""Questions that need pictures and a spoken number, composed of two data sets by a seed.

A sample holds one to three pictures and a recording, in any order. The number said is compared with how many shapes
there are, added to it, or chooses the picture that is asked about. What a picture shows is read from the answers that
its own data set gives about it.
"""

import random
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mmgpt.config import Config, UserError
from mmgpt.datasets.readers.table import TableSource
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.sample import Message, Part, Sample
from mmgpt.datasets.source import Source, SourceConfig

Turn = tuple[str, str]  # question, answer
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Facts(Config):
    """The answers of the pictures' data set that tell what is in a picture."""

    color: list[str] = Field(min_length=2)
    shape: list[str] = Field(min_length=2)


class ComposedConfig(SourceConfig):
    """Pictures and recordings of numbers up to `most`; both are read from the source's own split."""

    reader: Literal["composed"]
    pictures: TableConfig  # with branches whose answers name a color and a shape
    sounds: TableConfig  # whose answers are numbers in words
    facts: Facts
    most: int = Field(default=3, ge=2, le=9)  # pictures
    size: PositiveInt = 10_000  # samples
    seed: int = 0

    @model_validator(mode="after")
    def _has_no_rows(self) -> Self:
        if self.ignore:
            raise ValueError("ignore is of pictures and sounds, which read the columns; move it there")
        return self


class ComposedSource(Source):
    """Samples of one to `most` pictures and a spoken number, with five questions as branches."""

    def __init__(self, config: ComposedConfig, data_root: Path) -> None:
        self.config, self.name = config, config.label or "composed"
        own = {"split": config.split}
        self.pictures = TableSource(config.pictures.model_copy(update=own), data_root)
        self.sounds = TableSource(config.sounds.model_copy(update=own), data_root)
        self.parts = [self.pictures, self.sounds]
        self.by_number: dict[int, list[int]] = {}
        for index in range(len(self.sounds)):
            said = self.sounds[index].messages[-1].text
            if said not in NUMBERS:
                raise UserError(
                    f"{self.sounds[index].key}: {said!r} is no number in words; known: {', '.join(NUMBERS)}"
                )
            self.by_number.setdefault(NUMBERS.index(said), []).append(index)
        absent = [NUMBERS[n] for n in range(1, config.most + 1) if n not in self.by_number]
        if absent:
            raise UserError(f"{self.name}: no recording of {', '.join(absent)}; add some, or lower most={config.most}")
        self.shown = self._read_facts()
        super().__init__(config, config.size, self.name)

    def _read_facts(self) -> list[tuple[int, str, str]]:
        """Index, color and shape of every picture whose data set tells both."""
        shown = []
        for index in range(len(self.pictures)):
            answers = {branch[-1].text for branch in self.pictures[index].branches}
            color, shape = (sorted(answers & set(told)) for told in (self.config.facts.color, self.config.facts.shape))
            if len(color) == len(shape) == 1:
                shown.append((index, color[0], shape[0]))
        if not shown:
            raise UserError(f"{self.name}: no picture's answers tell one color and one shape; check facts")
        return shown

    def __getitem__(self, index: int) -> Sample:
        key = f"{self.name}/{self.config.split}/{self.config.seed}/{index}"
        rng = random.Random(key)
        chosen = [rng.choice(self.shown) for _ in range(rng.randint(1, self.config.most))]
        shown = [(color, shape) for _, color, shape in chosen]
        kind = rng.choice(self.config.facts.shape)
        count = sum(shape == kind for _, shape in shown)
        wanted = (len(shown), count, rng.randint(1, self.config.most))  # so that yes is about as frequent as no
        number = rng.choice([n for n in wanted if n in self.by_number])
        sound = self.sounds[rng.choice(self.by_number[number])]
        media: list[Part] = [self.pictures[picture].messages[0].parts[0] for picture, _, _ in chosen]
        media.insert(rng.randint(0, len(media)), sound.messages[0].parts[0])
        branches = tuple(
            (Message.of("user", question), Message.of("assistant", answer))
            for question, answer in _questions(shown, number, kind, count)
        )
        return Sample((Message("user", tuple(media)),), self.name, key, branches)


def _questions(shown: list[tuple[str, str]], number: int, kind: str, count: int) -> list[Turn]:
    color, shape = shown[number - 1] if 1 <= number <= len(shown) else ("none", "none")
    return [
        ("Is the spoken digit the number of shapes?", "yes" if number == len(shown) else "no"),
        (f"Is the spoken digit the number of {kind}s?", "yes" if number == count else "no"),
        ("What color is the shape in the picture with the spoken number?", color),
        ("What shape is in the picture with the spoken number?", shape),
        (f"How much are the spoken digit and the number of {kind}s together?", str(number + count)),
    ]

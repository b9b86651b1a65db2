"""A few of the scored questions, with their pictures and sounds as files to ask more about."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import parse_messages
from mmgpt.evaluation.run import Evaluation
from mmgpt.reports.gallery import is_right

SUFFIX: dict[type[Image] | type[Audio], str] = {Image: ".png", Audio: ".wav"}

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A question that was scored; `files` are its pictures (.png) and sounds (.wav), in the order of the prompt."""

    files: tuple[Path, ...]
    question: str
    prediction: str
    reference: str
    is_right: bool

    def command(self, model: Path) -> str:
        """What asks a model this question again in a shell."""
        flags = {suffix: f"--{kind.modality}" for kind, suffix in SUFFIX.items()}
        media = [word for file in self.files for word in (flags[file.suffix], str(file))]
        return shlex.join(["mmgpt", "ask", str(model), self.question, *media])


def save_examples(evaluation: Evaluation, folder: Path, least: int = 3) -> list[Example]:
    """Pick scored questions with media, from each task in turn, and write the media of the first as `0.png`, `0.wav`.

    There is one of each task, and `least` in all as far as there are as many; a second picture of one question is
    `0-1.png`.
    """
    tasks = [[row for row in rows if _media(row)] for rows in evaluation.samples.values()]
    return [_save(row, folder, number) for number, row in enumerate(_in_turn([rows for rows in tasks if rows], least))]


def _in_turn(tasks: list[list[Record]], least: int) -> Iterator[Record]:
    """Rows at other places of each task, as neighbours are often about the same picture; none twice."""
    count, seen = max(least, len(tasks)), set[tuple[int, int]]()
    for number in range(count if tasks else 0):
        task = number % len(tasks)
        place = number * len(tasks[task]) // count
        if (task, place) not in seen:
            seen.add((task, place))
            yield tasks[task][place]


def _media(sample: Record) -> list[Image | Audio]:
    (question,) = parse_messages(sample["messages"][-1:])
    return [part for part in question.parts if isinstance(part, Image | Audio)]


def _save(sample: Record, folder: Path, number: int) -> Example:
    folder.mkdir(exist_ok=True)
    files, counts = [], Counter[str]()
    for medium in _media(sample):
        suffix = SUFFIX[type(medium)]
        again = f"-{counts[suffix]}" if counts[suffix] else ""
        counts[suffix] += 1
        files.append(folder / f"{number}{again}{suffix}")
        if isinstance(medium, Image):
            medium.load().save(files[-1])
        else:
            sound = medium.load()
            soundfile.write(files[-1], sound.samples, sound.rate)
    (question,) = parse_messages(sample["messages"][-1:])
    said, wanted = str(sample["prediction"]), str(sample["reference"])
    return Example(tuple(files), question.text.strip(), said, wanted, is_right=is_right(sample) is not False)

"""What an answer is worth that did not see: baselines without media."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.media import Audio, Image, Media
from mmgpt.datasets.sample import Message, Part, media_of
from mmgpt.datasets.source import Source
from mmgpt.evaluation.tasks.exemplar_pool import identity, lazy_shuffle
from mmgpt.evaluation.tasks.item import TaskItem, items_of

POOL_LIMIT = 5_000  # samples that the text-only guess is learned from
ABLATIONS = ("removed", "shuffled", "noise")
LOUDNESS = 0.1  # root mean square of noise, of which 1 is the loudest sample


class TextOnlyBaseline:
    """The best answer that ignores media: the most frequent one that training gave to the same words.

    A question never asked in training is cut from its end to the longest beginning that was.
    """

    def __init__(self, pool: Source) -> None:
        self.by_beginning: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self.by_question: dict[str, Counter[str]] = defaultdict(Counter)
        stride = max(1, len(pool) // POOL_LIMIT)
        for index in list(range(0, len(pool), stride))[:POOL_LIMIT]:
            for item in items_of(pool[index]):
                words = tuple(item.question.split())
                self.by_question[item.question][item.reference] += 1
                for length in range(len(words) + 1):
                    self.by_beginning[words[:length]][item.reference] += 1

    def answer(self, item: TaskItem) -> str:
        """The guess for an item."""
        counts = self.by_question.get(item.question)
        words = tuple(item.question.split())
        while counts is None:
            counts = self.by_beginning.get(words)
            words = words[:-1]
        if item.choices:
            return max(item.choices, key=lambda choice: counts[choice])
        return counts.most_common(1)[0][0]


def ablate_media(
    mode: str, messages: Sequence[Message], item: TaskItem, others: Sequence[TaskItem], seed: int
) -> tuple[Message, ...]:
    """A prompt that shows nothing of what its item asks about; exemplars keep their media, for they teach the form.

    Args:
        mode: `removed`: the item's media are left out. `lazy_shuffle`: they are those of another item, as many of each
            kind; of several others where no one has as many. A kind that no other item holds stays as it is.
            `noise`: uniform noise in a picture's pixels, white noise in a sound's samples, of the same size and rate.
        messages: the item's prompt.
        item: of which the media are meant.
        others: the items of the task; the item may be among them.
        seed: what is drawn depends on it, on the item's key and, shuffled, on the order of the others.
    Raises:
        UserError: if the mode is not known, or noise stands for a video; MediaError: if a medium is damaged.
    """
    if mode not in ABLATIONS:
        raise UserError(f"blind mode {mode!r} is not known; {did_you_mean(mode, ABLATIONS)}")
    own = list(dict.fromkeys(media_of(item.messages)))
    shown: Mapping[Media, Media] = {}
    if mode == "shuffled":
        shown = _of_others(own, others, Random(f"{seed}/shuffled/{item.key}"))
    elif mode == "noise":
        shown = {medium: _noise(medium, f"{seed}/noise/{item.key}/{n}") for n, medium in enumerate(own)}
    return tuple(replace(m, parts=tuple(_shown(m.parts, own, shown))) for m in messages)


def _shown(parts: Sequence[Part], own: Sequence[Media], shown: Mapping[Media, Media]) -> Sequence[Part]:
    return [shown.get(part, part) for part in parts if part not in own or part in shown]  # type: ignore[arg-type, misc]


def _of_others(own: Sequence[Media], others: Sequence[TaskItem], rng: Random) -> dict[Media, Media]:
    """For each medium one of its kind that is none of them, from as few items as come first and have one."""
    known = {identity(medium) for medium in own}
    shown: dict[Media, Media] = {}
    for other in lazy_shuffle(rng, others):
        if len(shown) == len(own):
            break
        for theirs in dict.fromkeys(media_of(other.messages)):
            place = next((m for m in own if m not in shown and m.modality == theirs.modality), None)
            if place is not None and identity(theirs) not in known:
                shown[place] = theirs
    return {medium: shown.get(medium, medium) for medium in own}


def _noise(medium: Media, name: str) -> Media:
    """Noise in place of a medium; made when it is looked at."""
    label = f"noise for {medium.name()}"
    seed = Random(name).getrandbits(64)
    if isinstance(medium, Image):
        return Image(partial(_pixels, medium.load().size, seed), label=label)
    if isinstance(medium, Audio):
        sound = medium.load()
        return Audio(partial(_samples, len(sound.samples), seed), label=label, rate=sound.rate)
    raise UserError(f"{medium.name()}: blind=noise makes no {medium.modality}; give blind=removed or shuffled")


def _pixels(size: tuple[int, int], seed: int) -> np.ndarray:
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _samples(length: int, seed: int) -> np.ndarray:
    return (LOUDNESS * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)

"""What an answer is worth that did not see: baselines without media."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message
from mmgpt.datasets.source import Source
from mmgpt.evaluation.item import Item, items_of
from mmgpt.generation.prompts import without_media

POOL_LIMIT = 5_000  # samples that the text-only guess is learned from


class TextOnlyGuess:
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

    def answer(self, item: Item) -> str:
        """The guess for an item."""
        counts = self.by_question.get(item.question)
        words = tuple(item.question.split())
        while counts is None:
            counts = self.by_beginning.get(words)
            words = words[:-1]
        if item.choices:
            return max(item.choices, key=lambda choice: counts[choice])
        return counts.most_common(1)[0][0]


def blinded(
    mode: str, messages: tuple[Message, ...], item: Item, others: Sequence[Item], seed: int
) -> tuple[Message, ...]:
    """A prompt whose media tell nothing: `removed`.

    Raises:
        UserError: if the mode is not known.
    """
    if mode != "removed":
        raise UserError(f"blind mode {mode!r} is not known; give removed")
    return without_media(messages)

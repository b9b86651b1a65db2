"""Which exemplars an item gets, and what an answer is worth that only read the question.

Exemplars depend on (seed, task, item, k) alone: not on batch, order or world size.
"""

import random
from collections import Counter, defaultdict

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message
from mmgpt.datasets.source import Source
from mmgpt.evaluation.task import Item, items_of

POOL_LIMIT = 5_000  # samples that the text-only guess is learned from


def exemplars(
    pool: Source | None, item: Item, task: str, count: int, seed: int
) -> list[tuple[str, tuple[Message, ...]]]:
    """`count` solved examples from the pool: (key, messages ending with the answer).

    Raises:
        UserError: if the task has no pool, or one smaller than `count`.
    """
    if count == 0:
        return []
    if pool is None or len(pool) < count:
        size = "no exemplars" if pool is None else f"{len(pool)} exemplars"
        raise UserError(f"task {task}: {count} shots asked for, it has {size}; add a larger `exemplars` source")
    rng = random.Random(f"{seed}/{task}/{item.key}/{count}")
    chosen = []
    for index in rng.sample(range(len(pool)), count):
        example = rng.choice(list(items_of(pool[index])))
        chosen.append((example.key, (*example.messages, Message.of("assistant", example.reference))))
    return chosen


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

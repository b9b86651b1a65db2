"""How a model answers the items of a task, by the task's kind.

generate: a reply. choose, rank: the log-probability of each of the item's choices. classify: the same, of labels that
are the same for all items, made probabilities over the labels. score: the log-probabilities of a text's own tokens.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message, Text
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.models.plain_text import choose_plain
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.generation.assistant import Assistant

BATCHES_PER_CALL = 16  # batches that a model which does not tell its replies one by one is given in a call
ITEMS_FAULT = (UserError, FloatingPointError, MemoryError)  # what a model raises of a single prompt


class Prediction(NamedTuple):
    """What was answered: a text, and the log-probabilities that the kind has."""

    prediction: str
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class PromptedItem:
    """An item as it is asked: its number in the task, and its prompt.

    Attributes:
        digest: tells the answer from any other: of model, prompt, media, choices and options.
    """

    number: int
    item: TaskItem
    messages: tuple[Message, ...]
    digest: str = field(default="", compare=False)


Kind = Callable[[Model, TaskConfig, Sequence[PromptedItem], int], Iterator[Prediction]]


def check_items(config: TaskConfig, items: Sequence[TaskItem]) -> None:
    """See that a task's items can be asked in its kind.

    Raises:
        UserError: if there are none, or one lacks a question, its choices, or has media where texts are scored.
    """
    if not items:
        raise UserError(f"task {config.name}: its data holds no items; check its path and split")
    for item in items:
        _check_references(config, item)
        if config.kind == "score":
            if not all(isinstance(part, Text) for message in item.messages for part in message.parts):
                raise UserError(f"{item.key}: kind=score reads plain texts, and it holds media; use kind=choose")
        elif not item.messages:
            raise UserError(f"{item.key}: is a document, which asks nothing; use kind=score, or add a user turn")
        elif config.kind != "generate" and len(item.choices) < 2:
            raise UserError(f"{item.key}: kind={config.kind} needs two choices or more, it has {len(item.choices)}")
        elif config.kind == "classify" and item.choices != items[0].choices:
            raise UserError(f"{item.key}: kind=classify needs the same choices for every item; use kind=choose")


def _check_references(config: TaskConfig, item: TaskItem) -> None:
    """See that the metrics can read what is right, before all is asked."""
    for name in config.metrics:
        check = METRICS[name].check
        try:
            if check is not None:
                check(ScoredPrediction("", item.references, item.choices))
        except UserError as error:
            raise UserError(f"task {config.name}, {item.key}: {error}") from None


def answers(
    model: Model, config: TaskConfig, questions: Sequence[PromptedItem], batch_size: int
) -> Iterator[Prediction]:
    """The answer to each question in their order; those before one that cannot be answered are all given.

    Raises:
        UserError, FloatingPointError, MemoryError: of one question, with its item's key.
    """
    done = 0
    try:
        for answer in KINDS[config.kind](model, config, questions, batch_size):
            yield answer
            done += 1
    except ITEMS_FAULT as error:
        rest = questions[done:]
        if len(rest) == 1:
            told = re.sub(r"^(prompt( \d+)?|score): ", "", str(error))
            raise type(error)(f"{rest[0].item.key}: {told}") from None
        first = min(batch_size, len(rest) // 2)  # by halves, for the error does not tell whose it is
        yield from answers(model, config, rest[:first], batch_size)
        yield from answers(model, config, rest[first:], batch_size)


def room_of(config: TaskConfig, item: TaskItem) -> int:
    """The most tokens that an item's answer takes; a choice has no more than bytes, and the end token."""
    if config.kind == "generate":
        return config.generate.max_new_tokens
    return max((len(choice.encode()) for choice in item.choices), default=0) + 1


def _generate(
    model: Model, config: TaskConfig, questions: Sequence[PromptedItem], batch_size: int
) -> Iterator[Prediction]:
    options = config.generate.model_dump()
    step = len(questions) if isinstance(model, Assistant) else BATCHES_PER_CALL * batch_size
    for at in range(0, len(questions), step):
        some = questions[at : at + step]
        talks = [question.messages for question in some]
        each = None
        if config.generate.temperature > 0:  # conversation i draws with seed + i; an item's draws are its number's
            each = [{"seed": config.generate.seed + one.number - place} for place, one in enumerate(some)]
        ask = model.replies if isinstance(model, Assistant) else model.chat
        yield from (Prediction(reply.text) for reply in ask(talks, batch_size=batch_size, each=each, **options))


def _choose(
    model: Model, config: TaskConfig, questions: Sequence[PromptedItem], batch_size: int
) -> Iterator[Prediction]:
    for at in range(0, len(questions), batch_size):
        some = questions[at : at + batch_size]
        # Some benchmarks offer a choice twice; it is scored once, and but in raw text without white space around it.
        spelled = str if config.plain_text else str.strip
        choices = [list(dict.fromkeys(map(spelled, one.item.choices))) for one in some]
        talks = [one.messages for one in some]
        if config.plain_text:
            chosen = choose_plain(model, talks, choices, normalise=config.length_normalise)
        else:
            chosen = model.choose(talks, choices, normalise=config.length_normalise, batch_size=batch_size)
        for one, offered, choice in zip(some, choices, chosen, strict=True):
            places = [offered.index(spelled(own)) for own in one.item.choices]
            logprobs = _numbers([choice.logprobs[place] for place in places])
            yield Prediction(one.item.choices[places.index(choice.index)], logprobs)


def _classify(
    model: Model, config: TaskConfig, questions: Sequence[PromptedItem], batch_size: int
) -> Iterator[Prediction]:
    for answer in _choose(model, config, questions, batch_size):
        best = max(answer.logprobs)
        total = best + math.log(sum(math.exp(one - best) for one in answer.logprobs))
        yield Prediction(answer.prediction, tuple(one - total for one in answer.logprobs))


def _score(
    model: Model, config: TaskConfig, questions: Sequence[PromptedItem], batch_size: int
) -> Iterator[Prediction]:
    for at in range(0, len(questions), batch_size):
        some = questions[at : at + batch_size]
        contexts = ["".join(message.text for message in one.messages) for one in some]
        for logprobs in model.score_texts(contexts, [one.item.reference for one in some]):
            yield Prediction("", _numbers(logprobs))


def _numbers(logprobs: Sequence[float]) -> tuple[float, ...]:
    if any(math.isnan(one) for one in logprobs):
        raise FloatingPointError("the model's logits are not numbers; its weights are damaged or its training diverged")
    return tuple(logprobs)


KINDS: dict[str, Kind] = {
    "generate": _generate,
    "choose": _choose,
    "classify": _classify,
    "rank": _choose,
    "score": _score,
}

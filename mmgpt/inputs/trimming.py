"""Samples and talks that are too long: whole branches or whole exchanges go, never a part of a turn or a medium."""

from collections.abc import Iterator
from dataclasses import replace

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message, Sample, Text


def truncations(sample: Sample) -> Iterator[Sample]:
    """The sample, then without its last branch, the one before ...; or without its first exchange, the next ...

    Where the first exchange holds all media, later ones ask about these: then the last goes first. What holds no
    learned turn any more is none of them, unless the whole holds none.
    """
    yield sample
    for shorter in _shorter(sample):
        if not _is_learned(shorter) and _is_learned(sample):
            return
        yield shorter


def _shorter(sample: Sample) -> Iterator[Sample]:
    if sample.branches:
        for count in range(len(sample.branches) - 1, 0, -1):
            yield replace(sample, branches=sample.branches[:count])
        return
    starts = _starts(sample.messages)
    later = sample.messages[starts[1] :] if len(starts) > 1 else ()
    if _hold_media(sample.messages) and not _hold_media(later):
        for at in reversed(starts[1:]):
            yield replace(sample, messages=sample.messages[:at])
        return
    for messages in drop_oldest_exchanges(sample.messages):
        yield replace(sample, messages=messages)


def drop_oldest_exchanges(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """The messages without their first exchange, the first two ...; a system turn stays, and the last exchange."""
    system = tuple(message for message in messages[:1] if message.role == "system")
    for at in _starts(messages)[1:]:
        yield system + messages[at:]


def _starts(messages: tuple[Message, ...]) -> list[int]:
    """Where exchanges begin: a user turn, and all that follows it up to the next."""
    return [at for at, message in enumerate(messages) if message.role == "user"]


def _hold_media(messages: tuple[Message, ...]) -> bool:
    return any(not isinstance(part, Text) for message in messages for part in message.parts)


def _is_learned(sample: Sample) -> bool:
    turns = [turn for branch in sample.branches for turn in branch] if sample.branches else sample.messages
    return any(turn.role == "assistant" and turn.is_learned for turn in turns)


class TooLong(UserError):
    """A sample or prompt that does not fit the context, even after whole turns were left out.

    Attributes:
        tokens_over: tokens that are too many, where that is known.
    """

    def __init__(self, message: str, tokens_over: int = 0) -> None:
        super().__init__(message)
        self.tokens_over = tokens_over

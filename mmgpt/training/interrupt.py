"""Stopping between two steps, when Ctrl-C or SIGTERM asks for it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop and has saved; the message says where and how to go on."""


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C or SIGTERM came; the second one acts at once."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals belong to somebody else
        before = {}
    try:
        yield came
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)

"""A talk in the terminal: streamed answers, pictures by /image, sounds by /audio, speed after each answer."""

import time

from rich.console import Console

from mmgpt.config import UserError
from mmgpt.datasets.media import MEDIA
from mmgpt.datasets.sample import Message, Part
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.chat import TooLong

HELP = "/image PATH or /audio PATH adds a picture or a sound to the next question, /new starts over, /quit ends"


def talk(assistant: Assistant, console: Console, *, max_new_tokens: int, temperature: float) -> None:
    """Read questions until the input ends. Faults are told, and the talk goes on."""
    history: list[Message] = []
    media: list[Part] = []
    console.print(HELP, style="dim")
    while True:
        try:
            line = console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        command, _, argument = line.partition(" ")
        if line == "/quit":
            return
        if line == "/new":
            history, media = [], []
        elif command.removeprefix("/") in MEDIA and command.startswith("/"):
            media += _add_medium(assistant, console, command[1:], argument.strip())
        elif command.startswith("/"):
            console.print(f"{command} is not a command; {HELP}", style="red", markup=False, highlight=False)
        elif line:
            question = Message.of("user", *media, line)
            reply = _answer(assistant, console, [*history, question], max_new_tokens, temperature)
            if reply is not None:
                history, media = [*history, question, Message.of("assistant", reply)], []


def _add_medium(assistant: Assistant, console: Console, kind: str, path: str) -> list[Part]:
    """The medium, looked at once, so that a wrong path is told before the question is written."""
    if not path:
        console.print(f"/{kind} needs a path; {HELP}", style="red", markup=False, highlight=False)
        return []
    part = MEDIA[kind](path)
    try:
        assistant.renderer.prompt((Message("user", (part,)),))  # type: ignore[arg-type]
    except UserError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return []
    return [part]  # type: ignore[list-item]


def _answer(
    assistant: Assistant, console: Console, messages: list[Message], max_new_tokens: int, temperature: float
) -> str | None:
    """Stream the answer; the oldest exchanges are left out when the talk outgrows the context."""
    while True:
        try:
            pieces = assistant.stream(messages, max_new_tokens=max_new_tokens, temperature=temperature)
            break
        except TooLong as error:
            if len(messages) < 3:
                console.print(str(error), style="red", markup=False, highlight=False)
                return None
            messages = messages[2:]
        except UserError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            return None
    started, text, count = time.perf_counter(), "", 0
    for piece in pieces:
        console.print(piece, end="", markup=False, highlight=False)
        text, count = text + piece, count + 1
    seconds = time.perf_counter() - started
    console.print(f"\n({count} pieces, {count / max(seconds, 1e-9):.0f} a second)", style="dim", highlight=False)
    return text

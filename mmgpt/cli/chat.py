"""A talk in the terminal: streamed answers about pictures, sounds and videos, with their speed; saved as data."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mmgpt.config import UserError
from mmgpt.datasets.media import MEDIA
from mmgpt.datasets.sample import Message, Part
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.prompts import parse_prompt, truncate_conversation
from mmgpt.inputs.rendered import RenderContext

HELP = (
    "/image PATH, /audio PATH or /video PATH adds one to the next question, /system TEXT says how to answer, "
    "/save FILE adds the talk to a file, /new starts over, /quit ends"
)


def talk(assistant: Assistant, console: Console, *, max_new_tokens: int, temperature: float) -> None:
    """Read questions until the input ends. Faults are told, and the talk goes on."""
    _Talk(assistant, console, {"max_new_tokens": max_new_tokens, "temperature": temperature}).run()


@dataclass
class _Talk:
    assistant: Assistant
    console: Console
    options: dict[str, Any]
    system: list[Message] = field(default_factory=list)
    history: list[Message] = field(default_factory=list)
    waiting: list[Part] = field(default_factory=list)  # media of the next question
    showing: RenderContext = field(default_factory=RenderContext)  # media of the talk, prepared

    def run(self) -> None:
        self.console.print(HELP, style="dim")
        while True:
            try:
                line = self.console.input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "/quit":
                return
            try:
                self._take(line)
            except UserError as error:
                self.console.print(str(error), style="red", markup=False, highlight=False)

    def _take(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if line == "/new":
            self.history, self.waiting, self.showing = [], [], RenderContext()
        elif command == "/system":
            self._say_how(argument)
        elif command == "/save":
            self._save(argument)
        elif command.startswith("/") and command[1:] in MEDIA:
            self._add_medium(command[1:], argument)
        elif command.startswith("/"):
            raise UserError(f"{command} is not a command; {HELP}")
        elif line:
            self._ask(line)

    def _say_how(self, text: str) -> None:
        """Set the system turn, or take it away; looked at once, for a template may have none."""
        system = [Message.of("system", text)] if text else []
        self.assistant.renderer.prompt((*system, Message.of("user", "?")))
        self.system = system

    def _add_medium(self, kind: str, path: str) -> None:
        """Look at a medium once, so that a wrong path is told before the question is written."""
        if not path:
            raise UserError(f"/{kind} needs a path; {HELP}")
        turns = parse_prompt([Message("user", (MEDIA[kind](path),))], self.assistant.bundle.limits)  # type: ignore[arg-type]
        self.assistant.renderer.prompt(turns, showing=self.showing)
        self.waiting += turns[0].parts

    def _save(self, name: str) -> None:
        """Add the talk to a file, a row that the reader `messages` reads: media of files by their paths."""
        if not name:
            raise UserError(f"/save needs a file; {HELP}")
        if not self.history:
            raise UserError("there is nothing to save yet; ask something first")
        file = Path(name)
        row = {"messages": [_with_paths(message, file.parent) for message in (*self.system, *self.history)]}
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{name}: cannot be written ({error.strerror}); give another file") from None
        self.console.print(f"{len(self.history)} turns added to {name}", style="dim", markup=False, highlight=False)

    def _ask(self, line: str) -> None:
        """Stream the answer; the oldest exchanges are left out when the talk outgrows the context."""
        question = Message.of("user", *self.waiting, line)
        room = self.options["max_new_tokens"]
        talked = [*self.system, *self.history, question]
        fitted = truncate_conversation(self.assistant.renderer, talked, room=room, showing=self.showing)
        if fitted.left_out:
            self.console.print(fitted.told(), style="dim", highlight=False)
        text = self._show(self.assistant.stream(fitted.messages, **self.options))
        self.history += [question, Message.of("assistant", text)]
        self.waiting = []

    def _show(self, pieces: Generator[str, None, int]) -> str:
        started, first, text = time.perf_counter(), 0.0, ""
        while True:
            try:
                piece = next(pieces)
            except StopIteration as ended:
                tokens: int = ended.value
                break
            first = first or time.perf_counter() - started
            self.console.print(piece, end="", markup=False, highlight=False)
            text += piece
        seconds = time.perf_counter() - started
        speed = f"{tokens} tokens, {tokens / max(seconds, 1e-9):.0f} a second, the first words after {first:.2f} s"
        self.console.print(f"\n({speed})", style="dim", highlight=False)
        return text


def _with_paths(message: Message, folder: Path) -> dict[str, Any]:
    """A message as Hugging Face spells it, with paths from `folder` where files are below it, else absolute ones."""
    spelt = message.to_dict()
    for part in spelt["content"]:
        if "path" in part:
            path, home = Path(part["path"]).absolute(), folder.absolute()
            part["path"] = str(path.relative_to(home) if path.is_relative_to(home) else path)
    return spelt

"""How a template writes tools, their calls and their answers, and a conversation lowered to the turns that it has.

The form is that of Hermes 2 Pro and Qwen2.5 (github.com/NousResearch/Hermes-Function-Calling; the chat template of
Qwen2.5-7B-Instruct): tools in the system turn, calls at the end of an assistant turn, answers in a user turn. Its marks
are special tokens where the tokenizer has such; the text between two of them is tokenised as one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mmgpt.config import UserError
from mmgpt.datasets.calls import Call, dumped
from mmgpt.datasets.sample import Message, Part, Role, Text


@dataclass(frozen=True)
class Mark:
    """A piece of markup within a turn."""

    text: str


@dataclass(frozen=True)
class Spoken:
    """A turn as a template writes it: of a role that it has, its markup among the parts."""

    role: Role
    parts: tuple[Part | Mark, ...]
    is_learned: bool = True


@dataclass(frozen=True)
class ToolForm:
    """The markup of tools.

    Attributes:
        call: what opens and closes a call.
        answer: what opens and closes the answer of a tool.
        before: what stands before the list of tools.
        after: what stands after it, with a call's marks as an example.
    """

    call: tuple[str, str] = ("<tool_call>", "</tool_call>")
    answer: tuple[str, str] = ("<tool_response>", "</tool_response>")
    before: str = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    after: str = (
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )

    def listed(self, tools: Iterable[str]) -> Iterator[Part | Mark]:
        """The tools, each given as JSON, with what the model is told of calling them."""
        yield Text(self.before + "".join(f"\n{tool}" for tool in tools))
        for piece in re.split(f"({'|'.join(map(re.escape, self.call))})", self.after):
            yield Mark(piece) if piece in self.call else Text(piece)

    def called(self, call: Call) -> Iterator[Part | Mark]:
        """A call."""
        yield Mark(self.call[0])
        yield Text(f'\n{{"name": {dumped(call.name)}, "arguments": {call.arguments}}}\n')
        yield Mark(self.call[1])

    def answered(self, parts: Iterable[Part]) -> Iterator[Part | Mark]:
        """What a tool answered."""
        yield Mark(self.answer[0])
        yield Text("\n")
        yield from parts
        yield Text("\n")
        yield Mark(self.answer[1])


def spoken(messages: Sequence[Message], form: ToolForm | None, system: str | None) -> tuple[Spoken, ...]:
    """A conversation in the turns of a template.

    Args:
        messages: the conversation.
        form: how the template writes tools; None where it does not.
        system: the text of a system turn that has tools alone.
    Raises:
        UserError: if there are tools or calls and no form for them.
    """
    if not any(message.calls or message.tools or message.call_id for message in messages):
        form = None  # what a tool says in a talk without calls is a turn of its own role
    turns: list[Spoken] = []
    for number, message in enumerate(messages):
        if form is None:
            if message.calls or message.tools:
                what = "tool_calls" if message.calls else "tools"
                raise UserError(
                    f"{what}: this model's chat template has no form for them; chatml has one, or ignore the key"
                )
            turns.append(Spoken(message.role, message.parts, message.is_learned))
        elif message.role == "tool":
            goes_on = number > 0 and messages[number - 1].role == "tool"
            before = (*turns.pop().parts, Text("\n")) if goes_on else ()
            turns.append(Spoken("user", _joined((*before, *form.answered(message.parts))), message.is_learned))
        else:
            turns.append(Spoken(message.role, _with_tools(message, form, system), message.is_learned))
    return tuple(turns)


def _with_tools(message: Message, form: ToolForm, system: str | None) -> tuple[Part | Mark, ...]:
    parts: list[Part | Mark] = list(message.parts)
    if message.tools:
        if not parts and system is not None:
            parts = [Text(system)]
        parts += [*([Text("\n\n")] if parts else []), *form.listed(message.tools)]
    for call in message.calls:
        parts += [*([Text("\n")] if parts else []), *form.called(call)]
    return _joined(parts) if message.tools or message.calls else message.parts


def _joined(parts: Iterable[Part | Mark]) -> tuple[Part | Mark, ...]:
    """Parts in which what stands between two marks or media is one text."""
    joined: list[Part | Mark] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            part = Text(joined.pop().text + part.text)  # type: ignore[union-attr]
        if not isinstance(part, Text | Mark) or part.text:
            joined.append(part)
    return tuple(joined)

"""What a sample is: messages made of parts, one of them perhaps a picture or a sound.

Outside spellings of messages (Hugging Face chat, OpenAI content parts) become these types in `parse_messages`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, get_args

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.calls import Call, parse_calls, parse_tools
from mmgpt.datasets.cells import check_keys, is_ignored, well_formed
from mmgpt.datasets.media import Media
from mmgpt.datasets.parts import Part, Text, is_absent, parse_part, present, short

__all__ = ["Call", "GroundTruth", "Message", "Part", "Role", "Sample", "Text", "join_turns", "parse_messages"]

Role = Literal["system", "user", "assistant", "tool"]
Reasoning = Literal["drop", "think"]  # what becomes of reasoning_content: left out, or written before the answer
CALLS = ("tool_call", "function_call")  # roles of turns that are calls alone: ms-swift's and sharegpt's
ROLE_NAMES: dict[str, Role] = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("observation", "function", "ipython", "tool_response"), "tool"),
}
# What turns off the loss of a turn: OpenAI's, ms-swift's, and those of other trainers.
SWITCHES = ("weight", "loss", "loss_mask", "train")
KEYS = {
    "system": ("tools",),
    "user": (),
    "assistant": ("tool_calls", "function_call", "reasoning_content"),
    "tool": ("tool_call_id", "name"),
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        is_learned: whether its tokens may be targets.
        calls: of tools, at the end of an assistant turn.
        tools: that may be called, each as JSON; of a system turn. A system turn without parts has the model's own text.
        call_id: of the call that a tool's turn answers.
    """

    role: Role
    parts: tuple[Part, ...]
    is_learned: bool = True
    calls: tuple[Call, ...] = ()
    tools: tuple[str, ...] = ()
    call_id: str | None = None

    @classmethod
    def of(cls, role: Role, *parts: Part | str) -> "Message":
        """A message of parts; strings become Text."""
        return cls(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str:
        """The text of the turn, media left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> list[Media]:
        """The media of the turn, in reading order."""
        return [part for part in self.parts if isinstance(part, Media)]

    def in_words(self, reader: str) -> "Message":
        """The message, which holds no tools or calls.

        Raises:
            UserError: if it does: `reader` is who does not take them.
        """
        if self.tools or self.calls:
            raise UserError(f"{reader}: takes no tools or tool_calls from here; leave them out")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The message as Hugging Face chat spells it, with OpenAI's keys for what that has none for."""
        content = [{"type": "text", "text": p.text} if isinstance(p, Text) else p.to_part() for p in self.parts]
        told: dict[str, Any] = {"role": self.role, "content": content}
        if not self.is_learned:
            told["weight"] = 0
        if self.calls:
            told["tool_calls"] = [call.to_dict() for call in self.calls]
        if self.tools:
            told["tools"] = [json.loads(tool) for tool in self.tools]
        if self.call_id is not None:
            told["tool_call_id"] = self.call_id
        return told


@dataclass(frozen=True)
class GroundTruth:
    """What scoring knows about an answer besides its words.

    Attributes:
        answers: all that are right, where there are several: the ten of VQA.
        choices: what the answer is chosen from.
        tags: groups that are reported apart, such as {"question_type": "what color"}.
    """

    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from or to be scored on.

    Attributes:
        messages: the conversation, or with branches the context that they share.
        source: the name under which its loss is logged.
        key: names the sample in errors and results.
        branches: several continuations of `messages`. A branch whose first message has the role of the last context
            message goes on with that turn: a picture in the context, a question about it in each branch. Only
            the branches are supervised then.
        truths: for scoring; one a branch, or one of a sample without branches; none where the answer says all.
    """

    messages: tuple[Message, ...]
    source: str = ""
    key: str = ""
    branches: tuple[tuple[Message, ...], ...] = ()
    truths: tuple[GroundTruth, ...] = ()

    @property
    def media(self) -> list[Media]:
        """Every medium in reading order, those of the branches included."""
        return media_of(self.turns)

    @property
    def turns(self) -> tuple[Message, ...]:
        """Every turn, those of the branches included."""
        return (*self.messages, *(turn for branch in self.branches for turn in branch))

    def unbranched(self) -> list["Sample"]:
        """The separate samples that the branches stand for."""
        if not self.branches:
            return [self]
        return [
            replace(
                self,
                messages=join_turns(self.messages, branch),
                branches=(),
                key=f"{self.key}#{number}",
                truths=self.truths[number : number + 1],
            )
            for number, branch in enumerate(self.branches)
        ]


def join_turns(context: tuple[Message, ...], branch: tuple[Message, ...]) -> tuple[Message, ...]:
    """Context and branch as one conversation; a turn that the branch goes on with is one turn."""
    if context and branch and context[-1].role == branch[0].role:
        last = context[-1]
        turn = replace(
            branch[0],
            parts=last.parts + branch[0].parts,
            calls=last.calls + branch[0].calls,
            tools=last.tools + branch[0].tools,
        )
        return (*context[:-1], turn, *branch[1:])
    return context + branch


def parse_messages(
    raw: Sequence[Any], ignore: Sequence[str] | None = None, reasoning: Reasoning | None = None
) -> tuple[Message, ...]:
    """Messages from plain dicts in Hugging Face chat or OpenAI spelling; Message objects pass through.

    A turn of calls alone, as sharegpt and ms-swift have it, goes on with the assistant turn before it.

    Args:
        raw: the messages.
        ignore: globs of keys of turns and parts that are left out; None where the caller has no such option.
        reasoning: what becomes of `reasoning_content`; it is refused if that is not said.
    Raises:
        UserError: on an unknown role, content type or key, naming the turn and the known ones.
    """
    if isinstance(raw, str | Mapping) or not isinstance(raw, Sequence):
        raise UserError(
            f"messages must be a list of messages, not {type(raw).__name__}; write [{{'role': 'user', ...}}]"
        )
    messages: list[Message] = []
    for number, item in enumerate(raw):
        try:
            message = item if isinstance(item, Message) else _parse_message(item, messages, ignore, reasoning)
        except UserError as error:
            raise type(error)(f"message {number}: {error}") from None
        last = messages[-1] if messages else message
        is_calls = isinstance(item, Mapping) and role_name(item.get("role")) in CALLS
        if is_calls and last.role == "assistant" and last is not message and last.is_learned == message.is_learned:
            message = join_turns((messages.pop(),), (message,))[0]
        messages.append(message)
    return _in_order_of_calls(messages)


def _parse_message(
    raw: Any, before: Sequence[Message], ignore: Sequence[str] | None, reasoning: Reasoning | None
) -> Message:
    if not isinstance(raw, Mapping) or "role" not in raw:
        raise UserError(f"{short(raw)} is not a message; it needs the keys role and content")
    name, content = role_name(raw["role"]), raw.get("content")
    if name in CALLS:
        raw, name = {**raw, "tool_calls": content, "content": None}, "assistant"
    if name not in get_args(Role):
        raise UserError(f"role {raw['role']!r} is not known; {did_you_mean(name, get_args(Role))}")
    role: Role = name  # type: ignore[assignment]
    given = {
        key: value
        for key, value in present(raw).items()
        if key not in ("role", "content") and not is_ignored(key, ignore)
    }
    check_keys(given, (*KEYS[role], *SWITCHES), ignore, f"the {role} turn")
    keys = [key for key in ("tool_calls", "function_call") if key in given]
    calls = tuple(call for key in keys for call in parse_calls(given[key], key, ignore))
    tools = parse_tools(given["tools"]) if "tools" in given else ()
    parts = _parse_content(raw.get("content"), bool(calls or tools), role, ignore)
    if "reasoning_content" in given:
        parts = _with_reasoning(given["reasoning_content"], parts, reasoning)
    return Message(role, parts, _is_learned(given, role), calls, tools, _answered(given, before))


def role_name(raw: Any) -> str:
    """A role as it is called here, or as it came in lower case."""
    name = str(raw).strip().lower()
    return ROLE_NAMES.get(name, name)


def _parse_content(content: Any, may_be_absent: bool, role: Role, ignore: Sequence[str] | None) -> tuple[Part, ...]:
    if may_be_absent and is_absent(content):
        return ()
    if isinstance(content, str):
        return (Text(content),)
    if is_absent(content) and not isinstance(content, list | tuple):
        calls = " or tool_calls" if role == "assistant" else ""
        raise UserError(f"the {role} turn has no content; give it a text{calls}, or leave the turn out")
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise UserError(f"content {short(content)} is neither a string nor a list of parts")
    return tuple(parse_part(part, ignore) for part in content)


def _with_reasoning(told: Any, parts: tuple[Part, ...], reasoning: Reasoning | None) -> tuple[Part, ...]:
    """The parts after what the model thought before, in the form of Qwen3 and DeepSeek-R1."""
    if reasoning is None:
        raise UserError(
            "nothing reads 'reasoning_content'; say reasoning: think to write it before the answer as "
            "<think>...</think>, reasoning: drop to leave it out, or take it out of the prompt"
        )
    if not isinstance(told, str):
        raise UserError(f"reasoning_content {short(told)} is no text; write a string")
    if reasoning == "drop":
        return parts
    thought = "<think>\n" + told.strip("\n") + "\n</think>\n"
    if not parts:
        return (Text(thought),)  # a call follows, on a line of its own
    if isinstance(parts[0], Text):
        return (Text(thought + "\n" + parts[0].text.lstrip("\n")), *parts[1:])
    return (Text(thought + "\n"), *parts)


def _is_learned(given: Mapping[str, Any], role: Role) -> bool:
    """What the switches of a turn say; a turn without one is learned if its role is."""
    told = {key: given[key] for key in SWITCHES if key in given}
    for key, value in told.items():
        if not isinstance(value, Real) or value not in (0, 1):
            raise UserError(f"{key}={value!r} of a turn turns its loss on or off; write 1 or 0, true or false")
    if len({bool(value) for value in told.values()}) > 1:
        raise UserError(f"{' and '.join(told)} say opposite things of the turn's loss; give one")
    if role != "assistant" and any(told.values()):
        raise UserError(f"{next(iter(told))} turns on the loss of a {role} turn; only assistant turns are learned")
    return all(told.values())


def _answered(given: Mapping[str, Any], before: Sequence[Message]) -> str | None:
    """The id of the call that a tool's turn answers, which there must be, as must be the tool that it names."""
    calls = [call for message in before for call in message.calls]
    call_id = well_formed(str(given["tool_call_id"])) if "tool_call_id" in given else None
    answered = [call for call in calls if call.id == call_id or call_id is None or call.id is None]
    if call_id is not None and not answered:
        known = ", ".join(call.id for call in calls if call.id) or "none"
        raise UserError(f"tool_call_id {call_id!r} is the id of no call before it, which are: {known}")
    names = [call.name for call in answered]
    if "name" in given and given["name"] not in names:
        raise UserError(
            f"name {short(given['name'])} is no tool that a turn before calls, which are: {', '.join(names)}"
        )
    return call_id


def _in_order_of_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Answers of tools in the order of the calls that they name: templates write no ids."""
    places: dict[str | None, int] = {}
    ordered: list[Message] = []
    for message in messages:
        places |= {call.id: len(places) + at for at, call in enumerate(message.calls) if call.id is not None}
        at = len(ordered)
        while at and message.call_id in places and ordered[at - 1].role == "tool":
            if places.get(ordered[at - 1].call_id, -1) <= places[message.call_id]:
                break
            at -= 1
        ordered.insert(at, message)
    return tuple(ordered)


def media_of(messages: Iterable[Message]) -> list[Media]:
    """The media of a conversation, in reading order."""
    return [medium for message in messages for medium in message.media]

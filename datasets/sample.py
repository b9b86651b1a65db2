"""What a sample is: messages made of parts, one of them perhaps a picture or a sound.

Outside spellings of messages (Hugging Face chat, OpenAI content parts) become these types in `parse_messages`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.media import MEDIA, Audio, Image, Media, Video
from mmgpt.datasets.media_paths import is_data_url

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    """A piece of text."""

    text: str


Part = Text | Image | Audio | Video


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *parts: Part | str) -> "Message":
        """A message of parts; strings become Text."""
        return cls(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str:
        """The text of the turn, media left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def to_dict(self) -> dict[str, Any]:
        """The message as Hugging Face chat spells it."""
        content = [{"type": "text", "text": p.text} if isinstance(p, Text) else p.to_part() for p in self.parts]
        return {"role": self.role, "content": content}


@dataclass(frozen=True)
class Truth:
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
    truths: tuple[Truth, ...] = ()

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
        turn = Message(branch[0].role, context[-1].parts + branch[0].parts)
        return (*context[:-1], turn, *branch[1:])
    return context + branch


def parse_messages(raw: Sequence[Any]) -> tuple[Message, ...]:
    """Messages from plain dicts in Hugging Face chat or OpenAI spelling; Message objects pass through.

    Raises:
        UserError: on an unknown role, content type or key, naming the known ones.
    """
    if isinstance(raw, str | Mapping) or not isinstance(raw, Sequence):
        raise UserError(
            f"messages must be a list of messages, not {type(raw).__name__}; write [{{'role': 'user', ...}}]"
        )
    return tuple(item if isinstance(item, Message) else _parse_message(item) for item in raw)


def _parse_message(raw: Any) -> Message:
    if not isinstance(raw, Mapping) or "role" not in raw or "content" not in raw:
        raise UserError(f"{_short(raw)} is not a message; it needs the keys role and content")
    role = raw["role"]
    if role not in get_args(Role):
        raise UserError(f"role {role!r} is not known; {did_you_mean(str(role), get_args(Role))}")
    content = raw["content"]
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, Sequence):
        raise UserError(f"content {_short(content)} is neither a string nor a list of parts")
    return Message(role, tuple(_parse_part(part) for part in content))


def _parse_part(raw: Any) -> Part:
    if isinstance(raw, Text | Media):
        return raw  # type: ignore[return-value]
    if isinstance(raw, str):
        return Text(raw)
    if not isinstance(raw, Mapping):
        raise UserError(f"{_short(raw)} is not a content part; write {{'type': 'text', 'text': ...}}")
    kind = str(raw.get("type", "text"))
    if kind == "text" and isinstance(raw.get("text"), str):
        return Text(raw["text"])
    modality = SPELLINGS.get(kind, kind)
    if modality not in MEDIA:
        raise UserError(f"content part of type {kind!r} is not known; {did_you_mean(kind, ['text', *MEDIA])}")
    for key in ("path", "url", modality, f"{modality}_url", f"input_{modality}", "base64"):
        if raw.get(key) is not None:
            return _parse_medium(modality, raw[key], raw)
    raise UserError(f"the {modality} part {_short(raw)} holds no {modality}; give it a path, url or {modality}")


SPELLINGS = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}


def _parse_medium(modality: str, value: Any, raw: Mapping[str, Any]) -> Part:
    """A medium of a part: itself, {"url"}, OpenAI's {"data", "format"}, or {"array", "sampling_rate"} of `datasets`."""
    rate = raw.get("sampling_rate")
    if isinstance(value, Mapping):
        found = next((key for key in ("url", "path", "bytes", "array", "data") if value.get(key) is not None), None)
        if found is None:
            raise UserError(f"the {modality} part {_short(raw)} holds no {modality}; give it a url, path or data")
        rate, given = value.get("sampling_rate", rate), value[found]
        is_base64 = found == "data" and isinstance(given, str) and not is_data_url(given)
        value = f"data:{modality}/{value.get('format', 'wav')};base64,{given}" if is_base64 else given
        if found == "array":
            value = np.asarray(value)  # in the type that it has: a scale is not told without it
    if isinstance(value, Media):
        if value.modality != modality:
            raise UserError(
                f"a part of type {modality} holds {value.name()}, of kind {value.modality}; change its type"
            )
        return value  # type: ignore[return-value]
    if raw.get("base64") is value and isinstance(value, str) and not is_data_url(value):
        value = f"data:{modality}/*;base64,{value}"
    if modality == "image":
        return Image(value)
    return Audio(value, rate=rate) if modality == "audio" else Video(value, rate=raw.get("fps"))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

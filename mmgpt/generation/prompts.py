"""Prompts: media fetched from their addresses, few-shot examples as earlier turns, conversations cut to the context.

Only what a user puts into a prompt is fetched: never an address in a reply, nor one in a training set's row.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmgpt.config import UserError
from mmgpt.datasets.media import LIMITS, Limits, Media
from mmgpt.datasets.remote import download
from mmgpt.datasets.sample import Message, Part, Text, parse_messages
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import RenderContext, Rendered
from mmgpt.inputs.trimming import TooLong, drop_oldest_exchanges


@dataclass(frozen=True)
class FewShot:
    """An instruction with solved examples.

    Attributes:
        instruction: asked after the media of every example and of the prompt.
        examples: pairs of (parts, answer), most telling last.
    """

    instruction: str
    examples: Sequence[tuple[Sequence[Part | str], str]]

    def prompt(self, *parts: Part | str) -> tuple[Message, ...]:
        """The conversation that asks about `parts` after the examples.

        Raises:
            UserError: if there is neither an instruction nor a part.
        """
        turns: list[Message] = []
        for example, answer in self.examples:
            turns += [self._question(example), Message.of("assistant", answer)]
        return (*turns, self._question(parts))

    def _question(self, parts: Sequence[Part | str]) -> Message:
        if isinstance(parts, str):
            raise UserError(f"an example's parts are {parts!r}; write them as a tuple, ({parts!r},)")
        asked = Message.of("user", *parts, *([self.instruction] if self.instruction else []))
        if not asked.parts:
            raise UserError("a few-shot prompt needs an instruction or parts to ask about")
        return asked


def with_exemplars(exemplars: Sequence[tuple[Message, ...]], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Whole exchanges before a prompt; a system message stays first."""
    system = tuple(message for message in prompt[:1] if message.role == "system")
    turns = tuple(turn for exemplar in exemplars for turn in exemplar if turn.role != "system")
    return system + turns + prompt[len(system) :]


def without_media(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation in words alone."""
    return tuple(replace(m, parts=tuple(part for part in m.parts if isinstance(part, Text))) for m in messages)


def parse_prompt(raw: Sequence[Any], limits: Limits = LIMITS) -> tuple[Message, ...]:
    """Messages, their media here.

    Args:
        raw: messages in Hugging Face chat or OpenAI spelling or as Message objects.
        limits: what is larger is not fetched to its end.
    Raises:
        UserError: if a message is none, an assistant turn holds an address, or the extra that fetches is absent.
        MediaError: if an address gives nothing, too late, or too much.
    """
    messages = parse_messages(raw)
    if not any(_address_of(part) for message in messages for part in message.parts):
        return messages
    return tuple(
        replace(message, parts=tuple(_fetched(part, message.role, limits) for part in message.parts))
        for message in messages
    )


def _address_of(part: Any) -> str | None:
    path = part.path if isinstance(part, Media) else None
    return path if path and path.startswith(("http://", "https://")) else None


def _fetched(part: Any, role: str, limits: Limits) -> Any:
    address = _address_of(part)
    if address is None:
        return part
    if role == "assistant":
        raise UserError(f"{address}: stands in an assistant turn, and what a model says is not fetched; take it out")
    return replace(part, source=download(address, limits.bytes), label=address)


@dataclass(frozen=True)
class TruncatedConversation:
    """A talk that fits.

    Attributes:
        prompt: rendered, with room for the answer.
        messages: what it holds.
        left_out: what does not fit, the oldest first.
    """

    prompt: Rendered
    messages: tuple[Message, ...]
    left_out: tuple[Message, ...]

    def told(self) -> str:
        """What was left out, in words; nothing where all of it fits."""
        if not self.left_out:
            return ""
        media = Counter(part.modality for m in self.left_out for part in m.parts if not isinstance(part, Text))
        held = ", ".join(f"{count} {modality}{'s' * (count > 1)}" for modality, count in media.items())
        turns = f"the oldest {len(self.left_out)} turns"
        return f"{turns}{f' (with {held})' if held else ''} left out: over the context of the model"


def truncate_conversation(
    renderer: Renderer,
    messages: Sequence[Message],
    *,
    room: int = 1,
    key: str = "prompt",
    showing: RenderContext | None = None,
) -> TruncatedConversation:
    """Leave out a talk's oldest exchanges until it fits with `room` tokens for the answer.

    An exchange is a user turn and all that follows it, replies and tools' turns, up to the next; a system turn stays.
    The last one is kept also where it leaves less room.

    Args:
        renderer: the model's.
        messages: the talk, which ends with what is to be answered.
        room: tokens that the answer may take.
        key: what an error begins with.
        showing: media that were prepared before, and will be again; each is decoded once.
    Raises:
        UserError: if a medium cannot be used; TooLong: if the last exchange alone does not fit.
    """
    whole, showing = tuple(messages), showing or RenderContext()
    fitted: tuple[Rendered, tuple[Message, ...]] | None = None
    too_long: TooLong | None = None
    for shorter in (whole, *drop_oldest_exchanges(whole)):
        try:
            fitted = renderer.prompt(shorter, key, showing), shorter
        except TooLong as error:
            too_long = error
            continue
        if len(fitted[0].ids) + room <= renderer.context:
            break
    if fitted is None:
        raise too_long or TooLong(f"{key}: does not fit the context of {renderer.context}")
    prompt, kept = fitted
    first = int(whole[0].role == "system")
    return TruncatedConversation(prompt, kept, whole[first : first + len(whole) - len(kept)])

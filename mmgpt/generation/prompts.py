"""Few-shot prompts: examples as earlier turns of the conversation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message, Part, Text


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

"""A long talk made to fit the context: its oldest exchanges go as wholes, media and all, never a part of a turn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmgpt.datasets.sample import Message, Text
from mmgpt.inputs.chat import Renderer, TooLong
from mmgpt.inputs.rendered import Rendered, Showing
from mmgpt.inputs.trimming import without_oldest


@dataclass(frozen=True)
class FittedTalk:
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


def fit_talk(
    renderer: Renderer,
    messages: Sequence[Message],
    *,
    room: int = 1,
    key: str = "prompt",
    showing: Showing | None = None,
) -> FittedTalk:
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
    whole, showing = tuple(messages), showing or Showing()
    fitted: tuple[Rendered, tuple[Message, ...]] | None = None
    too_long: TooLong | None = None
    for shorter in (whole, *without_oldest(whole)):
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
    return FittedTalk(prompt, kept, whole[first : first + len(whole) - len(kept)])

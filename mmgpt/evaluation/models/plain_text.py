"""Questions and choices as plain text, as lm-evaluation-harness spells them: no chat template, no end token."""

from collections.abc import Sequence

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message, Text
from mmgpt.evaluation.models.model import Model
from mmgpt.generation.assistant import Choice


def plain_text(messages: Sequence[Message]) -> str:
    """A talk in words: an answer follows its question after a space, solved examples end with an empty line.

    Raises:
        UserError: if it holds a medium.
    """
    text = ""
    for message in messages:
        medium = next((part for part in message.parts if not isinstance(part, Text)), None)
        if medium is not None:
            raise UserError(f"plain text was asked for, and the prompt holds {medium.name()}; leave out `raw: true`")
        is_answer = message.role == "assistant"
        text += f" {message.text}\n\n" if is_answer else message.text + ("\n\n" if message.role == "system" else "")
    return text


def choose_plain(
    model: Model, messages: Sequence[Sequence[Message]], choices: Sequence[Sequence[str]], *, normalise: bool
) -> list[Choice]:
    """The likeliest choice after each prompt's plain text and a space.

    `normalise` divides a log-probability by the choice's letters: acc_norm there; without it, acc.
    """
    texts = [plain_text(talk) for talk in messages]
    contexts = [text for text, some in zip(texts, choices, strict=True) for _ in some]
    found = iter(model.score_texts(contexts, [f" {choice}" for some in choices for choice in some]))
    chosen = []
    for some in choices:
        scores = [sum(next(found)) / (len(choice) if normalise else 1) for choice in some]
        chosen.append(Choice.best(some, scores))
    return chosen

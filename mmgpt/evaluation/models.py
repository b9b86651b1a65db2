"""What evaluation asks of a model: any object that answers messages can be scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mmgpt.datasets.sample import Message
from mmgpt.generation.assistant import Assistant, Choice, load
from mmgpt.generation.decode import Reply
from mmgpt.training.ranks import own_device

Talk = Sequence[Message]


class Model(Protocol):
    """A model under test; an Assistant is one."""

    name: str

    def fingerprint(self) -> str:
        """Tells this model's answers from those of another one: a hash of weights and settings, or its address."""

    def chat(
        self,
        messages: Sequence[Talk],
        *,
        batch_size: int = 32,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """The reply to each talk; options as of `Assistant.chat`."""

    def choose(
        self, messages: Sequence[Talk], choices: Sequence[Sequence[str]], *, normalise: bool, batch_size: int = 32
    ) -> list[Choice]:
        """The likeliest of the choices of each talk, with the log-probability of every choice."""

    def score(self, context: Sequence[str], continuation: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the tokens of plain texts."""

    def score_texts(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the tokens of plain texts of any length; a context may be empty."""

    def excess(self, messages: Talk, room: int) -> int:
        """By how many tokens a talk with an answer of `room` tokens is over the context; 0 or less if it fits."""


def open_model(name: str, device: str = "auto") -> Assistant:
    """The model of a name: a run, a checkpoint, or an exported folder; of several GPUs it takes its process's own."""
    return load(name, device=str(own_device(device)))

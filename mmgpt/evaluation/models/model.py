"""What evaluation asks of a model: any object that answers messages can be scored."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmgpt.config import UserError
from mmgpt.datasets.sample import Message
from mmgpt.distributed import own_device
from mmgpt.evaluation.models.hf_model import open_hf
from mmgpt.evaluation.models.openai_model import OpenAIModel
from mmgpt.generation.assistant import Choice, load
from mmgpt.generation.decode import Reply

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

    def score_texts(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the tokens of plain texts of any length; a context may be empty."""

    def tokens_over_context(self, messages: Talk, room: int) -> int:
        """By how many tokens a talk with an answer of `room` tokens is over the context; 0 or less if it fits."""


def open_model(name: str | Path, device: str = "auto", *, compile: bool = False, cache_features: bool = False) -> Model:
    """The model of a name.

    `openai:URL` or `openai:URL#MODEL` is behind a server of OpenAI's kind (the key, if it wants one, is in the
    environment variable OPENAI_API_KEY); `hf:FOLDER_OR_NAME` runs in transformers; all else is a run, a checkpoint or
    an exported folder. Of several GPUs a process takes its own.

    Raises:
        UserError: if there is no such model, or it cannot be compiled; OSError: if the server cannot be reached.
    """
    kind, _, rest = str(name).partition(":")
    for option, is_set in {"compile": compile, "cache_features": cache_features}.items():
        if is_set and kind in ("openai", "hf"):
            raise UserError(f"{name}: {option} is for mmgpt's own models; leave it out")
    if kind == "openai":
        url, _, model = rest.partition("#")
        return OpenAIModel(url, model or None, key=os.environ.get("OPENAI_API_KEY"))
    if kind == "hf":
        return open_hf(rest, device)
    return load(name, device=str(own_device(device)), compile=compile, cache_features=cache_features)

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.generation.assistant import Assistant
from mmgpt.model.bundle import Bundle


@pytest.fixture
def make_assistant(make_bundle: Callable[..., Bundle]) -> Callable[..., Assistant]:
    """A random model with a loud output layer, so that its texts are varied and its choices clear."""

    def make(**options: Any) -> Assistant:
        bundle = make_bundle(**options)
        with torch.no_grad():
            bundle.model.decoder.head.weight *= 20
        return Assistant(bundle)

    return make


@pytest.fixture
def assistant(make_assistant: Callable[..., Assistant]) -> Assistant:
    return make_assistant()


@pytest.fixture
def conversations(scenes: list[Sample]) -> list[tuple[Message, ...]]:
    """Prompts of different lengths: one or two pictures, or none, and an earlier exchange."""
    asked = [sample.unbranched()[index].messages[:-1] for index, sample in enumerate(scenes[:3])]
    two = (Message.of("user", noise(1), "and", noise(2), "How many shapes are there in both of them?"),)
    talk = (Message.of("user", "Hi."), Message.of("assistant", "yes"), Message.of("user", noise(3), "Where?"))
    return [*asked, two, (Message.of("user", "2 + 2 ="),), talk]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[int]], None]]:
    """Make decoding give these ids, whatever the logits; call it before each decoding."""

    def write(ids: list[int]) -> None:
        queue = iter(ids)
        monkeypatch.setattr("mmgpt.generation.engine.next_tokens", lambda *_: torch.tensor([next(queue)]))

    return write


def noise(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (16, 16, 3)))

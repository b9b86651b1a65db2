from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.sampling import Sampler, sample_tokens, token_scores
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.multimodal import MultimodalModel


@pytest.fixture
def conversations(scenes: list[Sample]) -> list[tuple[Message, ...]]:
    """Prompts of different lengths: one or two pictures, or none, and an earlier exchange."""
    asked = [sample.unbranched()[index].messages[:-1] for index, sample in enumerate(scenes[:3])]
    two = (Message.of("user", noise(1), "and", noise(2), "How many shapes are there in both of them?"),)
    talk = (Message.of("user", "Hi."), Message.of("assistant", "yes"), Message.of("user", noise(3), "Where?"))
    return [*asked, two, (Message.of("user", "2 + 2 ="),), talk]


@pytest.fixture(scope="session")
def decode_plainly() -> Callable[..., list[list[tuple[int, float]]]]:
    """Ids and log-probabilities of a batch, one token a pass: what every faster way must give."""

    def decode(
        model: MultimodalModel, prompts: list[Rendered], samplers: list[Sampler], eos_token_id: int, count: int
    ) -> list[list[tuple[int, float]]]:
        rows: list[list[tuple[int, float]]] = [[] for _ in prompts]
        ends = [min(count, model.config.decoder.context - len(prompt.ids)) for prompt in prompts]
        cache, logits_BV = prefill(model, prompts, max(ends))
        going = list(range(len(prompts)))
        while True:
            ids_B = sample_tokens(logits_BV, [samplers[row] for row in going])
            for row, score, token in zip(going, token_scores(logits_BV, ids_B), ids_B.tolist(), strict=True):
                rows[row].append((token, score.logprob))
            left = [
                at for at, row in enumerate(going) if rows[row][-1][0] != eos_token_id and len(rows[row]) < ends[row]
            ]
            if not left:
                return rows
            kept = torch.tensor(left)
            cache.select_rows(kept)
            going = [going[at] for at in left]
            logits_BV = decode_one(model, cache, ids_B[kept])

    return decode


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[int]], None]]:
    """Make decoding give these ids, whatever the logits; call it before each decoding."""

    def write(ids: list[int]) -> None:
        queue = iter(ids)
        monkeypatch.setattr("mmgpt.generation.engine.sample_tokens", lambda *_: torch.tensor([next(queue)]))

    return write


def noise(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (16, 16, 3)))


@pytest.fixture
def logprobs_of() -> Callable[[Assistant, Rendered, list[int]], list[float]]:
    def compute(assistant: Assistant, prompt: Rendered, ids: list[int]) -> list[float]:
        """Log-probabilities of `ids` after a prompt, by one plain pass over both."""
        whole = [*prompt.ids, *ids]
        row = Rendered(whole, [-100] * len(whole), [0] * len(whole), list(range(len(whole))), prompt.media, "", "")
        model = assistant.model.eval()
        logits_TV = model.decoder.logits(model.hidden(collate([row])))[0]
        found = logits_TV[len(prompt.ids) - 1 : -1].log_softmax(dim=-1)
        return found[range(len(ids)), ids].tolist()

    return compute

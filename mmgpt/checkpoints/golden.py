"""Golden logits: a prompt and what the model answered to it when it was saved, computed again wherever it is loaded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, MediaError
from mmgpt.datasets.sample import Message, parse_messages
from mmgpt.inputs.batch import collate
from mmgpt.inputs.trimming import TooLong
from mmgpt.model.bundle import ModelBundle

GOLDEN_TOLERANCE = 1e-3  # of logits in float32, across machines
ROUGH_TOLERANCE = 0.05  # in bfloat16, as a share of the largest logit


@torch.no_grad()
def golden_logits(bundle: ModelBundle, messages: tuple[Message, ...]) -> Tensor:
    """Logits (V,) for the first token of the reply to `messages`."""
    bundle.model.eval()
    batch = collate([bundle.renderer.prompt(messages)]).to(bundle.model.device)
    return bundle.model.decoder.logits(bundle.model.hidden(batch)[0, -1]).cpu()


def _ramp() -> Image:
    """A small picture."""
    ramp_HWC = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3) % 251
    return Image(PIL.Image.fromarray(ramp_HWC.astype(np.uint8)))


def _chirp() -> Audio:
    """A quarter of a second that rises from 200 Hz to 3200 Hz."""
    seconds_S = np.arange(2000, dtype=np.float32) / 8000
    return Audio(0.5 * np.sin(2 * np.pi * (200 * seconds_S + 6000 * seconds_S**2)), rate=8000)


GOLDEN_MEDIA: dict[str, Callable[[], Image | Audio]] = {"image": _ramp, "audio": _chirp}


def make_golden(bundle: ModelBundle) -> dict[str, Any]:
    """A prompt with every modality of the model, or the first of them that the context holds, and its logits."""
    media = [GOLDEN_MEDIA[modality]() for modality in bundle.model.config.encoders]
    while True:
        messages = [Message.of("user", *media, "What is this?").to_dict()]
        try:
            logits = golden_logits(bundle, parse_messages(messages))  # of the media as they will be read again
            break
        except (MediaError, TooLong):
            if not media:
                raise
            media.pop()
    return {
        "messages": messages,
        "argmax": int(logits.argmax()),
        "first_logits": logits[:256].tolist(),
    }


def verify_golden(bundle: ModelBundle, golden: dict[str, Any], where: str) -> None:
    """Compute the golden logits again.

    Weights in bfloat16 and inputs in few bits round otherwise on another machine: their logits may differ by a share
    of the largest, and another one may be first.

    Raises:
        UserError: if they differ by more than `GOLDEN_TOLERANCE`.
    """
    logits, expected = golden_logits(bundle, parse_messages(golden["messages"])), torch.tensor(golden["first_logits"])
    rounds = bundle.quantization is not None and bundle.quantization.scheme != "int8"
    is_exact = bundle.model.decoder.embedding.weight.dtype == torch.float32 and not rounds
    gap = (logits[:256] - expected).abs().max()
    most = GOLDEN_TOLERANCE if is_exact else ROUGH_TOLERANCE * float(expected.abs().max())
    if not gap <= most or (is_exact and int(logits.argmax()) != golden["argmax"]):
        raise UserError(
            f"{where}: golden.json's logits are off by {gap:.2g}; the weights are not the ones it was written with"
        )

"""The LLaVA that training is measured with: one folder of weights that both sides read, and one batch for both.

A CLIP tower of 196 patches before a Llama, about 23 million parameters at 8,192 tokens, float32. A side imports its
library inside its functions: what it imports is part of its memory.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW

DECODER = {"width": 384, "depth": 6, "heads": 6, "ffn_width": 1536, "context": 4096}
TOWER = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
}
PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],  # of OpenAI's CLIP
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}
IMAGE_TOKENS = 196
QUESTION, ANSWER = (8, 64), (8, 192)  # the fewest and the most tokens
ROW_TOKENS, GROUP_TOKENS = 1024, 1024  # of a packed row, and of a micro-batch of rows of like lengths
RATE, MAX_NORM, IGNORED = 1e-4, 1.0, -100
MODULES = {  # what each side imports
    "ours": ["mmgpt.inputs.batch", "mmgpt.checkpoints.save_load", "mmgpt.training.step"],
    "theirs": ["transformers.models.llava.modeling_llava"],
}
WAYS = ("padded", "by length", "packed")


@dataclass(frozen=True)
class Talk:
    """A picture, a question about it and the answer, of which the latter alone is learned."""

    ids: list[int]
    labels: list[int]
    pixels_CHW: Tensor  # bytes


def make_talks(count: int, slot: int) -> list[Talk]:
    """Random talks of unequal lengths, the same ones for the same count."""
    rng, draws = random.Random(0), torch.Generator().manual_seed(0)
    talks = []
    for _ in range(count):
        asked, told = ([rng.randrange(300, 8000) for _ in range(rng.randint(*span))] for span in (QUESTION, ANSWER))
        side = TOWER["image_size"]
        pixels_CHW = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=draws)
        before = [slot] * IMAGE_TOKENS + asked
        talks.append(Talk(before + told, [IGNORED] * len(before) + told, pixels_CHW))
    return talks


def slot_of(folder: Path) -> int:
    """The token that stands for a patch of a picture."""
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_token_index"])


def write_model(folder: Path, vocabulary: int, layer: int) -> int:
    """Write random weights in transformers' LLaVA layout; the tower's features are those of a layer, -1 the last.

    Returns:
        How many parameters it has.
    """
    from mmgpt.checkpoints.convert import export
    from mmgpt.encoders.pretrained.hf_vision import hf_vision_fields
    from mmgpt.inputs.tokenizer import Tokenizer
    from mmgpt.model.bundle import new_bundle
    from mmgpt.model.config import ModelConfig

    fields = hf_vision_fields({"model_type": "clip_vision_model", **TOWER}, PIXELS, "the benchmark's tower")
    tree = {
        "decoder": {"family": "llama", **DECODER},
        "encoders": {"image": {"kind": "timm", **fields, "layer": layer, "post_norm": False}},
        "adapters": {"image": {"kind": "mlp"}},
    }
    torch.manual_seed(0)
    bundle = new_bundle(ModelConfig.model_validate(tree), Tokenizer.train(["digits"], 300), "plain", vocabulary)
    for name, weight in bundle.model.named_parameters():  # as made, blocks begin as the identity and norms do nothing
        is_scale = weight.ndim == 1 and name.endswith("weight")
        std = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        nn.init.normal_(weight, mean=float(is_scale), std=std)
    export(bundle, folder, "hf-llava")
    return sum(weight.numel() for weight in bundle.model.parameters())


class Ours:
    """mmgpt's model and its train step over the talks, laid out in one of three ways."""

    def __init__(self, folder: Path, talks: Sequence[Talk], way: str) -> None:
        from mmgpt.checkpoints.save_load import load_bundle
        from mmgpt.inputs.batch import collate_packed, pack, split_into_micro_batches
        from mmgpt.inputs.rendered import Medium, Rendered

        self.model = load_bundle(folder).model.train()
        self.optimizer = AdamW(self.model.parameters(), lr=RATE, fused=True)
        rendered = []
        for number, talk in enumerate(talks):
            medium = Medium("image", talk.pixels_CHW, IMAGE_TOKENS, "picture")
            count = len(talk.ids)
            places = list(range(count))
            rendered.append(Rendered(talk.ids, talk.labels, [0] * count, places, [medium], f"talk {number}", "bench"))
        rows = pack(rendered, ROW_TOKENS) if way == "packed" else [[one] for one in rendered]
        groups = split_into_micro_batches(rows, GROUP_TOKENS) if way == "by length" else [rows]
        self.batches = [collate_packed(group) for group in groups]

    def step(self) -> tuple[float, float]:
        """One update; the loss and the norm of the gradient before it is clipped."""
        from mmgpt.training.step import train_step

        stats = train_step(self.model, [self.optimizer], self.batches, max_norm=MAX_NORM)
        return stats.loss, stats.grad_norm

    @torch.inference_mode()
    def logits(self) -> list[Tensor]:
        """Those of each row of the first batch, padding included."""
        (batch, *_) = self.batches
        return list(self.model.decoder.logits(self.model.hidden(batch)))


class Theirs:
    """transformers' model and a train step as its Trainer takes it, over the talks padded to the longest."""

    def __init__(self, folder: Path, talks: Sequence[Talk]) -> None:
        from transformers import LlavaForConditionalGeneration

        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
        self.optimizer = AdamW(self.model.parameters(), lr=RATE, fused=True)
        mean_C11, std_C11 = (torch.tensor(PIXELS[name])[:, None, None] for name in ("image_mean", "image_std"))
        pixels_BCHW = torch.stack([talk.pixels_CHW for talk in talks])
        self.inputs = {
            "input_ids": _pad([talk.ids for talk in talks], 0),
            "attention_mask": _pad([[1] * len(talk.ids) for talk in talks], 0),
            "pixel_values": (pixels_BCHW / 255 - mean_C11) / std_C11,
        }
        self.labels = _pad([talk.labels for talk in talks], IGNORED)

    def step(self) -> tuple[float, float]:
        """One update; the loss and the norm of the gradient before it is clipped."""
        loss = self.model(**self.inputs, labels=self.labels).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), float(norm)

    @torch.inference_mode()
    def logits(self) -> list[Tensor]:
        """Those of each talk, padding included."""
        return list(self.model(**self.inputs).logits)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

"""Prefill, then one token at a time for a batch of prompts, over a key-value cache.

Shape letters: B rows, T tokens of the longest prompt, W wanted tokens of a row, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.cache import KVCache
from mmgpt.model.decoder import Decoder, cached_attention_mask
from mmgpt.model.multimodal import MultimodalModel


@dataclass
class Reply:
    """An answer, finished or on its way.

    Attributes:
        text: the answer, without end token and stop string.
        tokens: every id decoded, the end token included.
        logprobs: one a token, under the model before sampling.
        finish_reason: `stop` at an end token or stop string, `length` at the budget or the context's end,
            `cancelled` where nobody waited for the rest.
        top: with `top_logprobs`, the likeliest (id, logprob) at each token, likeliest first.
        seconds_to_first, seconds: from when the request was handed in to its first token, and to its last.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    seconds_to_first: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)


@torch.inference_mode()
def prefill(model: MultimodalModel, prompts: Sequence[Rendered], room: int) -> tuple[KVCache, Tensor]:
    """Read the prompts: a cache with `room` slots more than the longest, and the logits (B, V) that follow each."""
    batch = collate(prompts).to(model.device)
    cache = model.decoder.new_cache(len(prompts), batch.ids.shape[1] + room)
    counts = [len(prompt.ids) for prompt in prompts]
    return cache, model.decoder.logits(extend(model, cache, model.embed(batch), [0] * len(prompts), counts))


@torch.inference_mode()
def extend(
    model: MultimodalModel,
    cache: KVCache,
    x_BTD: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    output_positions_BW: Tensor | None = None,
) -> Tensor:
    """Append several tokens to every row.

    Args:
        model: whose decoder it is.
        cache: with slots for all T of the longest row; padding is written over later.
        x_BTD: embeddings, padded at their ends.
        starts: tokens that each row holds already.
        counts: tokens of each row without padding.
        output_positions_BW: indexes into T of the tokens whose hidden states are wanted.
    Returns:
        Hidden states (B, W, D) of the wanted tokens, or (B, D) of the last of each row.
    """
    starts_B, counts_B = (torch.tensor(list(given), device=x_BTD.device) for given in (starts, counts))
    length = x_BTD.shape[1]
    slots_BT = starts_B[:, None] + torch.arange(length, device=x_BTD.device)
    attention_mask = cached_attention_mask(slots_BT, max(starts) + length) if any(starts) else None
    lasts_BW = (counts_B - 1)[:, None] if output_positions_BW is None else output_positions_BW
    hidden_BWD = model.decoder(x_BTD, slots_BT, attention_mask, cache=cache, output_positions_BW=lasts_BW)
    cache.lengths_B = starts_B + counts_B
    out: Tensor = hidden_BWD[:, 0] if output_positions_BW is None else hidden_BWD
    return out


@torch.inference_mode()
def decode_one(model: MultimodalModel, cache: KVCache, ids_B: Tensor) -> Tensor:
    """Append one token to every row; the logits (B, V) that follow."""
    logits_BV = one_step(model.decoder, cache, ids_B, int(cache.lengths_B.max()) + 1)
    cache.lengths_B = cache.lengths_B + 1
    return logits_BV


@torch.inference_mode()
def decode_many(model: MultimodalModel, cache: KVCache, rows: Sequence[Sequence[int]]) -> Tensor:
    """Read one or more tokens after every row's text: the logits (B, T, V) that follow each; `cache.lengths_B` stays.

    How many of a row's tokens are kept is told by the length that the caller sets; the slots of the others are free.
    """
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    positions_BT = cache.lengths_B[:, None] + torch.arange(longest, device=model.device)
    attention_mask = cached_attention_mask(positions_BT, int(cache.lengths_B.max()) + longest)
    hidden_BTD = model.decoder(model.decoder.embed(ids_BT), positions_BT, attention_mask, cache=cache)
    return model.decoder.logits(hidden_BTD)


def one_step(decoder: Decoder, cache: KVCache, ids_B: Tensor, reach: int) -> Tensor:
    """The logits (B, V) after one more token a row; `reach` slots of the cache are looked at, the new ones included."""
    positions_B1 = cache.lengths_B[:, None]
    attention_mask = cached_attention_mask(positions_B1, reach)
    hidden_B1D = decoder(decoder.embed(ids_B[:, None]), positions_B1, attention_mask, cache=cache)
    return decoder.logits(hidden_B1D[:, 0])


def text_of(tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str]) -> str:
    """The text of an answer's tokens, up to the first stop string."""
    text = tokenizer.decode(tokens)
    return text[: cut_at(text, stops)]


def cut_at(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None

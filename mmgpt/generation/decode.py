"""Prefill, then one token at a time for a batch of prompts, over a key-value cache.

Shape letters: B rows, T tokens of the longest prompt, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgpt.generation.sampling import GenerateConfig, check_logits, make_chooser, next_tokens
from mmgpt.inputs.batch import collate
from mmgpt.inputs.chat import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.decoder import cached_visible
from mmgpt.model.layers import KVCache
from mmgpt.model.multimodal import MultimodalModel


@dataclass(frozen=True)
class Token:
    """One decoded token of row `row`, with its log-probability under the model before sampling."""

    row: int
    id: int
    logprob: float


@dataclass
class Reply:
    """A finished answer.

    Attributes:
        text: the answer, without end token and stop string.
        tokens: every id decoded, the end token included.
        logprobs: one a token.
        finish_reason: `stop` at an end token or stop string, `length` at the budget or the context's end.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@torch.inference_mode()
def prefill(model: MultimodalModel, prompts: Sequence[Rendered], room: int) -> tuple[KVCache, Tensor]:
    """Read the prompts: a cache with `room` slots more than the longest, and the logits (B, V) that follow each."""
    batch = collate(prompts).to(model.device)
    rows, longest = batch.ids.shape
    slots_BT = torch.arange(longest, device=model.device).expand(rows, -1)  # padding gets slots that are written over
    cache = model.decoder.new_cache(rows, longest + room)
    cache.coming_B = torch.tensor([len(prompt.ids) for prompt in prompts], device=model.device)
    hidden_BTD = model.decoder(model.embed(batch), slots_BT, cache=cache)
    cache.lengths_B = cache.coming_B
    last_BD = hidden_BTD[torch.arange(rows, device=model.device), cache.lengths_B - 1]
    return cache, model.decoder.logits(last_BD)


@torch.inference_mode()
def decode_one(model: MultimodalModel, cache: KVCache, ids_B: Tensor) -> Tensor:
    """Append one token to every row; the logits (B, V) that follow."""
    positions_B1 = cache.lengths_B[:, None]
    visible = cached_visible(positions_B1, int(cache.lengths_B.max()) + 1)
    cache.coming_B = torch.ones_like(cache.lengths_B)
    hidden_B1D = model.decoder(model.decoder.embed(ids_B[:, None]), positions_B1, visible, cache=cache)
    cache.lengths_B = cache.lengths_B + 1
    return model.decoder.logits(hidden_B1D[:, 0])


def decode(
    model: MultimodalModel,
    prompts: Sequence[Rendered],
    options: GenerateConfig,
    finished: set[int],
    end: int,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Token]:
    """Tokens of all rows, step by step. A row ends at token `end`, or when the caller puts it into `finished`."""
    context = model.config.decoder.context
    room = min(options.max_new_tokens, context - min(len(prompt.ids) for prompt in prompts))
    cache, logits_BV = prefill(model, prompts, room)
    rows = list(range(len(prompts)))
    choosers = [make_chooser(options, tokenizer, options.seed + row, prompts[row].ids, end) for row in rows]
    for step in range(room):
        check_logits(logits_BV)
        ids_B = next_tokens(logits_BV, [choosers[row] for row in rows])
        logprobs_B = logits_BV.log_softmax(dim=-1).gather(1, ids_B[:, None])[:, 0]
        for row, token, logprob in zip(rows, ids_B.tolist(), logprobs_B.tolist(), strict=True):
            yield Token(row, token, logprob)
            if token == end:
                finished.add(row)
        lengths = cache.lengths_B.tolist()
        going = [i for i, row in enumerate(rows) if row not in finished and lengths[i] + 1 < context]
        if not going or step + 1 == room:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            cache.keep(kept)
            ids_B, rows = ids_B[kept], [rows[i] for i in going]
        logits_BV = decode_one(model, cache, ids_B)


def generate(
    model: MultimodalModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Rendered],
    options: GenerateConfig,
    end: int,
) -> list[Reply]:
    """Answer a batch of prompts."""
    replies = [Reply() for _ in prompts]
    finished: set[int] = set()
    for token in decode(model, prompts, options, finished, end, tokenizer):
        reply = replies[token.row]
        reply.tokens.append(token.id)
        reply.logprobs.append(token.logprob)
        if token.id == end:
            reply.finish_reason = "stop"
        elif options.stop and cut_at(tokenizer.decode(reply.tokens), options.stop) is not None:
            reply.finish_reason = "stop"
            finished.add(token.row)
    for reply in replies:
        text = tokenizer.decode(reply.tokens)
        cut = cut_at(text, options.stop)
        reply.text = text if cut is None else text[:cut]
    return replies


def cut_at(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None

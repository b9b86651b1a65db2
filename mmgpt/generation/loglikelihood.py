"""Log-probabilities of given continuations: a prompt is read once, its continuations share what was read.

Shape letters: B rows, T tokens, N scored positions, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import UserError
from mmgpt.generation.decode import extend
from mmgpt.generation.prefill import Prefiller
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.cache import KVCache
from mmgpt.model.decoder import Decoder

MAX_CACHE_SLOTS = 1 << 13  # of the cache, prompts included, in which continuations are scored together
MAX_LOGITS = 1 << 24  # numbers

Pair = tuple[int, int]  # row of a prompt in its group, number of a continuation


class Window(NamedTuple):
    """A stretch of a long text: tokens from `start` are read, those from `first` to `stop` are scored."""

    start: int
    first: int
    stop: int


def windows(first: int, length: int, context: int) -> Iterator[Window]:
    """Windows in which the tokens from `first` to the end of a text are scored once each.

    The first window is a whole context, each later one scores half a context after the half before it.

    Raises:
        UserError: if what stands before `first` leaves no room in the context.
    """
    if first >= context:
        raise UserError(f"{first} tokens before the text, over the context of {context}; shorten them")
    stop = min(context, length)
    yield Window(0, first, stop)
    while stop < length:
        first, stop = stop, min(stop + max(1, context // 2), length)
        yield Window(stop - context, first, stop)


@torch.inference_mode()
def score(
    prefiller: Prefiller, prompts: Sequence[Rendered], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[list[float]]]:
    """Log-probabilities of the tokens of each continuation, by prompt.

    Args:
        prefiller: of the model; it is set to evaluation.
        prompts: any number, each read once.
        continuations: for each prompt its own, as token ids, none of them empty.
    """
    prefiller.model.eval()
    texts = [prefiller.text(prompt) for prompt in prompts]
    numbers = {text: number for number, text in enumerate(texts)}
    scores: list[list[list[float]]] = [[] for _ in texts]
    while numbers:
        group, slots = prefiller.next_batch(list(numbers))
        cache = prefiller.model.decoder.new_cache(len(group), slots)
        logits_BV = prefiller.read(cache, group)
        places = [numbers.pop(text) for text in group]
        wanted = [[list(ids) for ids in continuations[place]] for place in places]
        lengths = [len(text) for text in group]
        for place, found in zip(places, _score_group(prefiller, cache, lengths, logits_BV, wanted), strict=True):
            scores[place] = found
    return scores


def _score_group(
    prefiller: Prefiller, cache: KVCache, lengths: list[int], logits_BV: Tensor, wanted: list[list[list[int]]]
) -> list[list[list[float]]]:
    first_BV = logits_BV.log_softmax(dim=-1)
    scores = [[[float(first_BV[row, ids[0]])] for ids in choices] for row, choices in enumerate(wanted)]
    pairs = [(row, number) for row, choices in enumerate(wanted) for number, ids in enumerate(choices) if len(ids) > 1]
    pairs.sort(key=lambda pair: len(wanted[pair[0]][pair[1]]))
    for chunk in _chunks(pairs, [lengths[row] + len(wanted[row][number]) for row, number in pairs]):
        rest = [wanted[row][number] for row, number in chunk]
        starts = [lengths[row] for row, _ in chunk]
        own = prefiller.model.decoder.new_cache(len(chunk), max(starts) + max(map(len, rest)))
        for at, (row, _) in enumerate(chunk):
            own.copy_row(at, cache.view(row, 1), lengths[row])
        for (row, number), found in zip(chunk, _extended(prefiller, own, starts, rest), strict=True):
            scores[row][number] += found
    return scores


def _chunks(pairs: list[Pair], slots: list[int]) -> Iterator[list[Pair]]:
    """Pairs in order, as many at a time as fit the slots."""
    chunk: list[Pair] = []
    most = 0
    for pair, size in zip(pairs, slots, strict=True):
        most = max(most, size)
        if chunk and (len(chunk) + 1) * most > MAX_CACHE_SLOTS:
            yield chunk
            chunk, most = [], size
        chunk.append(pair)
    if chunk:
        yield chunk


def _extended(prefiller: Prefiller, cache: KVCache, starts: list[int], texts: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of all tokens but the first of each text, which goes on after what its row holds."""
    decoder, device = prefiller.model.decoder, prefiller.model.device
    counts = [len(ids) - 1 for ids in texts]
    read_BT = pad_sequence([torch.tensor(ids[:-1]) for ids in texts], batch_first=True).to(device)
    all_BT = torch.arange(read_BT.shape[1], device=device).expand_as(read_BT)
    hidden_BTD = extend(prefiller.model, cache, decoder.embed(read_BT), starts, counts, all_BT)
    hidden_ND = hidden_BTD[all_BT < torch.tensor(counts, device=device)[:, None]]
    targets_N = torch.tensor([token for ids in texts for token in ids[1:]], device=device)
    logprobs = _logprobs(decoder, hidden_ND, targets_N)
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [logprobs[eos_token_id - count : eos_token_id] for eos_token_id, count in zip(ends, counts, strict=True)]


def _logprobs(decoder: Decoder, hidden_ND: Tensor, targets_N: Tensor) -> list[float]:
    max_batch = max(1, MAX_LOGITS // decoder.embedding.num_embeddings)
    found: list[float] = []
    for some_ND, some_N in zip(hidden_ND.split(max_batch), targets_N.split(max_batch), strict=True):
        logprobs_NV = decoder.logits(some_ND).log_softmax(dim=-1)
        found += logprobs_NV.gather(1, some_N[:, None])[:, 0].tolist()
    return found

"""Speculative decoding: several tokens are guessed cheaply and judged by the model in one pass.

A guess is taken where the request's own sampler chooses that very token, so answers are those of plain decoding, greedy
or sampled by the same seed, with penalties and constraints. (Leviathan et al. 2022, arXiv:2211.17192, in its greedy
case; guesses from the text so far are prompt look-up, Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.)

Shape letters: B rows, T tokens of a pass, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.sampling import Sampler, check_logits
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.cache import KVCache
from mmgpt.model.decoder import cached_attention_mask
from mmgpt.model.multimodal import MultimodalModel

MAX_NGRAM = 3  # tokens that the end of a text must share with an earlier place, tried from here down to 1


@dataclass(frozen=True)
class VerifiedToken:
    """A token of row `row` that the model chose, with its log-probability under the model before any option."""

    row: int
    id: int
    logprob: float


class Proposer(Protocol):
    """Guesses how texts go on."""

    def propose(self, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Up to `count` ids that may follow each text, which is as in the last call with what was decoded since."""

    def select_rows(self, rows: Tensor) -> None:
        """Forget all texts but these."""


class PromptLookup:
    """Guesses that a text goes on as it did where its last few tokens stood before."""

    def propose(self, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Up to `count` ids a text."""
        return [look_up(text, count) for text in texts]

    def select_rows(self, rows: Tensor) -> None:
        """Nothing is kept from call to call."""


def look_up(text: Sequence[int], count: int) -> list[int]:
    """The `count` ids that follow the last earlier place of the text's end; what is copied may run into the copy."""
    ids_T = np.asarray(text)
    for length in range(min(MAX_NGRAM, len(text) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(ids_T[:-1], length)
        places = np.flatnonzero((windows == ids_T[-length:]).all(axis=1))
        if len(places):
            at = int(places[-1]) + length
            return [text[at + step % (len(text) - at)] for step in range(count)]
    return []


class DraftModel:
    """Guesses by a smaller model of the same vocabulary, greedily."""

    def __init__(self, draft: MultimodalModel, model: MultimodalModel, prompts: Sequence[Rendered], room: int) -> None:
        """Read the prompts.

        Args:
            draft: the smaller model; media are shown to it if it has the encoder and adapter that they were prepared
                for, and it sees their placeholders else.
            model: whose tokens are guessed.
            prompts: the texts that the first guesses go on from.
            room: tokens that they may grow by, guesses included.
        """
        self.draft, self.vocab = draft, min(draft.vocab_size, model.vocab_size)
        ours, theirs = model.config, draft.config
        shared = {
            modality
            for modality in ours.encoders.keys() & theirs.encoders.keys()
            if (ours.encoders[modality], ours.adapters[modality])
            == (theirs.encoders[modality], theirs.adapters[modality])
        }
        shown = [
            replace(
                one,
                ids=[min(token, draft.vocab_size - 1) for token in one.ids],
                media=[medium for medium in one.media if medium.modality in shared],
            )
            for one in prompts
        ]
        longest = max(len(one.ids) for one in prompts)
        self.cache = prefill(draft, shown, room)[0] if longest < theirs.decoder.context else None

    def propose(self, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Up to `count` ids a text; none once a text fills the draft's context."""
        if self.cache is None:
            return [[] for _ in texts]
        fresh = [text[read:] for text, read in zip(texts, self.cache.lengths_B.tolist(), strict=True)]
        most = min(self.cache.size, self.draft.config.decoder.context)
        if max(map(len, texts)) + max(count, *map(len, fresh)) > most:
            return [[] for _ in texts]
        ids_BT = pad(fresh).clamp(max=self.draft.vocab_size - 1).to(self.draft.device)
        counts_B = torch.tensor([len(ids) for ids in fresh], device=self.draft.device)
        logits_BTV = decode_many(self.draft, self.cache, ids_BT)
        accept(self.cache, counts_B)
        read_B = self.cache.lengths_B
        logits_BV = logits_BTV[torch.arange(len(texts), device=ids_BT.device), counts_B - 1]
        steps = [logits_BV[:, : self.vocab].argmax(dim=-1)]
        for _ in range(count - 1):
            steps.append(decode_one(self.draft, self.cache, steps[-1])[:, : self.vocab].argmax(dim=-1))
        self.cache.lengths_B = read_B  # guesses are read again once they are taken
        proposals: list[list[int]] = torch.stack(steps, dim=1).tolist()
        return proposals

    def select_rows(self, rows: Tensor) -> None:
        """Forget all texts but these."""
        if self.cache is not None:
            self.cache.select_rows(rows.to(self.draft.device))


def check_draft(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Refuse a draft model that reads other tokens.

    Raises:
        UserError: if the vocabularies differ; names a token.
    """
    own, other = tokenizer.core.get_vocab(), draft.core.get_vocab()
    if own != other:
        token = min(token for token in own.keys() | other.keys() if own.get(token) != other.get(token))
        raise UserError(
            f"the draft model has another tokenizer: {token!r} is {other.get(token, 'absent')} there and "
            f"{own.get(token, 'absent')} here; take one trained with the same tokenizer"
        )


@torch.inference_mode()
def decode_many(model: MultimodalModel, cache: KVCache, ids_BT: Tensor) -> Tensor:
    """Read T tokens after every row's text: the logits (B, T, V) that follow each. `accept` says which of them stay."""
    positions_BT = cache.lengths_B[:, None] + torch.arange(ids_BT.shape[1], device=ids_BT.device)
    attention_mask = cached_attention_mask(positions_BT, int(cache.lengths_B.max()) + ids_BT.shape[1])
    hidden_BTD = model.decoder(model.decoder.embed(ids_BT), positions_BT, attention_mask, cache=cache)
    return model.decoder.logits(hidden_BTD)


@torch.inference_mode()
def accept(cache: KVCache, counts_B: Tensor) -> None:
    """Keep the first `counts_B` tokens, at least one, of each row's last `decode_many`; the others' slots are free."""
    cache.lengths_B = cache.lengths_B + counts_B


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Ids (B, T), zeros behind the shorter rows."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def speculate(
    model: MultimodalModel,
    prompts: Sequence[Rendered],
    samplers: Sequence[Sampler],
    proposer: Proposer,
    finished: set[int],
    eos_token_id: int,
    *,
    max_new_tokens: int,
    draft_tokens: int,
) -> Iterator[VerifiedToken]:
    """Tokens of all rows, those of a pass row by row. A row ends at `eos_token_id`, or when put into `finished`.

    Args:
        model: judges.
        prompts: the rows.
        samplers: one a row.
        proposer: whose guesses are judged.
        finished: rows that are done; the caller may add to it.
        eos_token_id: the end token.
        max_new_tokens: of a row; the end of the context ends it too.
        draft_tokens: guessed at the most for a pass.
    """
    context = model.config.decoder.context
    texts = [list(prompt.ids) for prompt in prompts]
    ends = [min(len(text) + max_new_tokens, context) for text in texts]
    cache, logits_BV = prefill(model, prompts, max(ends) - max(map(len, texts)) + draft_tokens)
    rows, logits_BTV = list(range(len(prompts))), logits_BV[:, None]
    proposals: list[list[int]] = [[] for _ in rows]
    is_prompt = True
    while True:
        check_logits(logits_BTV)
        counts = []
        for at, row in enumerate(rows):
            counts.append(0)
            for token, logprob in _verify(logits_BTV[at], samplers[row], proposals[at]):
                counts[-1] += 1
                texts[row].append(token)
                yield VerifiedToken(row, token, logprob)
                if token == eos_token_id or len(texts[row]) == ends[row]:
                    finished.add(row)
                if row in finished:
                    break
        if not is_prompt:
            accept(cache, torch.tensor(counts, device=model.device))
        is_prompt = False
        going = [at for at, row in enumerate(rows) if row not in finished]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            cache.select_rows(kept)
            proposer.select_rows(kept)
            rows = [rows[at] for at in going]
        own = [texts[row] for row in rows]
        wanted = max(ends[row] - len(texts[row]) for row in rows) - 1  # a pass gives one token more than was guessed
        count = min(draft_tokens, wanted, context - max(map(len, own)))
        proposals = proposer.propose(own, count) if count > 0 else [[] for _ in own]
        ids_BT = pad([[text[-1], *proposal] for text, proposal in zip(own, proposals, strict=True)])
        logits_BTV = decode_many(model, cache, ids_BT.to(model.device))


def _verify(logits_TV: Tensor, sampler: Sampler, proposal: Sequence[int]) -> Iterator[tuple[int, float]]:
    """The ids and log-probabilities that one pass gives a row: the guessed ones it chooses, and one more."""
    logits_TV = logits_TV[: len(proposal) + 1]
    logprobs_TV = logits_TV.log_softmax(dim=-1)
    likeliest = logits_TV.argmax(dim=-1).tolist()
    for at in range(len(proposal) + 1):
        token = likeliest[at] if sampler.is_plain else sampler.sample(logits_TV[at])
        yield token, float(logprobs_TV[at, token])
        if at < len(proposal) and token != proposal[at]:
            return

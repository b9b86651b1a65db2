"""Speculative decoding: several tokens are guessed cheaply; the engine lets the model judge them in one pass.

A guess is taken where the request's own sampler chooses that very token, so answers are those of plain decoding, greedy
or sampled by the same seed, with penalties and constraints. (Leviathan et al. 2022, arXiv:2211.17192, in its greedy
case; guesses from the text so far are prompt look-up, Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.)

Shape letters: B rows, T tokens of a pass, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from mmgpt.config import UserError
from mmgpt.generation.decode import decode_many, decode_one, prefill
from mmgpt.generation.prefill import TokenSequence
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.cache import KVCache
from mmgpt.model.multimodal import MultimodalModel

SPARE_SLOTS = 64  # of the draft's cache, so that it is not made anew for every token
MAX_NGRAM = 3  # tokens that the end of a text must share with an earlier place, tried from here down to 1


class Proposer(Protocol):
    """Guesses how texts go on."""

    def propose(self, texts: Sequence[TokenSequence], count: int) -> list[list[int]]:
        """Up to `count` ids that may follow each text, whose last token is one that was decoded."""


class PromptLookup:
    """Guesses that a text goes on as it did where its last few tokens stood before."""

    def propose(self, texts: Sequence[TokenSequence], count: int) -> list[list[int]]:
        """Up to `count` ids a text."""
        return [look_up(text.ids, count) for text in texts]


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

    def __init__(self, draft: MultimodalModel, model: MultimodalModel) -> None:
        """A draft that has read nothing yet.

        Args:
            draft: the smaller model; media are shown to it if it has the encoder and adapter that they were prepared
                for, and it sees their placeholders else.
            model: whose tokens are guessed.
        """
        self.draft, self.vocab = draft.eval(), min(draft.vocab_size, model.vocab_size)
        ours, theirs = model.config, draft.config
        self.shared = {
            modality
            for modality in ours.encoders.keys() & theirs.encoders.keys()
            if (ours.encoders[modality], ours.adapters[modality])
            == (theirs.encoders[modality], theirs.adapters[modality])
        }
        self.texts: list[TokenSequence] = []  # of the rows of the cache
        self.cache: KVCache | None = None

    def propose(self, texts: Sequence[TokenSequence], count: int) -> list[list[int]]:
        """Up to `count` ids a text; none once a text fills the draft's context."""
        read = {text: len(text.prompt.ids) for text in texts}
        if self.cache is not None:
            read |= dict(zip(self.texts, self.cache.lengths_B.tolist(), strict=True))
        fresh = max(len(text) - read[text] for text in texts)
        reach = {text: max(read[text] + fresh, len(text) + count) for text in texts}  # slots, padding included
        fitting = [text for text in texts if reach[text] <= self.draft.config.decoder.context]
        if not fitting:
            return [[] for _ in texts]
        size = max(reach[text] for text in fitting)
        guesses = dict(zip(fitting, self._greedy(fitting, size, count), strict=True))
        return [guesses.get(text, []) for text in texts]

    @torch.inference_mode()
    def _greedy(self, texts: list[TokenSequence], size: int, count: int) -> list[list[int]]:
        cache = self._read(texts, size)
        fresh = [text.ids[read:] for text, read in zip(texts, cache.lengths_B.tolist(), strict=True)]
        logits_BTV = decode_many(self.draft, cache, [[self._known(token) for token in ids] for ids in fresh])
        counts_B = torch.tensor([len(ids) for ids in fresh], device=self.draft.device)
        read_B = cache.lengths_B = cache.lengths_B + counts_B
        logits_BV = logits_BTV[torch.arange(len(texts), device=self.draft.device), counts_B - 1]
        steps = [logits_BV[:, : self.vocab].argmax(dim=-1)]
        for _ in range(count - 1):
            steps.append(decode_one(self.draft, cache, steps[-1])[:, : self.vocab].argmax(dim=-1))
        cache.lengths_B = read_B  # guesses are read again once they are taken
        guesses: list[list[int]] = torch.stack(steps, dim=1).tolist()
        return guesses

    def _read(self, texts: list[TokenSequence], size: int) -> KVCache:
        """The cache with a row for each text, in which at least its prompt was read, and `size` slots."""
        if self.cache is not None and self.texts == texts and self.cache.size >= size:
            return self.cache
        held = {text: row for row, text in enumerate(self.texts)}
        new = [text for text in texts if text not in held]
        read = prefill(self.draft, [self._shown(text.prompt) for text in new], 0)[0] if new else None
        cache = self.draft.decoder.new_cache(len(texts), min(size + SPARE_SLOTS, self.draft.config.decoder.context))
        lengths = []
        for row, text in enumerate(texts):
            source, at = (self.cache, held[text]) if text in held else (read, new.index(text))
            assert source is not None
            lengths.append(int(source.lengths_B[at]))
            cache.copy_row(row, source.view(at, 1), lengths[-1])
        cache.lengths_B = torch.tensor(lengths, device=self.draft.device)
        self.texts, self.cache = texts, cache
        return cache

    def _shown(self, prompt: Rendered) -> Rendered:
        media = [medium for medium in prompt.media if medium.modality in self.shared]
        return replace(prompt, ids=[self._known(token) for token in prompt.ids], media=media)

    def _known(self, token: int) -> int:
        return min(token, self.draft.vocab_size - 1)


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

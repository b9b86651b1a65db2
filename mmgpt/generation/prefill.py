"""Prompts into a key-value cache: every medium is encoded once, every shared beginning computed once.

Shape letters: B rows, T tokens, K tokens of a medium, D width, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmgpt.generation.decode import extend
from mmgpt.generation.prefix_cache import LEAST_SHARED, Keys, LRUCache, Prefix, PrefixCache, shared_length
from mmgpt.inputs.batch import collate_media
from mmgpt.inputs.rendered import Medium, Rendered
from mmgpt.model.cache import KVCache
from mmgpt.model.multimodal import MultimodalModel

MAX_PREFILL_TOKENS = 8192  # tokens, padding included, that one pass reads; a single text may be longer
ENCODER_BATCH_SIZE = 16  # media that an encoder reads at a time


class Placed(NamedTuple):
    """A medium of a prompt: its content's hash, and the indexes of its tokens in the prompt."""

    medium: Medium
    digest: bytes
    places_K: NDArray[np.int64]


@dataclass(eq=False)
class TokenSequence:
    """A prompt to read, with what was decoded after it already.

    Attributes:
        token_keys: of the prompt's tokens: the id, or of a medium's token a negative number from its content's hash.
        is_awaited: others wait for the beginning that they share with this one.
    """

    prompt: Rendered
    token_keys: Keys
    media: list[Placed]
    tokens: list[int] = field(default_factory=list)
    is_awaited: bool = False

    def __len__(self) -> int:
        """Tokens of both."""
        return len(self.prompt.ids) + len(self.tokens)

    @property
    def ids(self) -> list[int]:
        """All token ids."""
        return self.prompt.ids + self.tokens

    def forget(self) -> None:
        """Let go of what takes memory; it will not be read again."""
        self.media, self.prompt = [], replace(self.prompt, media=[])

    @property
    def all_token_keys(self) -> Keys:
        """The keys of all tokens."""
        return (
            np.concatenate((self.token_keys, np.array(self.tokens, dtype=np.int64))) if self.tokens else self.token_keys
        )


class Prefiller:
    """Reads prompts into rows of a cache.

    Attributes:
        prefixes: texts read before.
        features: tokens (K, D) of media by their content's hash.
    """

    def __init__(self, model: MultimodalModel, prefix_bytes: int = 1 << 29, media_bytes: int = 1 << 28) -> None:
        self.model = model
        self.prefixes = PrefixCache(prefix_bytes)
        self.features: LRUCache[Tensor] = LRUCache(media_bytes)
        self._stamp = _stamp(model)

    def refresh(self) -> None:
        """Forget what was computed with other weights than the model's present ones."""
        stamp = _stamp(self.model)
        if stamp != self._stamp:
            self.clear()
            self._stamp = stamp

    def clear(self) -> None:
        """Forget everything."""
        self.prefixes.clear()
        self.features.clear()

    def text(self, prompt: Rendered) -> TokenSequence:
        """A prompt with the keys of its tokens.

        Raises:
            ValueError: if its placeholders and its media's tokens differ in number.
        """
        ids = np.array(prompt.ids, dtype=np.int64)
        token_keys, placed = ids.copy(), []
        for modality, slot in self.model.placeholder_ids.items():
            places, at = np.flatnonzero(ids == slot), 0
            for medium in (one for one in prompt.media if one.modality == modality):
                digest = _digest(medium)
                own = places[at : at + medium.num_tokens]
                token_keys[own] = -1 - (int.from_bytes(digest[:8], "big") >> 1)
                placed.append(Placed(medium, digest, own))
                at += medium.num_tokens
            if at != len(places):
                raise ValueError(
                    f"{prompt.key}: the prompt holds {len(places)} {modality} placeholders but its media have {at} "
                    "tokens; render it with the model's own config.media_processors()"
                )
        return TokenSequence(prompt, token_keys, placed)

    def match(self, token_keys: Keys) -> tuple[bytes, int]:
        """The text read before that shares most of its start with these keys, and how many tokens.

        The last token is always read, for the logits that follow it.
        """
        best, most = b"", 0
        for key, prefix in self.prefixes.candidates(token_keys):
            length = min(shared_length(token_keys, prefix.token_keys), len(token_keys) - 1)
            if length >= max(most, LEAST_SHARED):
                best, most = key, length
        return best, most

    def next_batch(self, texts: Sequence[TokenSequence]) -> tuple[list[TokenSequence], int]:
        """Texts to read in one pass, the first and others like it; and the slots a row that they take.

        Not with it are texts that can reuse what another of them has in common with them, once that is read; texts of
        so different a length that padding would cost more than a pass; and what is over MAX_PREFILL_TOKENS.
        """
        context = self.model.config.decoder.context
        token_keys = {text: text.all_token_keys for text in texts}
        starts = {text: self.match(token_keys[text])[1] for text in texts}
        count = len(token_keys[texts[0]]) - starts[texts[0]]
        group: list[TokenSequence] = []
        for text in sorted(
            texts, key=lambda one: (one is not texts[0], abs(len(token_keys[one]) - starts[one] - count))
        ):
            shared = [(shared_length(token_keys[text], token_keys[other]), other) for other in group]
            most, leader = max(shared, key=lambda pair: pair[0], default=(0, text))
            if most >= starts[text] + LEAST_SHARED:
                leader.is_awaited = True
                continue
            counts = [len(token_keys[one]) - starts[one] for one in (*group, text)]
            padded, reach = len(counts) * max(counts), max(starts[one] for one in (*group, text)) + max(counts)
            if not group or (padded <= min(1.25 * sum(counts) + 64, MAX_PREFILL_TOKENS) and reach <= context):
                group.append(text)
        longest = max(len(token_keys[one]) - starts[one] for one in group)
        return group, max(starts[one] for one in group) + longest

    @torch.inference_mode()
    def read(self, cache: KVCache, texts: Sequence[TokenSequence]) -> Tensor:
        """Read texts into the rows of a cache, over whatever is there; the logits (B, V) that follow each."""
        starts = []
        for row, text in enumerate(texts):
            key, length = self.match(text.all_token_keys)
            prefix = self.prefixes.get(key)
            if prefix is not None:
                cache.copy_row(row, prefix.cache, length)
            starts.append(length)
        counts = [len(text) - start for text, start in zip(texts, starts, strict=True)]
        hidden_BD = extend(self.model, cache, self._embed(texts, starts), starts, counts)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            length = len(text)
            if text.is_awaited or 2 * start < length:  # else most of it is held already
                self._hold(text, cache.view(row, 1, length))
        return self.model.decoder.logits(hidden_BD)

    def _hold(self, text: TokenSequence, row: KVCache) -> None:
        token_keys = text.all_token_keys
        if row.num_bytes <= self.prefixes.limit:
            self.prefixes.add(token_keys.tobytes(), Prefix(token_keys, row.clone()), row.num_bytes)

    def _embed(self, texts: Sequence[TokenSequence], starts: Sequence[int]) -> Tensor:
        """Embeddings (B, T, D) of what is to be read of each text, media written over their placeholders."""
        counts = [len(text) - start for text, start in zip(texts, starts, strict=True)]
        ids = np.zeros((len(texts), max(counts)), dtype=np.int64)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            ids[row, : counts[row]] = text.ids[start:]
        x_BTD = self.model.decoder.embed(torch.from_numpy(ids).to(self.model.device))
        wanted = [
            (row, text, placed)
            for row, (text, start) in enumerate(zip(texts, starts, strict=True))
            for placed in text.media
            if placed.places_K[-1] >= start
        ]
        tokens = self._features([(text, placed) for _, text, placed in wanted])
        for row, _, placed in wanted:
            is_new_K = placed.places_K >= starts[row]
            places_K = torch.from_numpy(placed.places_K[is_new_K] - starts[row]).to(x_BTD.device)
            tokens_KD = tokens[placed.digest][torch.from_numpy(is_new_K).to(x_BTD.device)]
            x_BTD[row, places_K] = tokens_KD.to(x_BTD.dtype)
        return x_BTD

    def _features(self, wanted: Sequence[tuple[TokenSequence, Placed]]) -> dict[bytes, Tensor]:
        """The tokens (K, D) of media by their hashes; those not held are encoded, each content once."""
        known = {placed.digest: self.features.get(placed.digest) for _, placed in wanted}
        found = {digest: tokens_KD for digest, tokens_KD in known.items() if tokens_KD is not None}
        for modality in self.model.placeholder_ids:
            missing = {
                placed.digest: replace(text.prompt, media=[placed.medium])
                for text, placed in wanted
                if placed.digest not in found and placed.medium.modality == modality
            }
            digests = list(missing)
            for at in range(0, len(digests), ENCODER_BATCH_SIZE):
                some = digests[at : at + ENCODER_BATCH_SIZE]
                batch = collate_media([missing[digest] for digest in some])[modality].to(self.model.device)
                tokens = self.model.media_tokens(modality, batch).split(list(batch.num_tokens))
                for digest, tokens_KD in zip(some, tokens, strict=True):
                    found[digest] = tokens_KD.clone()  # alone in its memory, which is freed with it
                    self.features.add(digest, found[digest], tokens_KD.nbytes)
        return found


def _digest(medium: Medium) -> bytes:
    hashed = hashlib.sha256(f"{medium.modality} {medium.values.dtype} {tuple(medium.values.shape)}".encode())
    hashed.update(medium.values.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.digest()


def _stamp(model: MultimodalModel) -> int:
    """Changes when weights are written to or replaced."""
    weights = list(model.parameters())
    return hash(tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights))

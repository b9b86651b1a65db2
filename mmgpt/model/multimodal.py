"""The multimodal model: encoders and adapters feed the decoder's token space.

Shape letters: B rows, T tokens, M media, K tokens of a medium or distinct texts, N target positions, D width,
V vocabulary, P pieces of media, F features of a piece, E width of an encoder, W width of the space that media and
texts share.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import UserError
from mmgpt.encoders.feature_grids import FeatureGrid
from mmgpt.encoders.registry import ENCODERS
from mmgpt.inputs.batch import Batch, MediaBatch
from mmgpt.inputs.rendered import IGNORED, TargetText
from mmgpt.model.adapters import ADAPTERS, feature_counts
from mmgpt.model.config import ModelConfig
from mmgpt.model.decoder import Decoder
from mmgpt.model.heads import HEADS, HeadConfig
from mmgpt.model.loss import Loss, TeacherTargets, chunked_cross_entropy

Encoded = tuple[
    Tensor, list[FeatureGrid]
]  # features (P, F, E) of all pieces of a batch's media in order, the grid of each


class KeepsFeatures(Protocol):
    """What a frozen encoder made of media, kept from one time to the next."""

    def encode(self, media: MediaBatch) -> Tensor:
        """The features (P, F, E) of all pieces of a batch's media in order."""


class MultimodalModel(nn.Module):
    """Encoders, adapters, a decoder LM, and heads on the encoders."""

    def __init__(self, config: ModelConfig, vocab_size: int, placeholder_ids: dict[str, int]) -> None:
        """Build with random weights.

        Args:
            config: the parts.
            vocab_size: rows of the embedding.
            placeholder_ids: the token of each modality whose places take media; the id of each modality.
        """
        super().__init__()
        self.config, self.vocab_size, self.placeholder_ids = config, vocab_size, dict(placeholder_ids)
        self.feature_caches: dict[str, KeepsFeatures] = {}  # by modality, of frozen encoders
        self.encoders = nn.ModuleDict({m: ENCODERS[c.kind].module(c) for m, c in config.encoders.items()})
        self.adapters = nn.ModuleDict(
            {
                modality: ADAPTERS[adapter.kind](
                    adapter,
                    width=config.encoders[modality].width,
                    out_width=config.decoder.width,
                    grid=config.encoders[modality].grids_of(config.encoders[modality].max_shape)[0],
                )
                for modality, adapter in config.adapters.items()
            }
        )
        self.decoder = Decoder(config.decoder, vocab_size)
        self.heads = nn.ModuleDict(
            {
                head.name: HEADS[head.kind](
                    head, width=config.encoders[head.modality].width, text_width=config.decoder.width
                )
                for head in config.heads
            }
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.embedding.weight.device

    def encode(self, modality: str, media: MediaBatch) -> Encoded:
        """Features (P, F, E) of all pieces of one modality's media in order, and the grid of each piece."""
        config = self.config.encoders[modality]
        grids = [grid for size in media.sizes() for grid in config.grids_of(size)]
        if modality in self.feature_caches:
            return self.feature_caches[modality].encode(media), grids
        return self.encoders[modality](media.values, media.shapes), grids

    def media_tokens(self, modality: str, media: MediaBatch, encoded: Encoded | None = None) -> Tensor:
        """Tokens (all media's in a row, D) of one modality; `encoded` if the encoder has run already.

        Raises:
            ValueError: if a medium's tokens differ in number from its placeholders; names sample and medium.
        """
        encoder, adapter = self.config.encoders[modality], self.config.adapters[modality]
        pieces = [[adapter.num_tokens(grid) for grid in encoder.grids_of(size)] for size in media.sizes()]
        for name, expected, counts in zip(media.names, media.num_tokens, pieces, strict=True):
            if expected != sum(counts):
                raise ValueError(
                    f"{name}: the prompt holds {expected} {modality} tokens, encoder and adapter give {sum(counts)}; "
                    "render the batch with this model's own config.media_processors()"
                )
        given = [count for counts in pieces for count in counts]
        tokens_PKD = self.adapters[modality](*(encoded or self.encode(modality, media)))
        if tokens_PKD.shape[:2] != (len(given), max(given)):
            raise ValueError(
                f"{modality}: pieces and tokens {tuple(tokens_PKD.shape[:2])} came of {(len(given), max(given))} "
                "that its configs promise"
            )
        return torch.cat([tokens_KD[:count] for tokens_KD, count in zip(tokens_PKD, given, strict=True)])

    def embed(self, batch: Batch, encoded: Mapping[str, Encoded] | None = None) -> Tensor:
        """Embeddings (B, T, D) of a batch, with the media written over their placeholders in reading order."""
        x_BTD = self.decoder.embed(batch.ids)
        for modality, media in batch.media.items():
            tokens_ND = self.media_tokens(modality, media, encoded[modality] if encoded else None)
            x_BTD = splice(x_BTD, batch.ids == self.placeholder_ids[modality], tokens_ND, modality)
        return x_BTD

    def hidden(
        self, batch: Batch, output_positions_BW: Tensor | None = None, encoded: Mapping[str, Encoded] | None = None
    ) -> Tensor:
        """Hidden states (B, T, D) of a batch, or (B, W, D) of the tokens at some indexes."""
        attention_mask = batch.attention_mask()
        previous_BT = batch.previous_index() if attention_mask is not None and self.config.decoder.token_shift else None
        x_BTD = self.embed(batch, encoded)
        out: Tensor = self.decoder(
            x_BTD, batch.positions, attention_mask, previous_BT, output_positions_BW=output_positions_BW
        )
        return out

    def target_states(self, batch: Batch, encoded: Mapping[str, Encoded] | None = None) -> Tensor:
        """Hidden states (N, D) that a batch's targets are predicted from, in reading order; it has some."""
        is_target_BT = _is_target(batch)
        output_positions_BW = _target_positions(is_target_BT)
        return self.hidden(batch, output_positions_BW, encoded)[is_target_BT.gather(1, output_positions_BW)]

    def forward(self, batch: Batch, heads: Iterable[str] = (), teacher: TeacherTargets | None = None) -> Loss:
        """Summed cross-entropy of a batch over its targets, and the summed losses of some heads over its pairs.

        With a `teacher`, what that makes of the former. A causal position predicts the next token of its row; a masked
        one predicts itself. Each encoder runs once. In a batch without targets only those run that a head learns on,
        and the decoder over no row.
        """
        training_pairs = {name: self.training_pairs(name, batch) for name in heads}
        used = {self.head_config(name).modality for name, pairs in training_pairs.items() if pairs}
        encoded = {
            modality: self.encode(modality, media)
            for modality, media in batch.media.items()
            if batch.num_targets or modality in used
        }
        sums = {name: self._head_loss(name, pairs, encoded) for name, pairs in training_pairs.items() if pairs}
        ahead, is_target_BT = int(batch.is_causal), _is_target(batch)
        sources_N = batch.sources[:, ahead:][is_target_BT]
        if not batch.num_targets:
            none_N = torch.zeros(0, device=self.device)
            return Loss(none_N.sum(), none_N, sources_N, sums)
        targets_N, softcap = batch.labels[:, ahead:][is_target_BT], self.config.decoder.logit_softcap
        total, nll_N, distilled_N = chunked_cross_entropy(
            self.target_states(batch, encoded), self.decoder.head.weight, targets_N, softcap, teacher
        )
        return Loss(total, nll_N, sources_N, sums, distilled_N)

    def head_config(self, name: str) -> HeadConfig:
        """The config of a head."""
        return next(head for head in self.config.heads if head.name == name)

    def training_pairs(self, name: str, batch: Batch) -> dict[int, TargetText]:
        """What a head can learn from in a batch: the text of each medium that has one it can use, by index."""
        head = self.head_config(name)
        if head.modality not in batch.media:
            return {}
        media, encoder = batch.media[head.modality], self.config.encoders[head.modality]
        return {
            at: text
            for at, (text, size) in enumerate(zip(head.training_pairs(media), media.sizes(), strict=True))
            if text and not head.pair_error(text.text, encoder.num_tokens(size))
        }

    def head_count(self, name: str, batch: Batch) -> int:
        """What the pairs of a batch count in the number that a head's loss is divided by: bytes for ctc, else pairs."""
        return sum(self.head_config(name).loss_weight(text.text) for text in self.training_pairs(name, batch).values())

    def _head_loss(self, name: str, training_pairs: Mapping[int, TargetText], encoded: Mapping[str, Encoded]) -> Tensor:
        features_MFE, counts_M = self._padded_features(encoded[self.head_config(name).modality])
        at = torch.tensor(list(training_pairs), device=counts_M.device)
        loss: Tensor = self.heads[name](
            features_MFE[at], counts_M[at], list(training_pairs.values()), self.encode_texts
        )
        return loss

    @staticmethod
    def _padded_features(encoded: Encoded) -> tuple[Tensor, Tensor]:
        """For heads, under which every medium is one piece: features (M, F, E), and how many are real (M,)."""
        features_MFE, grids = encoded
        return features_MFE, feature_counts(grids, features_MFE.device)

    def encode_texts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The decoder's state (K, D) at the last token of each text, given as token ids."""
        ids_KT = pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True).to(self.device)
        lasts_K1 = torch.tensor([[len(ids) - 1] for ids in texts], device=self.device)
        positions_KT = torch.arange(ids_KT.shape[1], device=self.device).expand_as(ids_KT)
        states_K1D: Tensor = self.decoder(self.decoder.embed(ids_KT), positions_KT, output_positions_BW=lasts_K1)
        return states_K1D[:, 0]

    def embed_media(self, modality: str, media: MediaBatch) -> Tensor:
        """Media (M, W) of length 1 in the space of a contrastive head; their products with texts rank these."""
        head = self.head(modality, "contrastive")
        embedded: Tensor = head.embed_media(*self._padded_features(self.encode(modality, media)))
        return embedded

    def embed_texts(self, modality: str, texts: Sequence[Sequence[int]]) -> Tensor:
        """Texts (K, W) of length 1, given as token ids closed by the end token, in the space of a contrastive head."""
        embedded: Tensor = self.head(modality, "contrastive").embed_texts(self.encode_texts(texts))
        return embedded

    def transcribe(self, media: MediaBatch) -> list[str]:
        """What the ctc head writes down of each clip, likeliest symbol by symbol."""
        head = self.head("audio", "ctc")
        written: list[str] = head.transcribe(*self._padded_features(self.encode("audio", media)))
        return written

    def head(self, modality: str, kind: str) -> Any:
        """A head; UserError where the model has none of the kind."""
        if f"{modality}_{kind}" not in self.heads:
            raise UserError(
                f"the model has no {kind} head for {modality}; "
                f"train one, with {{kind: {kind}, modality: {modality}}} in model.heads"
            )
        return self.heads[f"{modality}_{kind}"]


def _is_target(batch: Batch) -> Tensor:
    """Bool, True where a token is predicted from: (B, T), or (B, T - 1) where each predicts the next."""
    return batch.labels[:, int(batch.is_causal) :] != IGNORED


def _target_positions(is_target_BT: Tensor) -> Tensor:
    """Indexes (B, W) of each row's targets in reading order; rows that have fewer go on with other tokens."""
    most = int(is_target_BT.sum(dim=1).max())
    return is_target_BT.int().argsort(dim=1, descending=True, stable=True)[:, :most]


def splice(x_BTD: Tensor, is_slot_BT: Tensor, tokens_ND: Tensor, modality: str) -> Tensor:
    """Write media tokens over the placeholders of the text, in reading order.

    Args:
        x_BTD: embedded text, placeholders included.
        is_slot_BT: bool, True where a placeholder stands.
        tokens_ND: tokens of all media of the batch, in reading order.
        modality: for the message.
    Raises:
        ValueError: if placeholders and tokens differ in number.
    """
    slots = is_slot_BT.nonzero(as_tuple=True)  # a device sync, worth it: a shifted picture trains silently wrong
    if len(slots[0]) != len(tokens_ND):
        raise ValueError(
            f"the rows hold {len(slots[0])} {modality} placeholders but the encoder gave {len(tokens_ND)} tokens; "
            "build the batch with inputs.collate and the model's own config"
        )
    return x_BTD.index_put(slots, tokens_ND.to(x_BTD.dtype))

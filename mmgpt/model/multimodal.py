"""The multimodal model: encoders and adapters feed the decoder's token space.

Shape letters: B rows, T tokens, M media, K tokens of a medium, N target positions, D width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mmgpt.config import Config, UserError
from mmgpt.datasets.media import MediaError
from mmgpt.encoders import ENCODERS, EncoderConfig
from mmgpt.inputs.batch import Batch, MediaBatch
from mmgpt.inputs.chat import IGNORED, MediaSpec
from mmgpt.model.adapters import ADAPTERS, AdapterConfig
from mmgpt.model.decoder import Decoder
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.loss import Loss, cross_entropy_sum


class ModelConfig(Config):
    """A decoder, and for each modality an encoder with its adapter."""

    decoder: DecoderConfig
    encoders: dict[str, EncoderConfig] = {}
    adapters: dict[str, AdapterConfig] = {}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.encoders.keys() != self.adapters.keys():
            raise ValueError(
                f"encoders {sorted(self.encoders)} and adapters {sorted(self.adapters)} must be the same modalities"
            )
        for modality, encoder in self.encoders.items():
            if modality != ENCODERS[encoder.kind].modality:
                raise ValueError(
                    f"encoder {encoder.kind} reads {ENCODERS[encoder.kind].modality}, it cannot be encoders.{modality}"
                )
            adapter = self.adapters[modality]
            adapter.num_tokens(encoder.grid_of(encoder.largest))
            if adapter.kind == "resampler" and self.decoder.width % adapter.heads:
                raise ValueError(
                    f"resampler: heads={adapter.heads} does not divide the decoder's width={self.decoder.width}"
                )
        return self

    def media_specs(self) -> dict[str, MediaSpec]:
        """How each modality is prepared and counted; picklable, so that data workers need no model."""
        return {
            modality: MediaSpec(_Prepare(encoder), _TokenCount(encoder, self.adapters[modality]))
            for modality, encoder in self.encoders.items()
        }


@dataclass(frozen=True)
class _Prepare:
    """Decodes a part and makes the encoder's tensor of it."""

    encoder: EncoderConfig

    def __call__(self, part: Any) -> Tensor:
        try:
            return self.encoder.prepare(part.load())
        except MediaError:
            raise
        except UserError as error:
            raise MediaError(f"{part.name()}: {error}") from None


@dataclass(frozen=True)
class _TokenCount:
    """Tokens of a medium from the shape of its tensor."""

    encoder: EncoderConfig
    adapter: AdapterConfig

    def __call__(self, shape: tuple[int, ...]) -> int:
        return self.adapter.num_tokens(self.encoder.grid_of(shape))


class MultimodalModel(nn.Module):
    """Encoders, adapters and a decoder LM."""

    def __init__(self, config: ModelConfig, vocab_size: int, slots: dict[str, int]) -> None:
        """Build with random weights.

        Args:
            config: the parts.
            vocab_size: rows of the embedding.
            slots: placeholder token id of each modality.
        """
        super().__init__()
        self.config, self.vocab_size, self.slots = config, vocab_size, dict(slots)
        self.encoders = nn.ModuleDict({m: ENCODERS[c.kind].module(c) for m, c in config.encoders.items()})
        self.adapters = nn.ModuleDict(
            {
                modality: ADAPTERS[adapter.kind](
                    adapter,
                    width=config.encoders[modality].width,
                    out_width=config.decoder.width,
                    grid=config.encoders[modality].grid_of(config.encoders[modality].largest),
                )
                for modality, adapter in config.adapters.items()
            }
        )
        self.decoder = Decoder(config.decoder, vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.embedding.weight.device

    def media_tokens(self, modality: str, media: MediaBatch) -> Tensor:
        """Tokens (all media's in a row, D) of one modality.

        Raises:
            ValueError: if a medium's tokens differ in number from its placeholders; names sample and medium.
        """
        encoder, adapter = self.config.encoders[modality], self.config.adapters[modality]
        grids = [encoder.grid_of((*media.values.shape[1:-1], length)) for length in media.lengths.tolist()]
        given = [adapter.num_tokens(grid) for grid in grids]
        for name, expected, count in zip(media.names, media.num_tokens, given, strict=True):
            if expected != count:
                raise ValueError(
                    f"{name}: the prompt holds {expected} {modality} tokens, encoder and adapter give {count}; "
                    "render the batch with this model's own config.media_specs()"
                )
        features_MND = self.encoders[modality](media.values, media.lengths)
        counts_M = torch.tensor([math.prod(grid) for grid in grids], device=features_MND.device)
        tokens_MKD = self.adapters[modality](features_MND, counts_M)
        if tokens_MKD.shape[1] != max(given):
            raise ValueError(f"{modality}: {tokens_MKD.shape[1]} tokens came of {max(given)} that its configs promise")
        return torch.cat([tokens_KD[:count] for tokens_KD, count in zip(tokens_MKD, given, strict=True)])

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings (B, T, D) of a batch, with the media written over their placeholders in reading order."""
        x_BTD = self.decoder.embed(batch.ids)
        for modality, media in batch.media.items():
            x_BTD = splice(x_BTD, batch.ids == self.slots[modality], self.media_tokens(modality, media), modality)
        return x_BTD

    def hidden(self, batch: Batch, wanted_BW: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of a batch, or (B, W, D) of the tokens at some indexes."""
        visible = batch.visible()
        previous_BT = batch.previous() if visible is not None and self.config.decoder.token_shift else None
        out: Tensor = self.decoder(self.embed(batch), batch.positions, visible, previous_BT, wanted_BW=wanted_BW)
        return out

    def forward(self, batch: Batch) -> Loss:
        """Summed cross-entropy of a batch over its targets.

        A causal position predicts the next token of its row; a masked one predicts itself.
        """
        ahead = 1 if batch.is_causal else 0
        labels_BT = batch.labels[:, ahead:]
        is_target_BT = labels_BT != IGNORED
        wanted_BW = _places(is_target_BT)
        hidden_ND = self.hidden(batch, wanted_BW)[is_target_BT.gather(1, wanted_BW)]
        total, nll_N = cross_entropy_sum(hidden_ND, self.decoder.head.weight, labels_BT[is_target_BT])
        return Loss(total, nll_N, batch.sources[:, ahead:][is_target_BT])


def _places(is_target_BT: Tensor) -> Tensor:
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
    num_slots = int(is_slot_BT.sum())  # a device sync, worth it: a shifted picture trains silently wrong
    if num_slots != len(tokens_ND):
        raise ValueError(
            f"the rows hold {num_slots} {modality} placeholders but the encoder gave {len(tokens_ND)} tokens; "
            "build the batch with inputs.collate and the model's own config"
        )
    return x_BTD.masked_scatter(is_slot_BT[..., None], tokens_ND.to(x_BTD.dtype))

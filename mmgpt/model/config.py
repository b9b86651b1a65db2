"""What a model is made of, and whether its parts suit each other."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import model_validator
from torch import Tensor

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.media import LIMITS, Limits, MediaError
from mmgpt.encoders.audio_config import SoundConfig
from mmgpt.encoders.registry import ENCODERS, EncoderConfig
from mmgpt.inputs.rendered import MediaProcessor
from mmgpt.inputs.video import VideoConfig, VideoReader
from mmgpt.model.adapters import AdapterConfig, check_grids
from mmgpt.model.heads import HeadConfig
from mmgpt.model.layers import DecoderConfig


class ModelConfig(Config):
    """A decoder, and for each modality an encoder with its adapter and perhaps heads of its own."""

    decoder: DecoderConfig
    encoders: dict[str, EncoderConfig] = {}
    adapters: dict[str, AdapterConfig] = {}
    heads: list[HeadConfig] = []
    video: VideoConfig = VideoConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.encoders.keys() != self.adapters.keys():
            raise ValueError(
                f"encoders {sorted(self.encoders)} and adapters {sorted(self.adapters)} must be the same modalities"
            )
        for modality, encoder in self.encoders.items():
            if modality != ENCODERS[encoder.kind].modality:
                raise ValueError(
                    f"encoders.{modality}.kind={encoder.kind}: encoder {encoder.kind} reads "
                    f"{ENCODERS[encoder.kind].modality}, it cannot be encoders.{modality}"
                )
            adapter = self.adapters[modality]
            try:
                check_grids(adapter, encoder)
            except ValueError as error:
                raise ValueError(f"adapters.{modality}: {error}") from None
            if adapter.kind == "resampler" and self.decoder.width % adapter.heads:
                raise ValueError(
                    f"adapters.{modality}.heads={adapter.heads} does not divide the decoder's width="
                    f"{self.decoder.width}; change one of the two"
                )
        return self

    @model_validator(mode="after")
    def _heads_have_encoders(self) -> Self:
        names = [head.name for head in self.heads]
        for number, head in enumerate(self.heads):
            if head.modality not in self.encoders:
                known = did_you_mean(head.modality, self.encoders) if self.encoders else "this model has no encoders"
                raise ValueError(
                    f"heads.{number}.modality: head {head.kind} is for {head.modality}, which has no encoder; {known}"
                )
            encoder = self.encoders[head.modality]
            pieces = len(encoder.grids_of(encoder.max_shape))
            if pieces > 1:
                raise ValueError(
                    f"heads.{number}: head {head.kind} learns from whole media, but encoder {encoder.kind} cuts "
                    f"the largest into {pieces} pieces; leave the head out, or the cutting"
                )
            if head.name in names[:number]:
                raise ValueError(f"heads hold {head.kind} for {head.modality} twice; leave heads.{number} out")
        return self

    def media_processors(self, limits: Limits = LIMITS) -> dict[str, MediaProcessor]:
        """How each modality is prepared and counted; picklable, so that data workers need no model."""
        return {
            modality: EncoderProcessor(
                encoder,
                self.adapters[modality],
                {head.kind: head for head in self.heads if head.modality == modality},
                limits,
            )
            for modality, encoder in self.encoders.items()
        }

    def video_reader(self, limits: Limits = LIMITS) -> VideoReader:
        """What makes parts that this model takes of a video."""
        audio = self.encoders.get("audio")
        longest = audio.max_seconds if isinstance(audio, SoundConfig) else None
        return VideoReader(self.video, limits, "image" in self.encoders, longest)


@dataclass(frozen=True)
class EncoderProcessor:
    """What an encoder and its adapter make of media, and the heads on the encoder, by their kinds."""

    encoder: EncoderConfig
    adapter: AdapterConfig
    heads: Mapping[str, HeadConfig]
    limits: Limits

    def preprocess(self, part: Any, rng: random.Random | None) -> Tensor:
        """The encoder's tensor of a part, augmented where there is an `rng` to draw from.

        Raises:
            MediaError: if the part cannot be decoded, or the encoder does not take it.
        """
        try:
            return self.encoder.preprocess(part.load(self.limits), rng)
        except MediaError:
            raise
        except UserError as error:
            raise MediaError(f"{part.name()}: {error}") from None

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        """Tokens of a medium from the shape of its tensor."""
        return sum(map(self.adapter.num_tokens, self.encoder.grids_of(shape)))

    def pair_error(self, head: str, text: str, shape: tuple[int, ...]) -> UserError | None:
        """Why a head cannot learn from a text and a medium, by the shape of its tensor."""
        return self.heads[head].pair_error(text, self.encoder.num_tokens(shape))

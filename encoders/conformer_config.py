"""What a conformer is made of, how sounds come to it, and how many features it gives.

Shape letters: S samples, F mel bands, T mel frames.
"""

import math
import random
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mmgpt.encoders.audio_config import SoundConfig
from mmgpt.encoders.feature_grids import FeatureGrid
from mmgpt.encoders.mel import PLAIN, FeatureExtractorConfig, log_mel
from mmgpt.encoders.one_thread import in_one_thread


class ConformerConfig(SoundConfig):
    """Size and front end of a conformer."""

    renamed: ClassVar[Mapping[str, str]] = {"front": "feature_extractor"}
    kind: Literal["conformer"] = "conformer"
    mels: PositiveInt = 80
    feature_extractor: FeatureExtractorConfig = PLAIN  # how samples become mel frames
    subsampling: Literal[2, 4, 8] = 4  # mel frames, 10 ms each, to an encoded frame
    stem_kind: Literal["conv", "separable", "stack"] = "conv"  # separable: depthwise; stack: frames joined, normed
    stem: PositiveInt = 32  # channels of the subsampling convolutions
    scale_stem: bool = False  # multiply what the stem gives by the square root of the width
    width: PositiveInt = 256
    depth: PositiveInt = 12
    heads: PositiveInt = 4
    mlp_ratio: PositiveFloat = 4.0
    kernel: PositiveInt = 15  # encoded frames that a block's convolution spans
    causal: bool = False  # that convolution sees no later frame
    bias: bool = True  # of the linear layers of attention and feed-forward
    conv_bias: bool = True  # of the layers of a block's convolution
    conv_norm: Literal["layer", "affine"] = "layer"  # affine: a learned scale and shift, a batch norm that stands still
    distances: tuple[NonNegativeInt, NonNegativeInt] | None = None  # a learned vector for each, this many frames back
    #   and ahead, past which all are the same (Shaw et al. 2018, arXiv:1803.02155); None: sinusoids of any distance
    window: PositiveInt | None = None  # encoded frames to either side that attention reaches; None: all
    chunk: PositiveInt | None = None  # encoded frames at a time outside training: the same features, less memory
    piece_seconds: PositiveFloat | None = None  # a longer clip is cut into equal pieces that are encoded apart
    dropout: NonNegativeFloat = 0.0
    time_masks: NonNegativeInt = 0  # SpecAugment (arXiv:1904.08779), while training: stretches of time set to the mean
    time_mask: PositiveFloat = 0.1  # the longest, as a share of the clip
    band_masks: NonNegativeInt = 0  # the same for bands
    band_mask: PositiveFloat = 0.2

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} is even; an odd one has a middle")
        if self.chunk and not self.window:
            raise ValueError(
                f"chunk={self.chunk} needs a window: attention without one reaches the whole clip; "
                "to encode its pieces apart, set piece_seconds"
            )
        return self

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of the longest clip's tensor."""
        frames = self.feature_extractor.num_frames(int(self.max_seconds * self.rate), self.rate)
        return (self.mels, self._whole(frames))

    @property
    def receptive_field(self) -> int | None:
        """Encoded frames to either side that a feature can depend on; None for the whole clip."""
        back = self.kernel - 1 if self.causal else self.kernel // 2
        return None if self.window is None else self.depth * (self.window + back) + 1

    def piece(self, frames: int) -> int:
        """Mel frames of each of the pieces that a clip of so many is cut into; the last may be shorter."""
        if not self.piece_seconds:
            return frames
        hop = round(self.feature_extractor.hop_seconds * self.rate)
        most = max(1, round(self.piece_seconds * self.rate) // hop // self.subsampling)  # encoded frames
        count = math.ceil(frames / self.subsampling)
        return math.ceil(count / math.ceil(count / most)) * self.subsampling

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """How the features of a clip whose tensor has the shape (F, T) lie: in one row, (frames,)."""
        return ((math.ceil(shape[-1] / self.subsampling),),)

    @in_one_thread
    def preprocess(self, sound: tuple[np.ndarray, int], rng: random.Random | None = None) -> Tensor:
        """Resample a mono sound (samples, rate) and make its log-mel features: float32 (mels, T).

        Args:
            sound: float32 samples (S,), and how many make a second.
            rng: draws the speed and the noise of this showing; None leaves the sound as it is.
        Raises:
            UserError: if it is longer than `max_seconds`.
        """
        samples_S = self.samples(sound, rng)
        mel_FT = log_mel(
            samples_S, rate=self.rate, target_rate=self.rate, bands=self.mels, feature_extractor=self.feature_extractor
        )
        whole = self._whole(mel_FT.shape[1])
        return F.pad(mel_FT, (0, max(0, whole - mel_FT.shape[1])))[:, :whole]

    def _whole(self, frames: int) -> int:
        """Frames without those that fill no stack, of which there is one at least."""
        if self.stem_kind != "stack":
            return frames
        return max(self.subsampling, frames - frames % self.subsampling)

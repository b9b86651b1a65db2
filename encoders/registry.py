"""The one list of all encoders, by the `kind` that a recipe names. A new encoder is one new file and one line here."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from mmgpt.config import Config
from mmgpt.encoders.conformer import ConformerEncoder
from mmgpt.encoders.conformer_config import ConformerConfig
from mmgpt.encoders.pretrained.conformers import conformer_fields, conformer_weights
from mmgpt.encoders.pretrained.hf_vision import tower_fields, tower_weights
from mmgpt.encoders.pretrained.open_clip import OpenClipConfig, open_clip_fields, open_clip_weights
from mmgpt.encoders.pretrained.timm import resized_tower
from mmgpt.encoders.pretrained.whisper import whisper_fields, whisper_weights
from mmgpt.encoders.timm_vit import TimmConfig, TimmEncoder
from mmgpt.encoders.vit import ViTConfig, ViTEncoder
from mmgpt.encoders.whisper import WhisperConfig, WhisperEncoder


class EncoderKind(NamedTuple):
    """What an encoder reads, and the classes that describe and build it.

    Attributes:
        fields: the fields of `config` that an outside checkpoint's folder fixes; None where none can be read.
        weights: that checkpoint's weights by the names of the module, given the folder and the whole config.
        resized: those fields for pictures of another size; None where an encoder has no such thing.
    """

    modality: str
    config: type[Config]
    module: type[nn.Module]
    fields: Callable[[Path], dict[str, Any]] | None = None
    weights: Callable[[Path, Any], dict[str, Tensor]] | None = None
    resized: Callable[[dict[str, Any], int], dict[str, Any]] | None = None


EncoderConfig = Annotated[
    ViTConfig | TimmConfig | OpenClipConfig | ConformerConfig | WhisperConfig, Field(discriminator="kind")
]
ENCODERS: dict[str, EncoderKind] = {
    "vit": EncoderKind("image", ViTConfig, ViTEncoder),
    "timm": EncoderKind("image", TimmConfig, TimmEncoder, tower_fields, tower_weights, resized_tower),
    "open_clip": EncoderKind("image", OpenClipConfig, TimmEncoder, open_clip_fields, open_clip_weights, resized_tower),
    "conformer": EncoderKind("audio", ConformerConfig, ConformerEncoder, conformer_fields, conformer_weights),
    "whisper": EncoderKind("audio", WhisperConfig, WhisperEncoder, whisper_fields, whisper_weights),
}

"""Encoders: what a picture and a sound are to a model, one file each."""

if __name__ == "encoders":
    raise ImportError("this folder is imported as `mmgpt.encoders`; install it with `pip install -e .`")

from typing import Annotated, NamedTuple

from pydantic import Field
from torch import nn

from mmgpt.config import Config
from mmgpt.encoders.conformer import ConformerConfig, ConformerEncoder
from mmgpt.encoders.vit import ViTConfig, ViTEncoder


class EncoderKind(NamedTuple):
    """What an encoder reads, and the classes that describe and build it."""

    modality: str
    config: type[Config]
    module: type[nn.Module]


EncoderConfig = Annotated[ViTConfig | ConformerConfig, Field(discriminator="kind")]
ENCODERS: dict[str, EncoderKind] = {  # a new encoder is one new file and one line here
    "vit": EncoderKind("image", ViTConfig, ViTEncoder),
    "conformer": EncoderKind("audio", ConformerConfig, ConformerEncoder),
}

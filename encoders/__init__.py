"""Encoders: what a picture and a sound are to a model, one file each."""

if __name__ == "encoders":
    raise ImportError("this folder is imported as `mmgpt.encoders`; install it with `pip install -e .`")

from typing import NamedTuple

from torch import nn

from mmgpt.encoders.vit import ViTConfig, ViTEncoder


class EncoderKind(NamedTuple):
    """What an encoder reads, and the classes that describe and build it."""

    modality: str
    config: type[ViTConfig]
    module: type[nn.Module]


EncoderConfig = ViTConfig  # a union over `kind` as soon as there are two
ENCODERS: dict[str, EncoderKind] = {  # a new encoder is one new file and one line here
    "vit": EncoderKind("image", ViTConfig, ViTEncoder),
}

"""Augmentation while training: pictures by any of torchvision's transforms, sounds by another speed and noise.

Shape letters: S samples, M pictures, C channels, H W pixels.
Source: Ko et al. 2015, "Audio augmentation for speech recognition" (Interspeech); SpecAugment's masks, which act on the
features, are drawn in the encoder.
"""

import inspect
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import PIL.Image
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, NonNegativeFloat
from torch import Tensor
from torchaudio.functional import resample
from torchvision.transforms import v2

from mmgpt.config import Config, UserError, did_you_mean

HOLDING_OTHERS = frozenset({"Compose", "Lambda", "RandomApply", "RandomChoice", "RandomOrder", "Transform"})
TENSORS_ONLY = frozenset({"GaussianNoise"})  # all others take Pillow's pictures, for which they are fastest


class PictureTransform(Config):
    """A transform of torchvision.transforms.v2 by the name of its class; all other keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str  # RandomResizedCrop, ColorJitter, TrivialAugmentWide ...

    def make(self, size: int) -> v2.Transform:
        """The transform, its `size` in pixels being `size` where it needs one and none is given.

        Raises:
            UserError: if there is none of the name, or it does not take these arguments.
        """
        kinds = {key: value for key, value in vars(v2).items() if inspect.isclass(value)}
        known = {key for key, value in kinds.items() if issubclass(value, v2.Transform)} - HOLDING_OTHERS
        if self.name not in known:
            raise UserError(f"augment: {self.name} is no transform of torchvision; {did_you_mean(self.name, known)}")
        kind, given = kinds[self.name], dict(self.model_extra or {})
        parameters = inspect.signature(kind).parameters
        for key in sorted(given.keys() - parameters.keys()):
            raise UserError(f"augment: {key} is not an argument of {self.name}; {did_you_mean(key, parameters)}")
        if "size" in parameters and parameters["size"].default is inspect.Parameter.empty:
            given.setdefault("size", size)
        try:
            return kind(**given)
        except (TypeError, ValueError) as error:
            raise UserError(f"augment: {self.name}: {error}") from None


def check_transforms(transforms: Sequence[PictureTransform], size: int) -> None:
    """Try the transforms on a grey picture of twice the size; UserError where they do not make a picture of it."""
    transform_picture(PIL.Image.new("RGB", (2 * size, 2 * size), "grey"), transforms, size, random.Random(0))


def transform_picture(
    picture: PIL.Image.Image, transforms: Sequence[PictureTransform], size: int, rng: random.Random
) -> PIL.Image.Image:
    """Pass an RGB picture through transforms, which draw from a seed of `rng`; torch's own generator stays where it is.

    Raises:
        UserError: if one of them does not take this picture, or makes something else of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.getrandbits(63))
        for transform in transforms:
            picture = _apply(transform, picture, size)
    return picture


def _apply(transform: PictureTransform, picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    run = transform.make(size)
    given: Any = v2.functional.pil_to_tensor(picture) if transform.name in TENSORS_ONLY else picture
    try:
        made = run(given)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"augment: {transform.name} does not take a picture of {picture.size}: {error}") from None
    if isinstance(made, Tensor) and made.ndim == 3 and made.dtype in (torch.uint8, torch.float32):
        made = v2.functional.to_pil_image(made.clamp(0, 1) if made.is_floating_point() else made)
    if not isinstance(made, PIL.Image.Image):
        raise UserError(f"augment: {transform.name} makes {type(made).__name__} of a picture; take another transform")
    return made.convert("RGB")


class WarpConfig(Config):
    """How far each picture is turned, sheared, scaled and moved at most; all are drawn evenly, both ways."""

    renamed: ClassVar[Mapping[str, str]] = {"turn": "rotate", "shift": "translate"}
    rotate: NonNegativeFloat = 0.0  # degrees
    shear: NonNegativeFloat = 0.0  # of each axis along the other, as a share
    scale: float = Field(default=0.0, ge=0, lt=1)  # of each axis, as a share
    translate: NonNegativeFloat = 0.0  # along each axis, as a share of its side


def warp_pictures(pixels_MCHW: Tensor, warp: WarpConfig) -> Tensor:
    """Lay every picture differently, by torch's own generator; what comes in from outside repeats the border.

    All at once, in the encoder: small pictures take a twentieth of the time that torchvision takes one by one.
    """
    count, device = len(pixels_MCHW), pixels_MCHW.device

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(count, 2, device=device) - 1) * most

    angle_M = torch.deg2rad(draw(warp.rotate)[:, 0])
    turned_M22 = torch.stack((angle_M.cos(), -angle_M.sin(), angle_M.sin(), angle_M.cos()), dim=1).view(-1, 2, 2)
    sheared_M22 = torch.eye(2, device=device) + torch.diag_embed(draw(warp.shear)).flip(-1)
    scaled_M22 = torch.diag_embed(1 + draw(warp.scale))
    moved_M21 = 2 * draw(warp.translate)[..., None]  # of coordinates that run from -1 to 1
    places_M23 = torch.cat((turned_M22 @ sheared_M22 @ scaled_M22, moved_M21), dim=2)
    grid_MHW2 = F.affine_grid(places_M23, list(pixels_MCHW.shape), align_corners=False)
    return F.grid_sample(pixels_MCHW, grid_MHW2, padding_mode="border", align_corners=False)


def change_speed(samples_S: Tensor, percent: int) -> Tensor:
    """Play a sound at some percent of its speed: 110 is 1.1 times shorter, and all its frequencies 1.1 times higher.

    Whole percents keep the resampling filters small.
    """
    return samples_S if percent == 100 else resample(samples_S, percent, 100)


def add_noise(samples_S: Tensor, snr: float, seed: int) -> Tensor:
    """Add white Gaussian noise whose power, over the clip, lies `snr` dB below the sound's; silence stays silent."""
    noise_S = torch.randn(samples_S.shape, generator=torch.Generator().manual_seed(seed))
    scale = samples_S.square().mean().sqrt() / noise_S.square().mean().sqrt().clamp(min=1e-6)
    return samples_S + noise_S * scale * 10 ** (-snr / 20)

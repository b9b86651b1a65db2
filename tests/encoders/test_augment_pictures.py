"""Pictures are augmented by torchvision's transforms, by the generator they are given, and by nothing else."""

import random

import numpy as np
import PIL.Image
import pytest
import torch

from mmgpt.config import UserError, build
from mmgpt.encoders.vit import ViTConfig

SIZES = {"image_size": 16, "patch_size": 4, "width": 32, "heads": 2}
CROP = {"name": "RandomResizedCrop", "scale": [0.3, 0.6]}
JITTER = {"name": "ColorJitter", "brightness": 0.5}
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def vit(*transforms: dict) -> ViTConfig:
    return build(ViTConfig, {**SIZES, "augment": list(transforms)}, "vit")


@pytest.mark.parametrize(
    "transforms",
    [
        [CROP, JITTER],
        [{"name": "TrivialAugmentWide"}, {"name": "RandomErasing", "p": 1.0}],
        [{"name": "GaussianNoise"}],
        [{"name": "RandomRotation", "degrees": 30}, {"name": "ToImage"}],
    ],
)
def test_one_generator_one_picture_another_another_and_none_leaves_it_as_it_is(transforms):
    config = vit(*transforms)
    first, again, other = (config.prepare(PICTURE, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = vit().prepare(PICTURE)
    assert not torch.equal(first, plain)
    assert torch.equal(config.prepare(PICTURE), plain)
    assert first.shape == plain.shape == config.largest
    assert config.num_tokens(tuple(first.shape)) == 16


def test_torchs_own_generator_is_neither_read_nor_moved():
    config = vit(CROP, JITTER)
    torch.manual_seed(1)
    first, state = config.prepare(PICTURE, random.Random(0)), torch.get_rng_state()
    torch.manual_seed(2)
    again = config.prepare(PICTURE, random.Random(0))
    assert torch.equal(first, again)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_size_not_given_is_the_encoders_and_one_given_is_kept():
    assert vit(CROP).augment[0].make(16).size == (16, 16)
    assert vit({**CROP, "size": 12}).augment[0].make(16).size == (12, 12)
    assert vit({"name": "Resize", "size": [12, 20]}).prepare(PICTURE, random.Random(0)).shape == (3, 16, 16)


def test_grey_and_tensors_become_rgb_again_and_a_turn_is_the_turn():
    values = vit({"name": "Grayscale"}).prepare(PICTURE, random.Random(0))
    assert torch.equal(values[0], values[1])
    mirrored = vit({"name": "RandomHorizontalFlip", "p": 1.0}).prepare(PICTURE, random.Random(0))
    flipped = vit().prepare(PICTURE.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))
    assert torch.equal(mirrored, flipped)


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        ({"name": "RandomResizeCrop"}, "RandomResizeCrop is no transform of torchvision; did you mean RandomResizedC"),
        ({"name": "RandomApply", "transforms": [1]}, "RandomApply is no transform of torchvision; did you mean"),
        ({"name": "ColorJitter", "brightnes": 1}, "brightnes is not an argument of ColorJitter; did you mean brightn"),
        ({"name": "ColorJitter", "brightness": -1}, "ColorJitter: .*non negative"),
        ({"name": "RandomRotation"}, "RandomRotation: .*degrees"),
        ({"name": "FiveCrop"}, "FiveCrop makes tuple of a picture; take another transform"),
        ({"name": "CutMix"}, "CutMix does not take a picture of"),
        ({"scale": 1}, r"augment.0.name is missing"),
    ],
)
def test_what_is_no_transform_of_a_picture_is_refused_when_the_recipe_is_read(transform, told):
    with pytest.raises(UserError, match=told):
        vit(transform)


def test_a_picture_that_a_transform_does_not_take_is_refused_with_its_size():
    config = vit({"name": "RandomCrop", "size": 30})
    with pytest.raises(UserError, match=r"augment: RandomCrop does not take a picture of \(24, 10\)"):
        config.prepare(PICTURE.resize((24, 10)), random.Random(0))

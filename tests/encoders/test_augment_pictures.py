"""Pictures are augmented by torchvision's transforms, by the generator they are given, and by nothing else."""

import random

import numpy as np
import PIL.Image
import pytest
import torch

from mmgpt.config import UserError, build
from mmgpt.encoders.augment import WarpConfig, warp_pictures
from mmgpt.encoders.vit import ViTConfig, ViTEncoder

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
    first, again, other = (config.preprocess(PICTURE, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = vit().preprocess(PICTURE)
    assert not torch.equal(first, plain)
    assert torch.equal(config.preprocess(PICTURE), plain)
    assert first.shape == plain.shape == config.max_shape
    assert config.num_tokens(tuple(first.shape)) == 16


def test_torchs_own_generator_is_neither_read_nor_moved():
    config = vit(CROP, JITTER)
    torch.manual_seed(1)
    first, state = config.preprocess(PICTURE, random.Random(0)), torch.get_rng_state()
    torch.manual_seed(2)
    again = config.preprocess(PICTURE, random.Random(0))
    assert torch.equal(first, again)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_size_not_given_is_the_encoders_and_one_given_is_kept():
    assert vit(CROP).augment[0].make(16).size == (16, 16)
    assert vit({**CROP, "size": 12}).augment[0].make(16).size == (12, 12)
    assert vit({"name": "Resize", "size": [12, 20]}).preprocess(PICTURE, random.Random(0)).shape == (3, 16, 16)


def test_grey_and_tensors_become_rgb_again_and_a_turn_is_the_turn():
    values = vit({"name": "Grayscale"}).preprocess(PICTURE, random.Random(0))
    assert torch.equal(values[0], values[1])
    mirrored = vit({"name": "RandomHorizontalFlip", "p": 1.0}).preprocess(PICTURE, random.Random(0))
    flipped = vit().preprocess(PICTURE.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))
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
        config.preprocess(PICTURE.resize((24, 10)), random.Random(0))


def dot(row: int, column: int) -> torch.Tensor:
    pixels_MCHW = torch.zeros(1, 3, 33, 33)
    pixels_MCHW[..., row, column] = 1.0
    return pixels_MCHW


@pytest.mark.parametrize(
    ("warp", "farthest"),
    [
        ({"rotate": 30}, 10 * 2 * np.sin(np.radians(15))),
        ({"shear": 0.3}, 3.0),
        ({"scale": 0.2}, 2.5),
        ({"translate": 0.1}, 3.3),
    ],
)
def test_a_warp_moves_what_is_off_the_middle_as_far_as_it_says_and_no_farther(warp, farthest):
    torch.manual_seed(0)
    laid_MCHW = warp_pictures(dot(16, 26).expand(400, -1, -1, -1), WarpConfig(**warp))
    weights_MHW = laid_MCHW[:, 0] / laid_MCHW[:, 0].sum(dim=(1, 2), keepdim=True)
    places_N = torch.arange(33.0)
    rows_M, columns_M = (weights_MHW.sum(dim=2) * places_N).sum(dim=1), (weights_MHW.sum(dim=1) * places_N).sum(dim=1)
    moved_M = torch.maximum((rows_M - 16).abs(), (columns_M - 26).abs())
    assert farthest * 0.8 < moved_M.max() < farthest + 0.3
    assert moved_M.min() < 0.2 * farthest


def test_pictures_are_warped_while_training_alone_and_each_in_its_own_way():
    encoder = ViTEncoder(build(ViTConfig, {**SIZES, "depth": 1, "warp": {"rotate": 20}}, "vit"))
    pixels_MCHW = torch.from_numpy(np.array(PICTURE.resize((16, 16)))).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    calm_MND = encoder.eval()(pixels_MCHW)
    torch.testing.assert_close(calm_MND[0], calm_MND[1])
    warped_MND = encoder.train()(pixels_MCHW)
    assert (warped_MND[0] - warped_MND[1]).abs().max() > 1e-2
    torch.testing.assert_close(warp_pictures(pixels_MCHW.float(), WarpConfig()), pixels_MCHW.float(), atol=1e-3, rtol=0)

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from mmgpt.config import UserError, build
from mmgpt.encoders.registry import ENCODERS
from mmgpt.encoders.vit import ViTConfig, ViTEncoder

TINY = {"width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize("size", [64, 96])
def test_encoder_gives_the_features_of_timms_model_from_timms_weights(size):
    theirs = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", num_classes=0, img_size=size, fc_norm=False
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.05)
    encoder = ViTEncoder(ViTConfig(image_size=size, patch_size=16, width=192, depth=12, heads=3)).eval()
    encoder.vit.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(127.5 * (pixels + 1)), theirs.forward_features(pixels), atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(
    patches=st.integers(1, 6), patch_size=st.sampled_from([2, 4, 8]), stem=st.sampled_from(["patch", "conv", "deep"])
)
def test_the_token_count_is_the_length_of_the_real_output(patches, patch_size, stem):
    chosen = {"stem": "conv", "stem_convs": 3} if stem == "deep" else {"stem": stem}
    config = ViTConfig(image_size=patches * patch_size, patch_size=patch_size, **chosen, **TINY)
    pixels = torch.randn(1, 3, config.image_size, config.image_size)
    with torch.no_grad():
        features = ViTEncoder(config)(pixels)
    assert features.shape == (1, config.num_tokens(tuple(pixels.shape[1:])), 16)
    assert config.grids_of(config.max_shape) == ((patches, patches),)


@settings(max_examples=25)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 9))
def test_preprocessing_equals_that_of_torchvision(width, height, seed):
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    config = ViTConfig(image_size=32, patch_size=8, mean=mean, std=std, **TINY)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(values)
    theirs = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((32, 32), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    ours = ViTEncoder(config).normalise(config.preprocess(picture)[None])[0]
    torch.testing.assert_close(ours, torch.Tensor(theirs(picture)), atol=1e-5, rtol=1e-5)


def test_a_photograph_is_resized_as_by_pillow_to_one_level():
    config = ViTConfig(image_size=32, patch_size=8, **TINY)
    photograph = PIL.Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 60).convert("RGB").resize((300, 200))
    by_pillow = np.asarray(photograph.resize((32, 32), PIL.Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(config.preprocess(photograph).permute(1, 2, 0).numpy() - by_pillow).max() <= 1


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_picture_gets_the_same_features_alone_and_among_others(stem):
    encoder = ViTEncoder(ViTConfig(image_size=16, patch_size=4, stem=stem, **TINY)).eval()
    pixels = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for number in range(4):
            torch.testing.assert_close(encoder(pixels[[number]])[0], encoder(pixels)[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_features_lie_in_row_major_order(stem):
    encoder = ViTEncoder(ViTConfig(image_size=16, patch_size=4, stem=stem, **TINY)).eval()
    encoder.vit.pos_embed.data.zero_()
    encoder.vit.blocks = torch.nn.Sequential()
    blank, dotted = torch.zeros(2, 1, 3, 16, 16)
    dotted[..., 6, 14] = 5.0  # second row of patches, fourth column
    with torch.no_grad():
        change = (encoder(dotted) - encoder(blank)).abs().amax(dim=(0, 2))
    assert int(change.argmax()) == 1 * 4 + 3


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"image_size": 50, "patch_size": 8}, "patch_size=8 does not divide image_size=50"),
        ({"image_size": 16, "patch_size": 4, "width": 15}, "heads=2 does not divide width=15"),
        ({"image_size": 18, "patch_size": 6, "stem": "conv"}, "patch_size=6 must be 2, 4, 8, 16"),
    ],
)
def test_sizes_that_do_not_agree_are_refused_with_both_numbers(sizes, rule):
    with pytest.raises(UserError, match=rule):
        build(ViTConfig, {**TINY, **sizes}, "x")


def test_every_encoder_in_the_list_builds_and_says_what_it_reads():
    for name, kind in ENCODERS.items():
        assert kind.modality in ("image", "audio", "video")
        assert kind.config.model_fields["kind"].default == name
        assert issubclass(kind.module, torch.nn.Module)


def test_a_deeper_stem_has_more_convolutions_at_each_size_of_the_picture():
    def kernels(convs: int) -> list[tuple[int, ...]]:
        encoder = ViTEncoder(ViTConfig(image_size=16, patch_size=4, stem="conv", stem_convs=convs, **TINY))
        return [tuple(p.shape) for name, p in encoder.named_parameters() if "patch_embed" in name and p.ndim == 4]

    assert kernels(1) == [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 1, 1)]
    assert kernels(2) == [(16, 3, 3, 3), *[(16, 16, 3, 3)] * 3, (16, 16, 1, 1)]
    with pytest.raises(UserError, match="stem_convs=2 is for stem=conv, this is patch"):
        build(ViTConfig, {"image_size": 16, "patch_size": 4, "stem_convs": 2, **TINY}, "vit")

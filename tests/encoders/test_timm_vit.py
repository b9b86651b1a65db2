import json
import random
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from timm.data import create_transform
from timm.data.naflex_transforms import patchify_image
from timm.models import save_for_hf
from torch import nn

from mmgpt.config import UserError, build
from mmgpt.encoders.image_processing import best_tiles, native_size
from mmgpt.encoders.pretrained.timm import timm_fields
from mmgpt.encoders.registry import ENCODERS
from mmgpt.encoders.timm_vit import TimmConfig, TimmEncoder
from mmgpt.inputs.batch import collate
from mmgpt.model.adapters import ADAPTERS, FoldConfig
from mmgpt.model.config import ModelConfig

SAME = {"atol": 1e-5, "rtol": 1e-5}
TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}
EVA = {**TINY, "num_heads": 2}
TOWERS = {
    "vit_base_patch16_clip_224": {**TINY, "num_classes": 7},
    "vit_base_patch16_clip_quickgelu_224": TINY,
    "vit_base_patch16_siglip_224": TINY,
    "vit_base_patch16_224": {**TINY, "global_pool": "avg"},  # its norm stands behind the pooling
    "vit_so400m_patch16_siglip_256": {**TINY, "act_layer": "gelu_tanh"},
    "vit_small_patch14_reg4_dinov2": TINY,
    "vit_small_patch16_dinov3": EVA,
    "eva02_base_patch16_clip_224": EVA,
    "eva_giant_patch14_224": EVA,
    "beitv2_base_patch16_224": TINY,
    "naflexvit_base_patch16_siglip": {k: v for k, v in TINY.items() if k != "img_size"},
}
MAP = "naflexvit_base_patch16_siglip"


@pytest.fixture
def save(tmp_path, randomise):
    """Saves a tiny tower of timm as timm does."""

    def save(architecture, args, **pixels):
        tower = randomise(timm.create_model(architecture, **args))
        save_for_hf(tower, tmp_path, safe_serialization=True, model_args=args)
        file = tmp_path / "config.json"
        described = json.loads(file.read_text())
        described["pretrained_cfg"] |= {"input_size": [3, 32, 32], "crop_pct": 1.0, **pixels}
        file.write_text(json.dumps(described))
        return tower

    return save


def noise(height, width, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def batch_of(config, *pictures):
    """Pixels and shapes as a batch holds them."""
    media = [
        SimpleNamespace(modality="image", values=config.preprocess(one), num_tokens=0, name="", text=None, group=None)
        for one in pictures
    ]
    image = collate([SimpleNamespace(**EMPTY, media=media)]).media["image"]
    return image.values, image.shapes


EMPTY = {"ids": [1], "labels": [1], "branches": [0], "positions": [0], "key": "k", "source": "s"}


@pytest.mark.parametrize("architecture", TOWERS)
@torch.no_grad()
def test_a_saved_tower_gives_timms_features_after_every_block(architecture, tmp_path, save, read_tower):
    tower = save(architecture, TOWERS[architecture])
    pixels, shapes = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[3, 32, 32]] * 2)
    encoder = read_tower(tmp_path)
    normal = encoder.normalise(pixels)
    prefix, last = encoder.config.prefix_tokens, tower.forward_features(normal)
    torch.testing.assert_close(encoder(pixels, shapes), last[:, prefix:], **SAME)
    assert last.std() > 0.1
    blocks = tower.forward_intermediates(normal, output_fmt="NLC", intermediates_only=True)
    for layer in (-2, -3):
        assert read_tower(tmp_path, layer=layer)(pixels, shapes).equal(blocks[layer])
    assert read_tower(tmp_path, post_norm=False)(pixels, shapes).equal(blocks[-1])
    whole = read_tower(tmp_path, tokens="all")
    torch.testing.assert_close(whole(pixels, shapes), last, **SAME)
    for read_as in (encoder, whole):
        assert len(read_as(pixels, shapes)[0]) == read_as.config.num_tokens((3, 32, 32))


def test_fields_say_all_that_an_adapter_and_a_saved_model_need(tmp_path, save):
    save("vit_small_patch14_reg4_dinov2", TINY, mean=[0.1, 0.2, 0.3], interpolation="bilinear")
    fields = timm_fields(tmp_path)
    sizes = {"width": 32, "depth": 3, "patch_size": 8, "image_size": 32, "prefix_tokens": 5}
    assert sizes.items() <= fields.items()
    assert (fields["mean"], fields["interpolation"]) == ([0.1, 0.2, 0.3], "bilinear")
    config = TimmConfig(**fields)
    assert TimmConfig(**json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (61, 90), (20, 11), (40, 3)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_timms_to_a_fraction_of_a_level(size, crop_pct, crop, interpolation, tmp_path, save, photograph):
    save("vit_base_patch16_clip_224", TINY, crop_mode=crop, crop_pct=crop_pct, interpolation=interpolation)
    config = TimmConfig(**timm_fields(tmp_path))
    theirs = create_transform(
        (3, 32, 32), crop_mode=crop, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    picture = photograph(*size)
    gaps = (config.preprocess(picture).int() - theirs(picture).int()).abs().float()
    assert gaps.max() <= 3  # at the hard edges of small pictures
    assert gaps.mean() < 0.2


@pytest.mark.parametrize("architecture", ["vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", MAP])
@torch.no_grad()
def test_in_bfloat16_features_are_within_its_rounding(architecture, tmp_path, save, read_tower):
    save(architecture, TOWERS[architecture])
    options = {"max_patches": 16} if architecture == MAP else {}
    encoder = read_tower(tmp_path, **options)
    batch = batch_of(encoder.config, noise(40, 30), noise(20, 60))
    exact, rounded = encoder(*batch), encoder.to(torch.bfloat16)(*batch)
    assert rounded.dtype is torch.bfloat16
    assert (rounded - exact).norm() < 0.03 * exact.norm()


@torch.no_grad()
def test_pictures_of_any_ratio_get_timms_features_alone_and_together(tmp_path, save, read_tower):
    tower = save(MAP, TOWERS[MAP])
    encoder = read_tower(tmp_path, max_patches=20)
    sizes = [(40, 40), (200, 31), (31, 200), (3, 500), (1, 1), (77, 100)]
    pictures = [noise(*size) for size in sizes]
    together = encoder(*batch_of(encoder.config, *pictures))
    grids = []
    for picture, features in zip(pictures, together, strict=True):
        pixels, shapes = batch_of(encoder.config, picture)
        (grid,) = encoder.config.grids_of(tuple(pixels.shape[1:]))
        patches, places, valid = patchify_image(encoder.normalise(pixels)[0], (8, 8))
        theirs = tower.forward_features(patches[None], places[None], valid[None])["patches"][0]
        assert len(theirs) == grid[0] * grid[1] == encoder.config.num_tokens(tuple(pixels.shape[1:]))
        torch.testing.assert_close(encoder(pixels, shapes)[0], theirs, **SAME)
        torch.testing.assert_close(features[: len(theirs)], theirs, **SAME)
        assert torch.isfinite(features).all()
        grids.append(grid)
    assert grids == [(4, 4), (10, 2), (2, 10), (1, 20), (4, 4), (4, 5)]


@pytest.mark.parametrize("multiple", [1, 2])
def test_the_largest_size_of_so_many_patches_keeps_the_ratio(multiple):
    draw = random.Random(0)
    for _ in range(50):
        height, width, most = draw.randint(1, 3000), draw.randint(1, 3000), draw.randint(4, 1024)
        rows, columns = (side // 16 for side in native_size(height, width, 16, most))
        assert rows * columns <= most
        assert rows * columns > most - max(rows, columns) - min(rows, columns) or 1 in (rows, columns)
        assert rows / columns == pytest.approx(height / width, rel=1 / rows + 1 / columns) or 1 in (rows, columns)


def test_gradients_reach_every_weight_of_a_padded_batch_and_are_finite(tmp_path, save, read_tower):
    save(MAP, TOWERS[MAP])
    encoder = read_tower(tmp_path, max_patches=20)
    values, shapes = batch_of(encoder.config, noise(40, 40), noise(10, 90))
    features = encoder(values, shapes)
    sum(f[: h * w // 64].square().sum() for f, (_, h, w) in zip(features, shapes.tolist(), strict=True)).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("size", "tiles", "grid"),
    [
        ((30, 30), 6, (1, 1)),  # no larger than a tile
        ((64, 64), 6, (2, 2)),
        ((200, 200), 6, (2, 2)),
        ((60, 90), 6, (2, 3)),
        ((90, 60), 6, (3, 2)),
        ((20, 500), 6, (1, 6)),
        ((500, 500), 1, (1, 1)),
    ],
)
def test_the_tiles_chosen_keep_most_pixels_and_waste_fewest(size, tiles, grid):
    assert best_tiles(*size, 32, tiles) == grid


@torch.no_grad()
def test_tiles_and_the_whole_picture_are_encoded_each_by_itself_alone_and_together(tmp_path, save, read_tower):
    tower = save("vit_base_patch16_siglip_224", TINY)
    encoder = read_tower(tmp_path, tiles=6)
    config, pictures = encoder.config, [noise(30, 30), noise(60, 90), noise(70, 33)]
    values, shapes = batch_of(config, *pictures)
    assert shapes.tolist() == [[3, 32, 32], [3, 64, 96], [3, 96, 64]]
    together = encoder(values, shapes)
    counts = [len(config.grids_of(tuple(shape))) for shape in shapes.tolist()]
    assert counts == [1, 7, 7]
    assert len(together) == sum(counts)
    alone = torch.cat([encoder(*batch_of(config, one)) for one in pictures])
    torch.testing.assert_close(together, alone, **SAME)
    large = encoder.normalise(config.preprocess(pictures[1]))
    tiles = [large[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32, 64)]
    small = nn.functional.interpolate(large[None], (32, 32), mode="bicubic", antialias=True)
    expected = tower.forward_features(torch.cat([torch.stack(tiles), small]))
    torch.testing.assert_close(together[1:8], expected, **SAME)
    assert config.num_tokens((3, 64, 96)) == 7 * 16
    assert config.num_tokens(config.max_shape) == 7 * 16


def model_of(fields, adapter, heads=(), **options):
    return {
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "encoders": {"image": {"kind": "timm", **fields, **options}},
        "adapters": {"image": adapter},
        "heads": list(heads),
    }


@torch.no_grad()
def test_a_fold_takes_tiles_and_pictures_of_any_ratio_as_many_tokens_as_it_says(tmp_path, save, read_tower):
    save(MAP, TOWERS[MAP])
    pictures = [noise(30, 30), noise(200, 31), noise(90, 100)]
    for options in ({"max_patches": 40, "multiple": 2}, {"tiles": 6}):
        encoder, adapter = read_tower(tmp_path, **options), FoldConfig(kind="fold", stride=2)
        config = build(ModelConfig, model_of(timm_fields(tmp_path), adapter.model_dump(), **options), "x")
        values, shapes = batch_of(encoder.config, *pictures)
        grids = [grid for shape in shapes.tolist() for grid in encoder.config.grids_of(tuple(shape))]
        tokens = ADAPTERS["fold"](adapter, width=32, out_width=32, grid=grids[0])(encoder(values, shapes), grids)
        assert len(tokens) == len(grids)
        processor = config.media_processors()["image"]
        assert [processor.num_tokens(tuple(shape)) for shape in shapes.tolist()] == (
            [9, 7, 9] if "multiple" in options else [4, 28, 28]
        )


@pytest.mark.parametrize(
    ("adapter", "options", "heads", "rule"),
    [
        ({"kind": "resampler", "heads": 2}, {"max_patches": 16}, [], "resampler learns the places of one grid"),
        ({"kind": "fold", "places": True}, {"max_patches": 16, "multiple": 2}, [], "fold with places: false"),
        ({"kind": "fold", "stride": 2}, {"max_patches": 16}, [], "stride=2 does not divide the encoder's multiple=1"),
        ({"kind": "fold"}, {"tokens": "all"}, [], "take mlp, which has a stride too, and for an encoder's tokens: all"),
        (
            {"kind": "linear"},
            {"tiles": 4},
            [{"kind": "classify", "modality": "image", "labels": ["a", "b"]}],
            "head classify learns from whole media, but encoder timm cuts the largest into 5 pieces",
        ),
    ],
)
def test_what_cannot_take_pieces_is_refused_when_the_recipe_is_read(adapter, options, heads, rule, tmp_path, save):
    save(MAP, TOWERS[MAP])
    with pytest.raises(UserError, match=rule):
        build(ModelConfig, model_of(timm_fields(tmp_path), adapter, heads, **options), "x")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"architecture": "vit_base_patch16_klip_224"}, "is no model of timm; did you mean vit_base_patch16_clip_224"),
        ({"layer": -4}, "layer=-4: the tower has 3 blocks; give -1 to -3"),
        ({"layer": 0}, "layer"),
        ({"max_patches": 16}, "takes pictures of one size"),
        ({"architecture": MAP, "max_patches": 16, "tiles": 2}, "tiles=2 is for pictures of one size"),
        ({"architecture": MAP, "max_patches": 16, "tokens": "all"}, "tokens=all is for pictures of one size"),
        ({"architecture": MAP, "max_patches": 3, "multiple": 2}, "max_patches=3 is below multiple=2 squared"),
        ({"multiple": 2}, "give max_patches too"),
        ({"interpolation": "nearest"}, "interpolation"),
    ],
)
def test_a_wrong_field_is_refused_with_its_rule(options, rule, tmp_path, save):
    save("vit_base_patch16_clip_224", TINY)
    with pytest.raises(UserError, match=rule):
        build(TimmConfig, {**timm_fields(tmp_path), **options}, "x")


@pytest.mark.parametrize("absent", ["mean", "std", "interpolation", "input_size", "crop_pct"])
def test_pixels_that_a_checkpoint_does_not_describe_are_never_guessed(absent, tmp_path, save):
    save("vit_base_patch16_clip_224", TINY, **{absent: None})
    with pytest.raises(UserError, match=f"has no {absent}, so the tower's pixels are unknown; write it into"):
        timm_fields(tmp_path)


def test_wrong_weights_and_arguments_are_refused_by_name(tmp_path, save):
    save("vit_base_patch16_clip_224", TINY)
    fields, weights = timm_fields(tmp_path), ENCODERS["timm"].weights
    deeper = TimmConfig(**{**fields, "depth": 4, "model_args": {**TINY, "depth": 4}})
    with pytest.raises(UserError, match=r"12 missing: tower.blocks.3.attn.proj.bias"):
        weights(tmp_path, deeper)
    with pytest.raises(UserError, match="has depth=3, the config says 5"):
        TimmEncoder(TimmConfig(**{**fields, "depth": 5}))
    with pytest.raises(UserError, match=r"timm cannot build .* {'colour': 1}: .*mend model_args"):
        TimmEncoder(TimmConfig(**{**fields, "model_args": {"colour": 1}}))
    with pytest.raises(UserError, match="resnet18 is no ViT"):
        TimmEncoder(TimmConfig(**{**fields, "architecture": "resnet18", "model_args": {}}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="names no architecture of timm, and its model_type 'bert'"):
        ENCODERS["timm"].fields(tmp_path)

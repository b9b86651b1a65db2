import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.model.adapters import ADAPTERS, FoldConfig, LinearConfig, MLPConfig, ResamplerConfig
from mmgpt.model.config import ModelConfig

WIDTH, OUT = 8, 12
sides = st.integers(1, 7)


def make(config, grid, out_width=OUT):
    return ADAPTERS[config.kind](config, width=WIDTH, out_width=out_width, grid=grid)


@given(rows=sides, columns=sides, stride=st.integers(1, 5))
def test_every_adapter_gives_as_many_tokens_as_it_says(rows, columns, stride):
    grid, features = (rows, columns), torch.randn(2, rows * columns, WIDTH)
    configs = [
        LinearConfig(kind="linear"),
        MLPConfig(kind="mlp", stride=stride),
        ResamplerConfig(kind="resampler", queries=stride, depth=1, heads=2),
    ]
    if rows % stride == columns % stride == 0:
        configs.append(FoldConfig(kind="fold", stride=stride))
    for config in configs:
        out = make(config, grid)(features, [grid] * 2)
        assert out.shape == (2, config.num_tokens(grid), OUT), config


def test_fold_joins_each_square_of_patches_in_reading_order():
    """Compared with torch's own unfolding of squares into columns."""
    grid, stride = (4, 6), 2
    adapter = make(FoldConfig(kind="fold", stride=stride), grid)
    features_MND = torch.randn(3, math.prod(grid), WIDTH)
    image_MDHW = features_MND.transpose(1, 2).reshape(3, WIDTH, *grid)
    columns = torch.nn.functional.unfold(image_MDHW, stride, stride=stride)  # (M, D * s * t, h * w)
    squares = columns.reshape(3, WIDTH, stride**2, -1).permute(0, 3, 2, 1).flatten(2)
    torch.testing.assert_close(adapter(features_MND, [grid] * 3), adapter.project(squares))


@given(length=st.integers(1, 9), stride=st.integers(1, 4))
def test_mlp_joins_features_in_a_row_and_pads_the_last_with_zeros(length, stride):
    adapter = make(MLPConfig(kind="mlp", stride=stride), (length,))
    features = torch.randn(1, length, WIDTH)
    out = adapter(features, [(length,)])
    for token in range(out.shape[1]):
        own = features[0, token * stride : (token + 1) * stride].flatten()
        padded = torch.cat([own, torch.zeros(stride * WIDTH - len(own))])
        torch.testing.assert_close(out[0, token], adapter.project(padded), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_medium_gets_the_same_tokens_alone_and_among_others(kind):
    configs = {"linear": LinearConfig, "mlp": MLPConfig, "fold": FoldConfig, "resampler": ResamplerConfig}
    adapter = make(configs[kind](kind=kind), (4, 4), out_width=16)
    features = torch.randn(5, 16, WIDTH)
    together = adapter(features, [(4, 4)] * 5)
    for number in range(5):
        alone = adapter(features[[number]], [(4, 4)])[0]
        torch.testing.assert_close(alone, together[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config", [LinearConfig(kind="linear"), MLPConfig(kind="mlp", stride=3), ResamplerConfig(kind="resampler")]
)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=4))
def test_a_clip_gets_the_same_tokens_at_any_padding(config, lengths):
    adapter = make(config, (12,), out_width=16)
    features = torch.randn(len(lengths), 12, WIDTH) * 100  # whatever stands in the padding
    together = adapter(features, [(length,) for length in lengths])
    for number, length in enumerate(lengths):
        alone = adapter(features[[number], :length], [(length,)])[0]
        assert len(alone) == config.num_tokens((length,))
        torch.testing.assert_close(alone, together[number, : len(alone)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config", [LinearConfig(kind="linear"), MLPConfig(kind="mlp", stride=3), FoldConfig(kind="fold", stride=2)]
)
@given(grids=st.lists(st.tuples(sides, sides).map(lambda grid: (2 * grid[0], 2 * grid[1])), min_size=1, max_size=4))
def test_pieces_of_any_grids_get_the_same_tokens_alone_and_together(config, grids):
    adapter, most = make(config, max(grids, key=math.prod)), max(map(math.prod, grids))
    features = torch.randn(len(grids), most, WIDTH) * 100  # whatever stands in the padding
    together = adapter(features, grids)
    for number, grid in enumerate(grids):
        alone = adapter(features[[number], : math.prod(grid)], [grid])[0]
        assert len(alone) == config.num_tokens(grid)
        torch.testing.assert_close(alone, together[number, : len(alone)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp", "fold"])
def test_media_tokens_begin_about_as_large_as_text_embeddings(kind):
    configs = {"linear": LinearConfig, "mlp": MLPConfig, "fold": FoldConfig}
    adapter = ADAPTERS[kind](configs[kind](kind=kind), width=64, out_width=256, grid=(4, 4))
    features = torch.nn.functional.layer_norm(torch.randn(8, 16, 64), (64,))
    out = adapter(features, [(4, 4)] * 8)
    assert 0.2 < out.std().item() * 256**0.5 < 1.5


@given(rows=sides, columns=sides, stride=st.integers(2, 5))
def test_a_stride_that_does_not_divide_the_grid_is_refused_with_those_that_do(rows, columns, stride):
    config = FoldConfig(kind="fold", stride=stride)
    if rows % stride == columns % stride == 0:
        assert config.num_tokens((rows, columns)) == rows * columns // stride**2
        return
    good = [s for s in range(1, 8) if math.gcd(rows, columns) % s == 0]
    with pytest.raises(
        ValueError, match=rf"stride={stride} does not divide the {rows}x{columns} patch grid; use one of"
    ) as caught:
        config.num_tokens((rows, columns))
    assert str(caught.value).endswith(str(good))


def test_heads_that_do_not_divide_the_decoders_width_are_refused_when_the_recipe_is_read():
    vit = {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}
    tree = {
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "encoders": {"image": vit},
        "adapters": {"image": {"kind": "resampler", "heads": 5}},
    }
    with pytest.raises(UserError, match="heads=5 does not divide"):
        build(ModelConfig, tree, "x")

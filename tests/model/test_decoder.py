import pytest
import torch
from torch import Tensor, nn

from mmgpt.model.decoder import Decoder, cached_attention_mask
from mmgpt.model.layers import DecoderConfig, FeedForward

VOCAB, WIDTH, DEPTH, HEADS, CONTEXT = 97, 48, 2, 4, 24


def shake(model: nn.Module) -> nn.Module:
    """Weights far from their initial ones, so that no scale of 1 and no bias of 0 hides a mistake."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.15)
    return model.eval()


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(VOCAB, (2, CONTEXT))


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("local", [{}, {"window": 5, "global_layers": [1], "attention_softcap": 1.5}])
@torch.no_grad()
def test_cached_decoding_gives_the_hidden_states_of_one_full_pass(position, kv_heads, token_shift, local, ids_BT):
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "kv_heads": kv_heads, "context": CONTEXT}
    config = DecoderConfig(**sizes, **local, position=position, token_shift=token_shift)
    decoder = shake(Decoder(config, VOCAB))
    positions_BT = torch.arange(CONTEXT).expand_as(ids_BT)
    whole_BTD = decoder(decoder.embed(ids_BT), positions_BT)
    cache = decoder.new_cache(len(ids_BT), CONTEXT)
    pieces = []
    for first, last in [(0, 7), (7, 8), (8, 12), (12, CONTEXT)]:
        part_BT = positions_BT[:, first:last]
        attention_mask = cached_attention_mask(part_BT, CONTEXT)
        pieces.append(decoder(decoder.embed(ids_BT[:, first:last]), part_BT, attention_mask, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole_BTD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", ["rope", "learned"])
@torch.no_grad()
def test_wanted_tokens_get_the_hidden_states_of_a_full_pass(position, masked, ids_BT):
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "kv_heads": 2, "context": CONTEXT}
    decoder = shake(Decoder(DecoderConfig(**sizes, position=position, token_shift=True, qk_norm=True), VOCAB))
    positions_BT = torch.arange(CONTEXT).expand_as(ids_BT)
    attention_mask = torch.rand(len(ids_BT), 1, CONTEXT, CONTEXT) < 0.5 if masked else None
    if attention_mask is not None:
        attention_mask |= torch.eye(CONTEXT, dtype=torch.bool)
    output_positions_BW = torch.stack([torch.randperm(CONTEXT)[:5] for _ in ids_BT])
    whole_BTD = decoder(decoder.embed(ids_BT), positions_BT, attention_mask)
    wanted_BWD = decoder(decoder.embed(ids_BT), positions_BT, attention_mask, output_positions_BW=output_positions_BW)
    expected_BWD = torch.stack([row[places] for row, places in zip(whole_BTD, output_positions_BW, strict=True)])
    torch.testing.assert_close(wanted_BWD, expected_BWD, atol=1e-5, rtol=1e-5)


def test_squared_relu_gives_the_slopes_of_autograd():
    config = DecoderConfig(width=WIDTH, heads=HEADS, mlp="relu2")
    mlp, x_BTD = FeedForward(config), torch.randn(2, 3, WIDTH, requires_grad=True)
    mlp(x_BTD).square().sum().backward()
    ours, x_BTD.grad = x_BTD.grad, None
    mlp.down(torch.relu(mlp.up(x_BTD)) ** 2).square().sum().backward()
    torch.testing.assert_close(ours, x_BTD.grad, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rotary_attention_sees_only_distances(ids_BT):
    decoder = shake(Decoder(DecoderConfig(width=WIDTH, depth=DEPTH, heads=HEADS, context=CONTEXT), VOCAB))
    positions_BT = torch.arange(CONTEXT).expand_as(ids_BT)
    x_BTD = decoder.embed(ids_BT)
    torch.testing.assert_close(decoder(x_BTD, positions_BT + 50), decoder(x_BTD, positions_BT), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_zero_init_begins_as_the_identity_of_the_blocks(ids_BT):
    decoder = Decoder(DecoderConfig(width=WIDTH, depth=DEPTH, heads=HEADS, context=CONTEXT), VOCAB)
    x_BTD = decoder.embed(ids_BT)
    torch.testing.assert_close(decoder(x_BTD, torch.arange(CONTEXT).expand_as(ids_BT)), decoder.norm(x_BTD))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ({"width": 30, "heads": 4}, "heads=4 does not divide width=30"),
        ({"width": 32, "heads": 4, "kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"width": 36, "heads": 4}, "head width 9 is odd"),
        (
            {"width": 32, "heads": 4, "depth": 3, "window": 8, "global_layers": [3]},
            "global_layers holds 3, but depth=3",
        ),
        ({"width": 32, "heads": 4, "depth": 3, "unrotated_layers": [1, 7]}, "unrotated_layers holds 7, but depth=3"),
    ],
)
def test_heads_and_layers_that_do_not_fit_are_refused_with_both_numbers(fault, rule):
    with pytest.raises(ValueError, match=rule):
        DecoderConfig(**fault)

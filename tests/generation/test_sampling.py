import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

from mmgpt.config import UserError, build
from mmgpt.generation.sampling import Chooser, GenerateConfig, draw, keep_top_k, keep_top_p, next_tokens

CHI_SQUARE_19_ONE_IN_A_MILLION = 66.0  # upper 1e-6 quantile of chi-square with 19 degrees is 64.9


def logits() -> st.SearchStrategy[torch.Tensor]:
    """A few rows whose values are all different and far enough apart to have one order."""
    values = st.lists(st.integers(-400, 400), min_size=2, max_size=24, unique=True)
    return values.map(lambda row: torch.tensor([row, row[::-1]], dtype=torch.float32) / 40)


def kept(filtered_BV: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in filtered_BV]


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


@given(logits(), st.integers(0, 30))
def test_top_k_keeps_the_k_largest_unchanged(logits_BV, k):
    filtered_BV = keep_top_k(logits_BV, k)
    wanted = min(k, logits_BV.shape[1]) or logits_BV.shape[1]
    for row, (before, own) in enumerate(zip(logits_BV, kept(filtered_BV), strict=True)):
        assert own == set(sorted(range(len(before)), key=lambda i: -before[i])[:wanted])
        assert torch.equal(filtered_BV[row, sorted(own)], before[sorted(own)])


@given(logits(), st.floats(0.001, 1))
def test_top_p_keeps_the_smallest_set_of_likeliest_tokens_that_reaches_p(logits_BV, p):
    for before, own in zip(logits_BV, kept(keep_top_p(logits_BV, p)), strict=True):
        probabilities = before.double().softmax(dim=-1).tolist()
        order = sorted(range(len(before)), key=lambda i: -probabilities[i])
        assert own == set(order[: len(own)])
        assert order[0] in own
        assert sum(probabilities[i] for i in own) >= p - 1e-5
        assert len(own) == 1 or sum(probabilities[i] for i in order[: len(own) - 1]) < p + 1e-5


@given(logits(), st.integers(1, 30), st.floats(0.001, 1))
def test_both_filters_together_always_keep_the_likeliest(logits_BV, k, p):
    for before, own in zip(logits_BV, kept(keep_top_p(keep_top_k(logits_BV, k), p)), strict=True):
        assert int(before.argmax()) in own
        assert len(own) <= k


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution_at_a_temperature(temperature):
    logits_V = torch.randn(20)
    count = 20_000
    options = GenerateConfig(temperature=temperature)
    own = [torch.Generator().manual_seed(7)] * count  # one generator, drawn from row after row
    drawn_N = next_tokens(logits_V.expand(count, -1), [Chooser(options, one) for one in own])
    expected_V = count * Categorical(logits=logits_V / temperature).probs
    chi_square = ((drawn_N.bincount(minlength=20) - expected_V) ** 2 / expected_V).sum()
    assert chi_square < CHI_SQUARE_19_ONE_IN_A_MILLION
    if temperature != 1:
        wrong_V = count * Categorical(logits=logits_V).probs
        assert ((drawn_N.bincount(minlength=20) - wrong_V) ** 2 / wrong_V).sum() > CHI_SQUARE_19_ONE_IN_A_MILLION


@given(logits(), st.integers(1, 5), st.floats(0.01, 1), st.floats(0.05, 5), st.integers(0, 99))
def test_a_draw_is_always_one_of_the_kept_tokens(logits_BV, k, p, temperature, seed):
    options = GenerateConfig(temperature=temperature, top_k=k, top_p=p)
    drawn_B = next_tokens(logits_BV, [Chooser(options, one) for one in generators(2, seed)])
    for token, own in zip(drawn_B.tolist(), kept(keep_top_k(logits_BV, k)), strict=True):
        assert token in own


@given(logits())
def test_no_temperature_is_the_argmax(logits_BV):
    assert torch.equal(
        next_tokens(logits_BV, [Chooser(GenerateConfig(), one) for one in generators(2)]), logits_BV.argmax(dim=-1)
    )


def test_a_row_draws_the_same_alone_as_in_a_batch():
    logits_BV = torch.randn(5, 50)
    together = [draw(logits_BV, own).tolist() for own in [generators(5)] for _ in range(8)]
    for row in range(5):
        own = generators(5)[row : row + 1]
        assert [draw(logits_BV[row : row + 1], own).item() for _ in range(8)] == [step[row] for step in together]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": -2}, "top_k=-2"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"stop": "yes"}, "stop='yes'"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_wrong_options_are_refused_with_their_value(options, told):
    with pytest.raises(UserError, match=told):
        build(GenerateConfig, options, "generation options")

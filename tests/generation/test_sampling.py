import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.generation.sampling import (
    GenerateConfig,
    Sampler,
    apply_filters,
    apply_repetition_penalty,
    best_candidate,
    candidate_seed,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    make_sampler,
    multinomial,
    sample_tokens,
    token_scores,
)

DRAWS = 20_000
ONE_IN_A_MILLION = [23.9, 27.6, 30.7, 33.4, 35.9, 38.3, 40.5, 42.7, 44.8, 46.9]  # chi-square of 1 to 10 degrees
CHI_SQUARE_19_ONE_IN_A_MILLION = 64.9
VOCAB = 20


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


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_same_of_a_large_vocabulary_whether_few_tokens_reach_p_or_many(p):
    logits_BV = torch.randn(3, 2000) * torch.tensor([[0.1], [1.0], [8.0]])
    wanted_BV = torch.stack([transformers.TopPLogitsWarper(p)(None, row[None])[0] for row in logits_BV.double()])
    together = keep_top_p(logits_BV, p)
    for row in range(3):
        alone = keep_top_p(logits_BV[row : row + 1], p)[0]
        assert torch.equal(alone, together[row])
        found, wanted = kept(alone[None])[0], kept(wanted_BV[row : row + 1])[0]
        assert len(found ^ wanted) <= 1  # at the edge of p, in float32
    assert len(kept(together)[0]) > 50 > len(kept(together)[2])


@given(logits(), st.integers(1, 30), st.floats(0.001, 1))
def test_both_filters_together_always_keep_the_likeliest(logits_BV, k, p):
    for before, own in zip(logits_BV, kept(keep_top_p(keep_top_k(logits_BV, k), p)), strict=True):
        assert int(before.argmax()) in own
        assert len(own) <= k


@given(logits(), st.floats(0, 1))
def test_min_p_keeps_the_tokens_near_enough_to_the_likeliest(logits_BV, p):
    for before, own in zip(logits_BV, kept(keep_min_p(logits_BV, p)), strict=True):
        shares = (before.double() - before.double().max()).exp().tolist()
        assert {i for i, share in enumerate(shares) if share > p * 1.001} <= own
        assert own <= {i for i, share in enumerate(shares) if share >= p * 0.999}


def sampler(seed: int = 0, prompt: list[int] | None = None, **options) -> Sampler:
    return make_sampler(GenerateConfig(**options), None, seed, prompt or [], eos_token_id=-1)


PENALISED = [0, 3, 3, 7, 11]  # a prompt that says a token twice
WAYS = {
    "temperature": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top-k": {"temperature": 1.0, "top_k": 5},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
    "min-p": {"temperature": 1.5, "min_p": 0.15},
    "penalty": {"temperature": 1.0, "repetition_penalty": 1.8},
    "all": {"temperature": 1.7, "top_k": 12, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 0.6},
}


def filtered_by_transformers(logits_BV: torch.Tensor, options: GenerateConfig) -> torch.Tensor:
    """The processors and warpers of transformers, in the order in which its `generate` calls them."""
    asked = torch.tensor([PENALISED]).expand(len(logits_BV), -1)
    steps = [
        transformers.RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
        transformers.TemperatureLogitsWarper(options.temperature),
        transformers.TopKLogitsWarper(options.top_k or VOCAB),
        transformers.TopPLogitsWarper(options.top_p),
        transformers.MinPLogitsWarper(options.min_p),
    ]
    for step in steps:
        logits_BV = step(asked, logits_BV)
    return logits_BV


def filtered(logits_BV: torch.Tensor, options: GenerateConfig) -> torch.Tensor:
    seen_V = torch.zeros(VOCAB, dtype=torch.bool)
    seen_V[PENALISED] = True
    return apply_filters(apply_repetition_penalty(logits_BV, seen_V, options.repetition_penalty), options)


@pytest.mark.parametrize("way", WAYS)
def test_the_logits_to_draw_by_are_those_of_transformers(way):
    options, logits_BV = GenerateConfig(**WAYS[way]), 3 * torch.randn(50, VOCAB)
    wanted_BV = filtered_by_transformers(logits_BV, options)
    torch.testing.assert_close(filtered(logits_BV, options), wanted_BV, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(wanted_BV, logits_BV)


def chi_square(counts_V: torch.Tensor, probabilities_V: torch.Tensor) -> float:
    expected_V = DRAWS * probabilities_V
    assert counts_V[expected_V == 0].sum() == 0
    real = expected_V > 0
    return float(((counts_V[real] - expected_V[real]) ** 2 / expected_V[real]).sum())


def limit(probabilities_V: torch.Tensor) -> float:
    degrees = int((probabilities_V > 0).sum()) - 1
    return ONE_IN_A_MILLION[degrees - 1] if degrees <= 10 else CHI_SQUARE_19_ONE_IN_A_MILLION


@pytest.mark.parametrize("way", WAYS)
def test_draws_follow_the_exact_distribution(way):
    options, logits_V = GenerateConfig(**WAYS[way]), 1.5 * torch.randn(VOCAB)
    exact_V = filtered_by_transformers(logits_V[None], options)[0].double().softmax(dim=-1)
    one = sampler(7, PENALISED, **WAYS[way])
    counts_V = torch.zeros(VOCAB)
    if way == "all":  # through the chooser itself, which would count what it chose as said
        for _ in range(DRAWS // 10):
            one.seen_V = None
            counts_V[one.sample(logits_V)] += 10
        assert chi_square(counts_V, exact_V) / 10 < limit(exact_V)
        return
    drawn_N = multinomial(filtered(logits_V[None], options).expand(DRAWS, -1), [one.generator] * DRAWS)
    counts_V = drawn_N.bincount(minlength=VOCAB)
    assert chi_square(counts_V, exact_V) < limit(exact_V)
    plain_V = logits_V.softmax(dim=-1)
    assert chi_square(counts_V, plain_V) > CHI_SQUARE_19_ONE_IN_A_MILLION


@given(logits(), st.integers(1, 5), st.floats(0.01, 1), st.floats(0.05, 5), st.floats(0, 1), st.integers(0, 99))
def test_a_draw_is_always_one_of_the_kept_tokens(logits_BV, k, p, temperature, min_p, seed):
    options = {"temperature": temperature, "top_k": k, "top_p": p, "min_p": min_p}
    drawn_B = sample_tokens(logits_BV, [sampler(seed, **options), sampler(seed + 1, **options)])
    for token, own in zip(drawn_B.tolist(), kept(keep_top_k(logits_BV, k)), strict=True):
        assert token in own


@given(logits())
def test_no_temperature_is_the_argmax(logits_BV):
    assert torch.equal(sample_tokens(logits_BV, [sampler(), sampler()]), logits_BV.argmax(dim=-1))


def test_rows_with_options_of_their_own_choose_the_same_alone_as_in_any_batch():
    ways = [{}, *WAYS.values(), {"repetition_penalty": 1.5}]
    steps_SBV = torch.randn(8, len(ways), VOCAB)

    def samplers():
        return [sampler(row, PENALISED, **way) for row, way in enumerate(ways)]

    own = samplers()
    together = [sample_tokens(logits_BV, own).tolist() for logits_BV in steps_SBV]
    own = samplers()[::-1]
    assert [sample_tokens(logits_BV.flip(0), own).tolist()[::-1] for logits_BV in steps_SBV] == together
    for row, one in enumerate(samplers()):
        alone = [sample_tokens(logits_BV[row : row + 1], [one]).item() for logits_BV in steps_SBV]
        assert alone == [step[row] for step in together]


def test_the_penalty_counts_what_was_chosen_too():
    logits_V = torch.tensor([2.0, 1.9, 1.8, -1.0])
    one = sampler(repetition_penalty=1.5, prompt=[2])
    assert [one.sample(logits_V) for _ in range(3)] == [0, 1, 0]  # 2 is at 1.2, then 0 at 1.33, then 1 at 1.27
    assert sampler(repetition_penalty=1.5).sample(-logits_V) == 3


def test_the_least_and_the_largest_share_draw_the_first_and_the_last_token_that_can_be(monkeypatch):
    logits_BV = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for share, token in ((0.0, 1), (1 - 2**-50, 2)):
        monkeypatch.setattr(torch, "rand", lambda *_, share=share, **__: torch.tensor([share], dtype=torch.float64))
        assert multinomial(logits_BV, [torch.Generator()]).tolist() == [token]


def test_best_of_takes_the_highest_mean_and_the_first_of_equals():
    assert best_candidate([[-1.0, -1.0], [-0.5], [-0.1, -0.9], []]) == 1
    assert best_candidate([[-2.0] * 9, [-3.0]]) == 0


def test_candidates_of_neighbouring_requests_have_seeds_of_their_own():
    seeds = {candidate_seed(seed, candidate) for seed in range(1000) for candidate in range(64)}
    assert len(seeds) == 64_000
    assert candidate_seed(2**40, 0) == 2**40
    drawn = {tuple(torch.rand(2, generator=torch.Generator().manual_seed(candidate_seed(5, i)))) for i in range(9)}
    assert len(drawn) == 9


@pytest.mark.parametrize("top", [0, 3, 99])
def test_a_token_is_told_with_its_logprob_and_the_likeliest_others(top):
    logits_BV, ids_B = torch.randn(4, VOCAB), torch.tensor([0, 5, 5, 19])
    exact_BV = logits_BV.double().softmax(dim=-1).log()
    for row, score in enumerate(token_scores(logits_BV, ids_B, top)):
        assert score.logprob == pytest.approx(float(exact_BV[row, ids_B[row]]), abs=1e-6)
        order = sorted(range(VOCAB), key=lambda i, row=row: -float(exact_BV[row, i]))[:top]
        assert [i for i, _ in score.top] == order
        assert [logprob for _, logprob in score.top] == pytest.approx(exact_BV[row, order].tolist(), abs=1e-6)


BEAMS = {"num_beams": 4}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": -2}, "top_k=-2"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"best_of": 0}, "best_of=0"),
        ({"top_logprobs": -1}, "top_logprobs=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"stop": "yes"}, "stop='yes'"),
        ({"stop": [""]}, "stop"),
        ({"speculation": "magic"}, "speculation='magic'"),
        ({"speculation": "lookup", "draft_tokens": 0}, "draft_tokens=0"),
        ({"best_of": 3}, "best_of=3 needs a temperature"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 ranks beams; set num_beams"),
        ({**BEAMS, "temperature": 0.5}, "num_beams=4 does not go with temperature; leave one of the two out"),
        ({**BEAMS, "temperature": 0.5, "best_of": 2}, "num_beams=4 does not go with temperature"),
        ({**BEAMS, "repetition_penalty": 1.2}, "num_beams=4 does not go with repetition_penalty"),
        ({**BEAMS, "top_logprobs": 2}, "num_beams=4 does not go with top_logprobs"),
        ({**BEAMS, "constraint": {"regex": "a+"}}, "num_beams=4 does not go with constraint"),
        ({**BEAMS, "speculation": "lookup"}, "num_beams=4 does not go with speculation"),
        ({**BEAMS, "stop": ["."]}, "num_beams=4 does not go with stop"),
        ({"constraint": {}}, "constraint is one of choices, regex, json_schema, grammar, not none"),
        ({"constraint": {"regex": "a", "choices": ["a"]}}, "not choices and regex"),
        ({"constraint": {"choices": []}}, "constraint.choices"),
        ({"constraint": {"choices": ["yes", ""]}}, "constraint.choices.1=''"),
        ({"constraint": {"regexp": "a"}}, "did you mean regex"),
        ({"constraint": {"json_schema": "object"}}, "json_schema='object'"),
    ],
)
def test_wrong_and_contradictory_options_are_refused_in_one_line_with_their_value(options, told):
    with pytest.raises(UserError) as refused:
        build(GenerateConfig, options, "generation options")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_constraint_without_a_tokenizer_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="give make_sampler the tokenizer"):
        sampler(constraint={"regex": "a+"})

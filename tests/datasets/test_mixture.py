import json
from collections import Counter
from itertools import islice

from hypothesis import example, given
from hypothesis import strategies as st

from mmgpt.datasets.mixture import MixtureSampler, Permutation

mixtures = st.lists(st.tuples(st.integers(1, 9), st.floats(0.05, 20)), min_size=1, max_size=4)


def order_of(mixture, seed=0) -> MixtureSampler:
    return MixtureSampler([size for size, _ in mixture], [weight for _, weight in mixture], seed)


@given(mixture=mixtures, seed=st.integers(0, 99))
@example(mixture=[(1, 3.0), (1, 3.0), (1, 0.375), (1, 0.05078125)], seed=0)  # where the most indebted first comes late
def test_every_source_has_its_share_to_within_one_sample_at_any_point(mixture, seed):
    total = sum(weight for _, weight in mixture)
    counts = Counter()
    for number, (source, _) in enumerate(islice(order_of(mixture, seed).draw(), 120), start=1):
        counts[source] += 1
        for which, (_, weight) in enumerate(mixture):
            assert abs(counts[which] - number * weight / total) <= 1 + 1e-9


@given(mixture=mixtures, seed=st.integers(0, 99))
def test_every_epoch_of_a_source_is_a_permutation(mixture, seed):
    drawn = list(islice(order_of(mixture, seed).draw(), 150))
    for which, (size, _) in enumerate(mixture):
        indices = [index for source, index in drawn if source == which]
        for first in range(0, len(indices) - size + 1, size):
            assert sorted(indices[first : first + size]) == list(range(size))


@given(mixture=mixtures, seed=st.integers(0, 99), start=st.integers(0, 80))
def test_a_draw_begun_later_is_the_tail_of_the_whole(mixture, seed, start):
    whole = list(islice(order_of(mixture, seed).draw(), start + 30))
    assert list(islice(order_of(mixture, seed).draw(start), 30)) == whole[start:]


def test_epochs_and_seeds_and_sources_differ_in_their_order():
    def indices(seed: int, source: int) -> list[int]:
        drawn = islice(MixtureSampler([50, 50], [1.0, 1.0], seed).draw(), 200)
        return [index for which, index in drawn if which == source]

    epochs = {tuple(indices(seed, source)[at : at + 50]) for seed in (0, 1) for source in (0, 1) for at in (0, 50)}
    assert len(epochs) == 8


def test_two_draws_of_one_order_do_not_disturb_each_other():
    order = order_of([(5, 1.0), (7, 2.0)])
    expected = list(islice(order_of([(5, 1.0), (7, 2.0)]).draw(), 60))
    first, second = order.draw(), order.draw(25)
    together = [(next(first), next(second)) for _ in range(35)]
    assert [one for one, _ in together] == expected[:35]
    assert [two for _, two in together] == expected[25:]


@given(mixture=mixtures, limits=st.lists(st.integers(0, 40), min_size=4, max_size=4), start=st.integers(0, 90))
def test_limited_sources_give_just_so_many_and_the_others_share_the_rest(mixture, limits, start):
    limits = limits[: len(mixture)]
    order = MixtureSampler([size for size, _ in mixture], [weight for _, weight in mixture], 3, limits)
    whole = list(order.draw())
    assert len(whole) == order.total == sum(limits)
    assert [sum(source == which for source, _ in whole) for which in range(len(mixture))] == limits
    later = order.draw(start)
    assert list(later) == whole[start:]
    if start <= len(whole):
        assert later.counts == limits


@given(mixture=mixtures, limits=st.none() | st.lists(st.integers(0, 40), min_size=4, max_size=4), at=st.integers(0, 90))
def test_draws_begun_at_a_position_are_those_that_went_on(mixture, limits, at):
    limits = limits[: len(mixture)] if limits else ()
    order = MixtureSampler([size for size, _ in mixture], [weight for _, weight in mixture], 3, limits)
    draws = order.draw()
    list(islice(draws, at))
    position = json.loads(json.dumps(draws.position))
    there = order.draw(position=position)
    assert list(islice(there, 60)) == list(islice(draws, 60))
    assert there.position == draws.position


def test_a_source_without_a_limit_goes_on_alone():
    order = MixtureSampler([10, 10], [1.0, 1.0], 0, [4, None])
    assert order.total is None
    assert [source for source, _ in islice(order.draw(), 8, 20)] == [1] * 12


@given(size=st.integers(1, 300), seed=st.integers(0, 50))
def test_a_permutation_holds_every_number_once(size, seed):
    permutation = Permutation(size, str(seed))
    assert sorted(permutation[place] for place in range(size)) == list(range(size))


def test_permutations_are_as_mixed_as_chance_would_have_them():
    """All 24 orders of four things come equally often (chi-square of 23 degrees of freedom, 99.9 %: 49.7)."""
    counts = Counter(tuple(Permutation(4, str(seed))[place] for place in range(4)) for seed in range(12_000))
    assert len(counts) == 24
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 49.7
    rises = [sum(p[at] < p[at + 1] for at in range(999)) for p in (Permutation(1000, f"x{seed}") for seed in range(40))]
    assert abs(sum(rises) / 40 - 499.5) < 4 * (1001 / 12 / 40) ** 0.5  # descents have a variance of (n + 1) / 12


def test_a_permutation_of_a_trillion_is_looked_up_at_once():
    permutation = Permutation(10**12, "large")
    assert len({permutation[place] for place in range(1000)}) == 1000

from collections import Counter
from itertools import islice

from hypothesis import example, given
from hypothesis import strategies as st

from mmgpt.datasets.mixture import Order

mixtures = st.lists(st.tuples(st.integers(1, 9), st.floats(0.05, 20)), min_size=1, max_size=4)


def order_of(mixture, seed=0) -> Order:
    return Order([size for size, _ in mixture], [weight for _, weight in mixture], seed)


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
        drawn = islice(Order([50, 50], [1.0, 1.0], seed).draw(), 200)
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

import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.evaluation.tasks.exemplar_pool import Pool, balanced_order, identity, lazy_shuffle, permute_labels


class AnswerCache(list):
    """A source of one question a sample, which counts what is read."""

    def __init__(self, answers):
        super().__init__(answers)
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        answer = super().__getitem__(index)
        return Sample((Message.of("user", f"{index}?"), Message.of("assistant", answer)), key=f"{index}")


def test_a_shuffle_taken_to_its_end_is_uniform_over_all_orders():
    counts = Counter(tuple(lazy_shuffle(random.Random(n), "abc")) for n in range(6_000))
    assert set(counts) == set(permutations("abc"))
    assert all(850 < count < 1150 for count in counts.values())


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers())
def test_balanced_counts_differ_by_one_but_for_answers_that_ran_out(answers, seed):
    pool, held_of = Pool(AnswerCache(answers)), Counter(answers)
    entries = list(balanced_order(random.Random(seed), pool, lambda entry: True))
    assert sorted(entry.sample for entry in entries) == list(range(len(answers)))
    for k in range(len(entries) + 1):
        counts = Counter(entry.answer for entry in entries[:k])
        most = max(counts.values(), default=0)
        assert all(counts[answer] >= min(most - 1, held) for answer, held in held_of.items())


def test_only_wanted_entries_come_and_those_left_are_balanced():
    pool = Pool(AnswerCache("aaabbbccc"))
    entries = list(balanced_order(random.Random(0), pool, lambda entry: entry.sample not in (0, 1, 2)))
    assert Counter(entry.answer for entry in entries) == {"b": 3, "c": 3}
    assert len({entry.answer for entry in entries[:2]}) == 2


def test_a_pool_is_read_once_for_all_its_answers():
    source = AnswerCache("abca")
    pool = Pool(source)
    assert pool.answers == ["a", "b", "c"]
    assert [entry.key for entry in pool.by_answer["a"]] == ["0", "3"]
    assert source.read == 4
    assert pool.item(pool.entries[2]).reference == "c"


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=7), st.integers())
def test_as_few_permuted_labels_are_true_as_can_be(labels, seed):
    if len(set(labels)) == 1:
        return
    found = permute_labels(random.Random(seed), labels, "abc")
    assert Counter(found) == Counter(labels)
    true = sum(a == b for a, b in zip(found, labels, strict=True))
    assert true == max(0, 2 * max(Counter(labels).values()) - len(labels))
    if len(labels) <= 5:
        assert true == min(sum(a == b for a, b in zip(p, labels, strict=True)) for p in permutations(labels))


@pytest.mark.parametrize("labels", [["a"], ["a", "a", "a"]])
def test_labels_all_equal_are_drawn_from_the_others_of_the_pool(labels):
    found = [label for n in range(40) for label in permute_labels(random.Random(n), labels, ["a", "b", "c"])]
    assert set(found) == {"b", "c"}
    with pytest.raises(UserError, match="labels=permuted: every answer is 'a', none is wrong"):
        permute_labels(random.Random(0), labels, ["a"])


def test_media_are_told_apart_by_path_or_bytes(tmp_path):
    assert identity(Image("a.png")) == identity(Image("a.png")) != identity(Image("b.png"))
    assert identity(Image(b"one")) == identity(Image(b"one")) != identity(Image(b"two"))
    still, moving = np.zeros(8, np.float32), np.eye(1, 8, dtype=np.float32)[0]
    assert identity(Audio(still, rate=8)) == identity(Audio(still.copy(), rate=8)) != identity(Audio(moving, rate=8))

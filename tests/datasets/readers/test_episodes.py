from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.readers.episodes import MADE_UP
from mmgpt.datasets.readers.registry import EpisodesOfConfig, open_source

LETTERS = {"greek": "abgd", "latin": "pqrs"}
OF = {
    "reader": "table",
    "path": "letters",
    "files": "{alphabet}_{letter}/{take}.png",
    "image": "letters/{file}",
    "prompt": "{image}",
    "answer": "letter {letter}",
    "tags": ["alphabet", "letter"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for alphabet, letters in LETTERS.items():
        for number, letter in enumerate(letters):
            place = folder / "letters" / f"{alphabet}_{letter}"
            place.mkdir(parents=True)
            for take in range(5):
                pixels = np.zeros((8, 8, 3), np.uint8)
                pixels[number, take] = 255
                PIL.Image.fromarray(pixels).save(place / f"{take}.png")
    return folder


def episodes(root: Path, **changes):
    tree = {"reader": "episodes", "of": OF, "ways": 3, "shots": 2, "size": 60, **changes}
    return open_source(build(EpisodesOfConfig, tree, "test"), root)


def told(messages) -> list[tuple[str, str]]:
    """The file of each picture shown, with the label behind it."""
    parts = [part for message in messages for part in message.parts]
    return [(image.name(), text.text) for image, text in zip(parts[::2], parts[1::2], strict=True)]


def letter_of(path: str) -> str:
    return Path(path).parent.name


@pytest.mark.parametrize("form", ["turns", "line"])
def test_labels_bind_to_one_class_each_in_an_episode(root, form):
    source = episodes(root, form=form, queries=6)
    for index in range(20):
        sample = source[index]
        shown = told(sample.messages)
        bound = {letter_of(path): label for path, label in shown}
        assert len(shown) == 6
        assert sorted(Counter(label for _, label in shown).values()) == [2, 2, 2]
        assert len(bound) == 3
        assert set(bound.values()) <= set(MADE_UP)
        for branch, truth in zip(sample.branches, sample.truths, strict=True):
            ((path, label),) = told(branch)
            assert bound[letter_of(path)] == label
            assert truth.choices == tuple(sorted(bound.values()))
            assert truth.tags["letter"] == letter_of(path)[-1]


def test_what_is_asked_is_never_shown_and_asked_once(root):
    source = episodes(root, queries=9)
    for sample in map(source.__getitem__, range(60)):
        shown = [path for path, _ in told(sample.messages)]
        asked = [path for branch in sample.branches for path, _ in told(branch)]
        assert len(set(shown + asked)) == len(shown) + len(asked) == 6 + 9


def test_the_sample_of_an_index_is_always_the_same(root):
    first, second = episodes(root), episodes(root)
    assert [told(first[i].turns) for i in range(20)] == [told(second[i].turns) for i in reversed(range(20))][::-1]
    assert told(first[0].turns) != told(first[1].turns)
    assert told(first[0].turns) != told(episodes(root, seed=1)[0].turns)


def test_the_right_answer_stands_at_every_place_equally_often(root):
    source = episodes(root, shots=1, size=600)
    places, words = Counter(), Counter()
    for index in range(600):
        sample = source[index]
        labels = [label for _, label in told(sample.messages)]
        answer = sample.branches[0][-1].text
        places[labels.index(answer)] += 1
        words[answer] += 1
    assert all(abs(count - 200) < 50 for count in places.values())
    assert len(words) == len(MADE_UP)
    assert max(words.values()) < 60


def test_questions_stay_the_same_whatever_the_number_of_shots(root):
    source = episodes(root)
    for count in (0, 1, 3):
        other = source.with_shots(count)
        for index in range(20):
            assert [told(b) for b in other[index].branches] == [told(b) for b in source[index].branches]
            assert len(told(other[index].messages)) == 3 * count
            assert other[index].key == source[index].key
    other = source.with_shots(2, draw=1)
    assert [told(b) for i in range(20) for b in other[i].branches] == [
        told(b) for i in range(20) for b in source[i].branches
    ]
    assert sum(told(other[i].messages) == told(source[i].messages) for i in range(20)) < 5


def test_permuted_examples_are_all_labelled_wrong(root):
    right, wrong = episodes(root), episodes(root, labels="permuted")
    for index in range(20):
        assert [told(b) for b in right[index].branches] == [told(b) for b in wrong[index].branches]
        truths, lies = told(right[index].messages), told(wrong[index].messages)
        assert [path for path, _ in truths] == [path for path, _ in lies]
        assert all(label != other for (_, label), (_, other) in zip(truths, lies, strict=True))


def test_classes_of_an_episode_share_the_tag_within(root):
    source = episodes(root, within="alphabet")
    seen = [{letter_of(path).partition("_")[0] for path, _ in told(source[i].turns)} for i in range(30)]
    assert all(len(alphabets) == 1 for alphabets in seen)
    assert set.union(*seen) == set(LETTERS)


def test_tags_can_name_the_classes(root):
    source = episodes(root, classes=["alphabet"], ways=2, shots=3)
    for index in range(10):
        bound = {(letter_of(path).partition("_")[0], label) for path, label in told(source[index].turns)}
        assert len(bound) == 2


def test_real_labels_are_the_answers_and_may_be_asked_without_an_example(root):
    source = episodes(root, labels="real", bursty=0.5, shots=1)
    known = 0
    for index in range(60):
        shown = dict(told(source[index].messages)).values()
        asked = [told(branch)[0] for branch in source[index].branches]
        assert all(label == f"letter {letter_of(path)[-1]}" for path, label in asked)
        assert len({label in shown for _, label in asked}) == 1
        known += asked[0][1] in shown
    assert 20 <= known <= 40


def test_turned_pictures_are_classes_of_their_own(root):
    plain, turned = episodes(root, side=8), episodes(root, side=8, rotations=8)
    groups, pixels = set(), set()
    for index in range(60):
        for upright, image in zip(plain[index].messages[::2], turned[index].messages[::2], strict=True):
            groups.add(image.parts[0].group)
            pixels.add(np.asarray(image.parts[0].load()).tobytes())
            assert upright.parts[0].group.endswith("/0")
    assert {group[-1] for group in groups} == set("01234567")
    assert len(pixels) > 20  # than which there are no more upright ones
    late = episodes(root, rotations=8)
    for index in range(10):
        for one, other in zip(late[index].messages[::2], turned[index].messages[::2], strict=True):
            assert np.array_equal(one.parts[0].load(), other.parts[0].load())


def test_pictures_are_decoded_once_and_made_small(root, monkeypatch):
    source = episodes(root, side=4)
    first = source[0].messages[0].parts[0]
    assert first.load().size == (4, 4)
    monkeypatch.setattr("mmgpt.datasets.media.medium._read_path", None)
    assert np.array_equal(source[0].messages[0].parts[0].load(), first.load())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 9}, "episodes of 9 ways need 9 classes of 3 samples each, letters has 8; lower ways"),
        ({"shots": 5}, "need 3 classes of 6 samples each, letters has 0"),
        ({"ways": [2, 5], "within": "alphabet"}, "need 5 classes of 3 samples each within one alphabet, letters has 4"),
        ({"classes": ["letters"]}, "has no tag 'letters', only alphabet, letter"),
        ({"words": ["dax", "wug"]}, "ways=3 needs as many made-up labels, words has 2"),
        ({"bursty": 0.5}, "only real labels can be asked for without an example"),
        ({"labels": "permuted", "ways": 1}, "needs two ways"),
        ({"of": {**OF, "answer": "{letter}", "prompt": "", "image": None}}, "made of one question with its answer"),
    ],
)
def test_what_cannot_be_drawn_is_refused(root, changes, message):
    with pytest.raises(UserError, match=message):
        episodes(root, **changes)

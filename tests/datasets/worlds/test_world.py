import itertools
import re
from collections import Counter

import numpy as np
import pytest

from mmgpt.config import UserError
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.worlds.scenes import COLOURS, SHAPES, UNSEEN
from mmgpt.datasets.worlds.world import WORLDS, WorldConfig

ROWS, COLUMNS = {"top": 0, "bottom": 2}, {"left": 0, "right": 2}
PICTURE_WORLDS = ["scenes", "scene_questions", "scene_captions"]
SHAPE = re.compile(r"a (small|large) (\w+) (\w+) (in the middle|at the (?:top|bottom)?(?: ?(?:left|right))?)")


def parse_caption(caption: str) -> list[dict]:
    """The shapes of a caption, with row and column from the words alone."""
    assert caption.endswith(".")
    found = []
    for phrase in caption[:-1].split(", "):
        size, look, kind, place = SHAPE.fullmatch(phrase).groups()
        words = place.split()
        row = next((ROWS[word] for word in words if word in ROWS), 1)
        column = next((COLUMNS[word] for word in words if word in COLUMNS), 1)
        found.append({"size": size, "look": look, "kind": kind, "place": place, "row": row, "column": column})
    return found


def singular(word: str) -> str:
    return next((end for end in (word, word.removesuffix("s"), word.removesuffix("es")) if end in SHAPES), word)


def solve(question: str, scene: list[dict]) -> str:
    """The answer, from the shapes of the caption. Things may be told of by color or material, as shape or thing."""
    place, kinds, looks = "((?:in|at) the [a-z ]+)", "(?:shape|thing)", "(?:color|material)"
    patterns = {
        rf"How many {kinds}s are there\?": lambda: str(len(scene)),
        rf"How many (\w+) {kinds}s are there\?": lambda look: str(len(pick(scene, look=look))),
        r"How many (\w+) are there\?": lambda plural: str(
            sum(plural in (s["kind"] + "s", s["kind"] + "es") for s in scene)
        ),
        r"Is there an? (\w+) (\w+)\?": lambda look, kind: "yes" if pick(scene, look=look, kind=kind) else "no",
        r"Is the (\w+) (\w+) small or large\?": lambda look, kind: only(scene, look=look, kind=kind)["size"],
        r"Where is the (\w+) (\w+)\?": lambda look, kind: only(scene, look=look, kind=kind)["place"],
        rf"What is {place}\?": lambda where: whats_there(scene, where),
        rf"What {looks} is the {kinds} {place}\?": lambda where: only(scene, place=where)["look"],
        rf"What {kinds} is {place}\?": lambda where: only(scene, place=where)["kind"],
        rf"What {looks} is the (\w+)\?": lambda kind: only(scene, kind=kind)["look"],
        rf"What {kinds} is (\w+)\?": lambda look: only(scene, look=look)["kind"],
        r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?": lambda *w: side(scene, *w),
    }
    for pattern, answer in patterns.items():
        match = re.fullmatch(pattern, question)
        if match:
            return answer(*match.groups())
    raise AssertionError(f"no rule for {question!r}")


def pick(scene: list[dict], **wanted: str) -> list[dict]:
    return [thing for thing in scene if all(thing[key] == value for key, value in wanted.items())]


def only(scene: list[dict], **wanted: str) -> dict:
    (found,) = pick(scene, **wanted)
    return found


def whats_there(scene: list[dict], place: str) -> str:
    found = pick(scene, place=place)
    return f"a {found[0]['size']} {found[0]['look']} {found[0]['kind']}" if found else "nothing"


def side(scene: list[dict], look: str, kind: str, relation: str, other_look: str, other_kind: str) -> str:
    one, other = only(scene, look=look, kind=kind), only(scene, look=other_look, kind=other_kind)
    key = "column" if relation in ("left of", "right of") else "row"
    before = relation in ("left of", "above")
    return "yes" if (one[key] < other[key] if before else one[key] > other[key]) else "no"


def turns_of(sample) -> list[tuple[str, str]]:
    return [(question.text, answer.text) for question, answer in sample.branches]


def pairs_in(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text)
    following = itertools.pairwise(words)
    return {(a, singular(b)) for a, b in following if a in COLOURS and singular(b) in SHAPES}


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_independent_solver_gives_the_answer_to_every_question(split, open_world):
    source, kinds = open_world("scenes", split=split), Counter()
    for index in range(500):
        (_, caption), *turns = turns_of(source[index])
        scene = parse_caption(caption)
        assert 1 <= len(scene) <= 4
        assert len({(s["row"], s["column"]) for s in scene}) == len(scene)
        assert len({(s["look"], s["kind"]) for s in scene}) == len(scene)
        order = [(s["row"], s["column"]) for s in scene]
        assert order == sorted(order)
        for question, answer in turns:
            assert solve(question, scene) == answer, f"{caption} {question}"
            kinds[question.split()[0]] += 1
    assert set(kinds) == {"How", "Is", "Where", "What"}


@pytest.mark.parametrize("world", ["scene_places", "scene_lookups"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_solver_gives_the_answers_about_places_and_lookups_too(split, world, open_world):
    captions, source = open_world("scenes", split=split), open_world(world, split=split)
    for index in range(300):
        described = turns_of(captions[index])[0]  # an index is the same scene in every world
        scene = parse_caption(described[1])
        for question, answer in turns_of(source[index]):
            assert (question, answer) == described or solve(question, scene) == answer, f"{scene} {question}"


def test_what_is_told_of_a_scene_in_words_is_right_too(open_world):
    source, told = open_world("stories"), 0
    for index in range(400):
        lines = source[index].messages[0].text.split("\n")
        if not SHAPE.match(lines[0]):
            continue
        told += 1
        scene = parse_caption(lines[0])
        for question, answer in zip(lines[1::2], lines[2::2], strict=True):
            assert solve(question, scene) == answer
    assert told > 150


def test_sums_and_counts_in_stories_are_right(open_world):
    source, checked = open_world("stories"), 0
    for index in range(400):
        text = source[index].messages[0].text
        for a, sign, b, result in re.findall(r"^(\d+) ([+-]) (\d+) = (-?\d+)$", text, flags=re.M):
            assert int(result) == int(a) + int(b) * (1 if sign == "+" else -1) >= 0
            checked += 1
        match = re.search(r"has (\d+) .*\. (?:\w+) gives \w+ (\d+) (more|of them)\.\n.*\n(\d+)$", text)
        if match:
            have, gift, way, left = match.groups()
            assert int(left) == int(have) + int(gift) * (1 if way == "more" else -1) >= 0
            checked += 1
    assert checked > 100


def test_the_picture_shows_the_colours_of_the_caption_at_their_places(open_world):
    source = open_world("scenes", split="test")
    shades = {name: np.outer(np.linspace(0.8, 1.04, 9), colour) for name, colour in COLOURS.items()}
    for index in range(200):
        sample = source[index]
        pixels = np.asarray(sample.messages[0].parts[0].load()).astype(int)
        assert pixels.shape == (48, 48, 3)
        for thing in parse_caption(turns_of(sample)[0][1]):
            top, left = thing["row"] * 16, thing["column"] * 16
            cell = pixels[top + 2 : top + 14, left + 2 : left + 14].reshape(-1, 3)
            drawn = cell[np.abs(cell - pixels[0, 0]).sum(axis=1) > 80]
            nearest = Counter(
                min(shades, key=lambda name, pixel=p: np.abs(pixel - shades[name]).sum(1).min()) for p in drawn
            )
            assert nearest.most_common(1)[0][0] == thing["look"]


@pytest.mark.parametrize("world", WORLDS)
def test_training_never_shows_an_unseen_pair_in_a_picture_or_in_words(world, open_world):
    source = open_world(world, split="train", seed=3)
    for index in range(2000):
        sample = source[index]
        texts = [message.text for message in (*sample.messages, *(turn for b in sample.branches for turn in b))]
        shown = set().union(*map(pairs_in, texts))
        assert not shown & UNSEEN, texts


@pytest.mark.parametrize("world", PICTURE_WORLDS)
def test_every_scene_of_the_test_split_holds_an_unseen_pair(world, open_world):
    whole, asked = open_world("scenes", split="test"), open_world(world, split="test")
    for index in range(300):
        caption = turns_of(whole[index])[0][1]
        assert pairs_in(caption) & UNSEEN
        assert set(turns_of(asked[index])) <= set(turns_of(whole[index]))


@pytest.mark.parametrize("world", WORLDS)
def test_index_and_seed_give_the_same_sample_every_time(world):
    def content(seed: int, index: int, split: str = "train"):
        sample = open_source(WorldConfig(reader="world", name=world, seed=seed, split=split))[index]
        media = [p.encoded()[1] for m in sample.messages for p in m.parts if not hasattr(p, "text")]
        return sample.key, [m.text for m in sample.messages], turns_of(sample) if sample.branches else [], media

    seen = [content(seed, index, split) for split in ("train", "test") for seed in (0, 1) for index in (4, 3)]
    again = [content(seed, index, split) for split in ("train", "test") for seed in (0, 1) for index in (4, 3)]
    assert seen == again
    assert len({repr(one[1:]) for one in seen}) == 8


def test_yes_and_no_and_small_and_large_are_balanced(open_world):
    source, answers = open_world("scene_questions"), {"Is there": Counter(), "small or": Counter()}
    for index in range(1500):
        for question, answer in turns_of(source[index]):
            for kind, counter in answers.items():
                if kind in question:
                    counter[answer] += 1
    for counter in answers.values():
        assert len(counter) == 2
        assert all(0.45 < count / counter.total() < 0.55 for count in counter.values())


def test_an_unknown_world_and_split_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"world 'scene' does not exist; did you mean scenes\?"):
        open_source(WorldConfig(reader="world", name="scene"))
    with pytest.raises(UserError, match="split 'valid' of world scenes does not exist; worlds have train and test"):
        open_source(WorldConfig(reader="world", name="scenes", split="valid"))

import random

import pytest

from mmgpt.config import UserError
from mmgpt.datasets.dedup import keep_texts
from mmgpt.datasets.readers.registry import TextConfig, open_source
from mmgpt.datasets.worlds.world import WorldConfig

pytest.importorskip("datasketch", reason="near copies need mmgpt[data]")
WORDS = [f"word{number}" for number in range(500)]


def texts(tmp_path, lines: list[str]):
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    return open_source(TextConfig(reader="text", path="lines.txt", unit="line"), tmp_path)


def changed(text: str, words: int, rng: random.Random) -> str:
    """A text in which so many words, side by side, are others."""
    split = text.split()
    at = rng.randrange(len(split) - words)
    split[at : at + words] = rng.sample(WORDS, words)
    return " ".join(split)


def jaccard(one: str, other: str) -> float:
    sets = [{" ".join(t.split()[at : at + 5]) for at in range(len(t.split()) - 4)} for t in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_copies_go_and_the_first_of_them_stays(tmp_path):
    rng = random.Random(1)
    originals = [" ".join(rng.sample(WORDS, 120)) for _ in range(30)]
    similarity = [changed(text, 1, rng) for text in originals]
    far = [changed(text, 40, rng) for text in originals]
    assert min(map(jaccard, originals, similarity)) > 0.9
    assert max(map(jaccard, originals, far)) < 0.6
    kept = keep_texts(texts(tmp_path, originals + similarity + far), similarity=0.8)
    assert kept.indexes == (*range(30), *range(60, 90))
    assert kept.dropped == {"near copies": 30}


def test_exact_copies_and_other_case_and_marks_are_copies_even_of_short_texts(tmp_path):
    kept = keep_texts(texts(tmp_path, ["A cat.", "a dog", "a cat", "A dog!"]), similarity=0.9)
    assert kept.indexes == (0, 1)


def test_texts_of_other_lengths_go(tmp_path):
    kept = keep_texts(texts(tmp_path, ["a", "abc", "abcdefgh"]), min_characters=2, max_characters=5)
    assert (kept.indexes, kept.dropped) == ((1,), {"too short": 1, "too long": 1})


def test_samples_with_media_and_impossible_similarities_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"scenes/.*: holds media"):
        keep_texts(open_source(WorldConfig(reader="world", name="scenes", size=2)))
    with pytest.raises(UserError, match=r"similarity=1\.5: a similarity lies between"):
        keep_texts(texts(tmp_path, ["a"]), similarity=1.5)

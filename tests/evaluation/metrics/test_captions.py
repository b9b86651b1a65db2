import json
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction, caption_scores
from mmgpt.evaluation.metrics.captions import longest_common

NAMES = {
    "Bleu_1": "bleu_1",
    "Bleu_2": "bleu_2",
    "Bleu_3": "bleu_3",
    "Bleu_4": "bleu_4",
    "ROUGE_L": "rouge_l",
    "CIDEr": "cider",
}


@pytest.fixture(scope="module")
def pack(data_packs):
    folder = data_packs / "caption_metrics"
    if not folder.is_dir():
        pytest.skip(f"no official caption figures at {folder}")
    return folder


def flickr8k(pack, name):
    folder = pack / "flickr8k_human0_vs_4"
    references: dict[int, list[str]] = {}
    for row in json.loads((folder / "references.json").read_text())["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    return {row["image_id"]: row["caption"] for row in json.loads((folder / name).read_text())}, references


@pytest.mark.parametrize(
    ("results", "expected"), [("results.json", "expected.json"), ("results_rotated.json", "expected_rotated.json")]
)
def test_flickr8k_has_the_official_figures(pack, results, expected):
    corpus = json.loads((pack / "flickr8k_human0_vs_4" / expected).read_text())["corpus"]
    found = caption_scores(*flickr8k(pack, results))
    assert found == pytest.approx({name: corpus[name] for name in NAMES}, abs=1e-6)


def test_every_image_of_flickr8k_has_the_official_figures(pack):
    predictions, references = flickr8k(pack, "results.json")
    some = [ScoredPrediction(text, tuple(references[key])) for key, text in predictions.items()]
    expected = json.loads((pack / "flickr8k_human0_vs_4" / "expected.json").read_text())["per_image"]
    for official, ours in NAMES.items():
        found = METRICS[ours].per_sample(METRICS[ours].sample_stats(some))
        assert found == pytest.approx([expected[str(key)][official] for key in predictions], abs=2e-6)


def test_the_example_of_nlg_eval_has_its_published_figures(pack):
    said, *right = (
        (pack / "nlg_eval_example" / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")
    )
    found = caption_scores(dict(enumerate(said)), dict(enumerate(zip(*right, strict=True))))
    assert found == pytest.approx(
        {
            "Bleu_1": 0.55,
            "Bleu_2": 0.428174,
            "Bleu_3": 0.284043,
            "Bleu_4": 0.201143,
            "ROUGE_L": 0.522104,
            "CIDEr": 1.242192,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "figures"),
    [("good", (0.6667, 0.4899, 0.3469, 0.0, 0.4280, 0.5637)), ("bad", (0.4815, 0.2404, 0.1359, 0.0, 0.3121, 0.2790))],
)
def test_the_example_of_clipscore_has_its_published_figures(pack, name, figures):
    folder = pack / "clipscore_example"
    predictions, references = (json.loads((folder / f).read_text()) for f in (f"{name}_captions.json", "refs.json"))
    found = caption_scores(predictions, references)
    assert [found[key] for key in NAMES] == pytest.approx(figures, abs=1e-4)


def test_two_captions_have_the_figures_worked_out_by_hand():
    found = caption_scores({1: "A red dog.", 2: "a cat sits"}, {1: ["a red dog"], 2: ["the cat sits", "one cat"]})
    assert found["Bleu_1"] == pytest.approx(5 / 6)
    assert found["Bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 4))
    assert found["ROUGE_L"] == pytest.approx((1 + 2 / 3) / 2)  # of the second, precision and recall are 2/3
    first, second = METRICS["cider"].per_sample(
        METRICS["cider"].sample_stats(
            [
                ScoredPrediction("A red dog.", ("a red dog",)),
                ScoredPrediction("a cat sits", ("the cat sits", "one cat")),
            ]
        )
    )
    assert first == pytest.approx(10 * 3 / 4)  # no n-gram of four words
    # Of the second every gram is rare alike: cosines 2/3 and 1/sqrt(6) of words, 1/2 and 0 of pairs.
    penalty = math.exp(-1 / 72)
    assert second == pytest.approx(10 / 4 / 2 * (2 / 3 + 1 / 2 + penalty / math.sqrt(6)))


words = st.lists(st.sampled_from("abcd"), max_size=8)


@given(words, words)
def test_the_longest_common_subsequence_is_that_of_the_textbook(one, other):
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common(one, other) == table[-1][-1]


@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_of_any_texts_are_finite_even_of_empty_ones(pairs):
    some = [ScoredPrediction(" ".join(said), tuple(" ".join(one) for one in right)) for said, right in pairs]
    for name in NAMES.values():
        assert 0 <= METRICS[name].value(some) <= 10 + 1e-9
        assert METRICS[name].value(some[::-1]) == pytest.approx(METRICS[name].value(some), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {}, "no references"),
        ({1: "a dog"}, {1: ["a dog"], 2: ["a cat"]}, "1 of 2 ids have no prediction: 2"),
        ({1: "a dog", 3: "x"}, {1: ["a dog"]}, "ids have no references: 3"),
        ({1: " "}, {1: ["a dog"]}, "1 predictions have no words: 1"),
        ({1: "..."}, {1: ["a dog"]}, "1 predictions have no words: 1"),
        ({1: "a dog"}, {1: ["..", "!"]}, "1 ids have no reference with words in it: 1"),
        ({1: "a dog"}, {1: []}, "1 ids have no reference"),
    ],
)
def test_captions_that_do_not_fit_are_refused(predictions, references, message):
    with pytest.raises(UserError, match=message):
        caption_scores(predictions, references)


def test_two_thousand_captions_are_scored_in_seconds():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("aeioubdgklmnrst", k=rng.randint(2, 7))) for _ in range(3000)]

    def caption():
        return " ".join(rng.choices(vocabulary, k=11))

    predictions = {key: caption() for key in range(2000)}
    references = {key: [caption() for _ in range(5)] for key in predictions}
    started = time.perf_counter()
    caption_scores(predictions, references)
    assert time.perf_counter() - started < 15  # a second on an idle core

"""Every data pack is read by the config that comes with mmgpt, and holds what its README says."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from mmgpt.config import find_config, read_yaml
from mmgpt.datasets.media import Media
from mmgpt.datasets.readers.registry import AnySource, open_source
from mmgpt.datasets.sample import Sample

VQA = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def open_pack(data_packs):
    def read(name, **changes):
        if not (data_packs / name).is_dir() and name not in ("tinyshakespeare", "wikitext2"):
            pytest.skip(f"the data packs hold no {name}")
        config = TypeAdapter(AnySource).validate_python({**read_yaml(name, "data"), **changes})
        return open_source(config, data_packs)

    return read


def media(sample: Sample) -> list[Media]:
    return [part for message in sample.messages for part in message.parts if isinstance(part, Media)]


def told(sample: Sample) -> list[tuple[str, str]]:
    return [(one.messages[0].text, one.messages[-1].text) for one in sample.unbranched()]


@pytest.mark.parametrize(
    ("name", "changes", "count", "branches", "first", "size"),
    [
        ("cifar10", {"split": "test"}, 10_000, 1, ("What is this?", "airplane"), (32, 32)),
        ("easy_vqa", {}, 4_000, 38_575, None, (64, 64)),
        ("easy_vqa", {"split": "test"}, 1_000, 9_673, None, (64, 64)),
        ("noto_emoji", {}, None, None, None, (72, 72)),
        ("omniglot", {}, 19_280, 1, "Alphabet of the Magi, character 01", (105, 105)),
        ("omniglot", {"split": "evaluation"}, 13_180, 1, "Angelic, character 01", (105, 105)),
        ("shapes", {}, 640, 1, None, (30, 30)),
        ("shapes", {"split": "val"}, 1_024, 1, ("is a triangle above right of a square?", "no"), (30, 30)),
        ("flickr8k", {}, 81, 405, None, None),
        ("flickr8k", {"split": "dev"}, 13, 65, None, None),
        ("flickr8k", {"split": "test"}, 6, 30, None, None),
        ("flickr8k_full", {}, 6_000, 30_000, None, (224, 224)),
        ("flickr8k_full", {"split": "test"}, 1_000, 5_000, None, (224, 224)),
        ("daquar", {}, 794, 6_795, None, None),
        ("daquar", {"split": "test"}, 653, 5_673, None, None),
        ("vqa_rad", {}, 313, 1_797, None, None),
        ("vqa_rad", {"split": "test"}, 203, 451, None, None),
        ("vqa_v2_mini", {}, 42, 63, (f"Is the woman wearing earrings?{VQA}", "yes"), None),
    ],
)
def test_a_pack_of_pictures_has_the_counts_of_its_readme(name, changes, count, branches, first, size, open_pack):
    source = open_pack(name, **changes)
    if count:
        assert len(source) == count
    if branches and branches > 1:
        assert sum(len(source[n].branches) or 1 for n in range(len(source))) == branches
    if first:
        assert first in (told(source[0])[0], told(source[0])[0][1])
    for index in (0, len(source) - 1):
        (picture,) = media(source[index])
        assert size in (None, picture.load().size)
        assert all(question and answer for question, answer in told(source[index]))


def test_fsdd_and_the_texts_have_the_counts_of_their_readmes(open_pack):
    assert (len(open_pack("fsdd")), len(open_pack("fsdd", split="test"))) == (2_700, 300)
    assert media(open_pack("fsdd")[0])[0].load().rate == 8_000
    shakespeare = open_pack("tinyshakespeare", window=1_115_394, span=(0.0, 1.0))
    assert [len(shakespeare[0].messages[0].text), len(shakespeare)] == [1_115_394, 1]
    assert shakespeare[0].messages[0].text.startswith("First Citizen:\nBefore we proceed")
    lines = open_pack("wikitext2")
    assert lines[0].messages[0].text == " = Homarus gammarus = "


def test_the_colours_that_shapes_asks_about_are_those_of_its_pictures(open_pack):
    source = open_pack("shapes", split="test")
    rows = [
        (told(source[n])[0], np.asarray(media(source[n])[0].load()).reshape(-1, 3).max(0)) for n in range(0, 1024, 4)
    ]
    checked = 0
    for (question, answer), (red, green, blue) in rows:
        for word, there in (("red", red), ("green", green), ("blue", blue)):
            if answer == "yes" and word in question.split():
                assert there > 100, question
                checked += 1
    assert checked > 20


def test_the_ten_answers_of_vqa_stay_reachable_and_are_those_of_the_branches(open_pack):
    source = open_pack("vqa_v2_mini")
    for index in range(len(source)):
        answers = [truth.answers for truth in source[index].truths]
        assert [len(ten) for ten in answers] == [10] * len(source[index].branches)
        for ten, (_, answer) in zip(answers, told(source[index]), strict=True):
            assert ten.count(answer) == max(map(ten.count, ten))


def test_every_data_config_fits_its_reader_and_begins_with_what_it_is():
    folder = find_config("fsdd", "data").parent
    for file in sorted(folder.glob("*.yaml")):
        TypeAdapter(AnySource).validate_python(read_yaml(file))
        assert file.read_text().startswith("# "), f"{file.name} does not say what it is"

import re
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.config import UserError, build, read_yaml
from mmgpt.datasets.readers.composed import NUMBERS, ComposedConfig
from mmgpt.datasets.readers.registry import open_source

CONFIG = {
    "reader": "composed",
    "pictures": {
        "reader": "table",
        "path": "{split}.csv",
        "image": "{picture}.png",
        "prompt": "{image}{question}",
        "answer": "{answer}",
        "group_by": "picture",
    },
    "sounds": {
        "reader": "table",
        "path": "said",
        "files": "{split}-{word}-{take}.wav",
        "audio": "said/{file}",
        "prompt": "{audio}What is said?",
        "answer": "{word}",
    },
    "facts": {"color": ["red", "blue"], "shape": ["circle", "square"]},
    "size": 200,
}


def write_packs(root: Path, words: tuple[str, ...] = ("one", "two", "three")) -> None:
    (root / "said").mkdir()
    for split in ("train", "test"):
        rows = ["picture,question,answer"]
        for number, (color, shape) in enumerate([("red", "circle"), ("blue", "circle"), ("blue", "square")]):
            name = f"{split}{number}"
            PIL.Image.new("RGB", (8, 8), color).save(root / f"{name}.png")
            rows += [f"{name},what color?,{color}", f"{name},what shape?,{shape}", f"{name},is it red?,yes"]
        rows.append(f"{split}0,what else?,nothing")
        rows.append(f"{split}untold,what shape?,circle")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        for number, word in enumerate(words):
            soundfile.write(root / "said" / f"{split}-{word}-0.wav", np.full(80, 0.1 * number), 8000)


def facts_of(path: str) -> tuple[str, str]:
    return [("red", "circle"), ("blue", "circle"), ("blue", "square")][int(Path(path).stem[-1])]


def check(sample) -> list[str]:
    """Solve a sample from the names of its files; returns the answers."""
    media = sample.messages[0].parts
    shown = [facts_of(part.source) for part in media if part.modality == "image"]
    (sound,) = [part for part in media if part.modality == "audio"]
    number = NUMBERS.index(Path(sound.source).stem.split("-")[1])
    chosen = shown[number - 1] if 1 <= number <= len(shown) else ("none", "none")
    answers = []
    for question, answer in sample.branches:
        words, kind = question.text, re.search(r"(circle|square)s", question.text)
        count = sum(shape == kind[1] for _, shape in shown) if kind else len(shown)
        if words.startswith("Is"):
            expected = "yes" if number == count else "no"
        elif words.startswith("How much"):
            expected = str(number + count)
        else:
            expected = chosen[0] if words.startswith("What color") else chosen[1]
        assert answer.text == expected, words
        answers.append(answer.text)
    return answers


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_files_themselves_give_the_answer_to_every_question(tmp_path, split):
    write_packs(tmp_path)
    source = open_source(build(ComposedConfig, {**CONFIG, "split": split}, "composed"), tmp_path)
    answers, orders = Counter(), set()
    assert len(source) == 200
    for index in range(200):
        sample = source[index]
        answers.update(check(sample))
        kinds = [part.modality for part in sample.messages[0].parts]
        orders.add(kinds.index("audio"))
        assert all(Path(part.source).stem.startswith(split) for part in sample.messages[0].parts)
    assert orders == {0, 1, 2, 3}
    assert 0.7 < answers["yes"] / answers["no"] < 1.4


def test_a_seed_and_an_index_give_the_same_sample_and_others_another(tmp_path):
    write_packs(tmp_path)

    def content(seed: int, index: int) -> str:
        sample = open_source(build(ComposedConfig, {**CONFIG, "seed": seed}, "composed"), tmp_path)[index]
        return repr([part.source for part in sample.messages[0].parts] + [turn[0].text for turn in sample.branches])

    assert content(0, 3) == content(0, 3)
    assert len({content(seed, index) for seed in range(3) for index in range(5)}) > 12


def test_a_missing_number_a_word_that_is_none_and_pictures_without_facts_are_refused(tmp_path):
    write_packs(tmp_path, ("one", "two"))
    with pytest.raises(UserError, match="no recording of three; add some, or lower most=3"):
        open_source(build(ComposedConfig, CONFIG, "composed"), tmp_path)
    assert len(open_source(build(ComposedConfig, {**CONFIG, "most": 2}, "composed"), tmp_path)) == 200
    facts = {"color": ["pink", "gold"], "shape": ["circle", "square"]}
    with pytest.raises(UserError, match="no picture's answers tell one color and one shape"):
        open_source(build(ComposedConfig, {**CONFIG, "most": 2, "facts": facts}, "composed"), tmp_path)
    soundfile.write(tmp_path / "said" / "train-dog-0.wav", np.zeros(80), 8000)
    with pytest.raises(UserError, match="'dog' is no number in words"):
        open_source(build(ComposedConfig, CONFIG, "composed"), tmp_path)


def test_the_packs_as_downloaded_are_composed(data_packs):
    config = build(ComposedConfig, {**read_yaml("data/digits_and_shapes"), "split": "test"}, "digits_and_shapes")
    source = open_source(config, data_packs)
    for index in range(50):
        takes = [part.source for part in source[index].messages[0].parts if part.modality == "audio"]
        assert re.search(r"/[0-3]_[a-z]+_[0-4]\.wav$", takes[0])
        assert len(source[index].branches) == 5

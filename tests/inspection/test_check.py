import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import yaml

from mmgpt.datasets.sample import Message, Sample
from mmgpt.inspection.check import check_data
from mmgpt.inspection.recipe_data import open_data, stratified_indexes
from mmgpt.inspection.worker_pool import WorkerDied

CONFORMER = {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2, "stem": 4, "kernel": 5}
VIT = {"kind": "vit", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}


def picture(seed: int) -> PIL.Image.Image:
    """Coarse coloured noise: what is left of it in another format or size is still itself."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(cells).resize((64, 64), PIL.Image.Resampling.BICUBIC)


def sound(seed: int) -> np.ndarray:
    tones = np.random.default_rng(seed).integers(200, 3000, 5)
    times = np.arange(1600) / 8000
    return 0.4 * np.concatenate([np.sin(2 * np.pi * tone * times) for tone in tones])


def asked(question: str, answer: str | None, **media: str) -> dict:
    parts = [{"type": kind, "path": path} for kind, path in media.items()]
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return {"messages": [*turns, *([{"role": "assistant", "content": answer}] if answer else [])]}


def train_rows(folder: Path) -> list[dict]:
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
        soundfile.write(folder / f"{number}.wav", sound(number), 8000)
    picture(0).resize((96, 96), PIL.Image.Resampling.BICUBIC).save(folder / "copy.jpg", quality=90)
    soundfile.write(folder / "copy.flac", sound(1) / 2, 8000)
    buffer = io.BytesIO()
    picture(9).save(buffer, format="PNG")
    (folder / "damaged.png").write_bytes(buffer.getvalue()[:400])
    rows = [asked(f"What is {number}?", "noise", image=f"{number}.png") for number in range(4)]  # 0 to 3
    rows += [asked(f"What sounds {number}?", "tones", audio=f"{number}.wav") for number in range(4)]  # 4 to 7
    rows += [
        asked("what  IS 0?", "noise", image="copy.jpg"),  # 8: a copy of 0
        asked("Name it.", "noise", image="1.png"),  # 9: the picture of 1
        asked("What sounds 1?", "tones", audio="copy.flac"),  # 10: a copy of 5
        asked("What is it?", "broken", image="damaged.png"),  # 11
        asked("Who answers?", None),  # 12
        asked("word " * 400, "long"),  # 13
        {"messages": asked("word " * 250, "a")["messages"] + asked("word " * 100, "b")["messages"]},  # 14: trimmed
        asked("What is 1 + 1?", "2"),  # 15
    ]
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Sources with one of each fault, and a task whose test data repeat some of the training."""
    root = tmp_path_factory.mktemp("data")
    rows = train_rows(root)
    picture(2).resize((40, 40), PIL.Image.Resampling.BICUBIC).save(root / "test.jpg", quality=95)
    picture(7).save(root / "new.png")
    tests = [
        asked("Is it?", "yes", image="test.jpg"),  # 0: the picture of 2
        asked("What is 1 + 1?", "2"),  # 1: row 15
        asked("Is it?", "no", image="new.png"),
        asked("What is 1 + 1?", "two"),
    ]
    for name, lines in (("train", rows), ("test", tests)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    task = {"name": "noise", "data": {"reader": "messages", "path": "test.jsonl"}}
    (root / "noise.yaml").write_text(yaml.safe_dump(task))
    return root


@pytest.fixture(scope="module")
def checked(root, make_recipe):
    """The check of the faulty sources with some options."""

    def run(tasks: bool = True, **options):
        recipe = make_recipe(
            {"data": [{"reader": "messages", "path": "train.jsonl"}]},
            model={
                "decoder": {"width": 32, "depth": 1, "heads": 2, "context": 320},
                "encoders": {"image": VIT, "audio": CONFORMER},
                "adapters": {"image": {"kind": "fold", "stride": 2}, "audio": {"kind": "mlp", "stride": 2}},
            },
            tokenizer={"vocab_size": 400},
            tasks=[str(root / "noise.yaml")] if tasks else [],
        )
        return check_data(open_data(recipe, data_root=root), **options)

    return run


def test_each_fault_is_found_once_and_named_with_its_sample(checked):
    found = checked()
    assert {(one.reason, one.key, one.other) for one in found.findings} == {
        ("repeated", "train/8", "train/0"),
        ("shared medium", "train/9", "train/1"),
        ("repeated", "train/10", "train/5"),
        ("medium", "train/11", ""),
        ("sample", "train/12", ""),
        ("too long", "train/13", ""),
        ("trimmed", "train/14", ""),
        ("leak", "test/0", "train/2"),
        ("leak", "test/1", "train/15"),
    }
    assert len(found.findings) == 9
    assert {one.reason for one in found.findings if not one.is_fault} == {"trimmed", "shared medium"}
    assert (found.samples, found.media, found.sources, found.left_out) == (20, 14, 2, 0)


def test_a_finding_tells_what_is_wrong_and_where(checked):
    told = {one.key: one for one in checked().findings}
    assert "damaged.png" in told["train/11"].message
    assert "damaged" in told["train/11"].message
    assert told["train/12"].message.startswith("no token is a target")
    assert "over the context of 320" in told["train/13"].message
    assert (told["train/11"].where, told["test/0"].where) == ("stage stage0", "task noise")
    assert told["test/0"].message == "its image is also in train/2"
    assert told["test/1"].message == "its words are also in train/15"


def test_the_findings_do_not_depend_on_the_number_of_workers(checked, monkeypatch):
    monkeypatch.setattr("mmgpt.inspection.check.SAMPLES_PER_TASK", 3)
    progress = []
    parallel = checked(workers=2, on_progress=lambda done, total: progress.append((done, total)))
    assert parallel.findings == checked().findings
    assert progress[-1] == (20, 20)


def test_a_range_on_which_a_worker_died_is_reported_and_the_rest_is_checked(checked, monkeypatch):
    def die_on_the_second(function, tasks, workers):
        for number, task in enumerate(tasks):
            yield WorkerDied(-9) if number == 1 else function(task)

    monkeypatch.setattr("mmgpt.inspection.check.SAMPLES_PER_TASK", 8)
    monkeypatch.setattr("mmgpt.inspection.check.map_in_workers", die_on_the_second)
    found = checked()
    lost = [one for one in found.faults if one.reason == "crash"]
    assert [(one.key, one.message) for one in lost] == [
        ("train/8..15", "a worker died on one of these 8 samples (by signal 9)")
    ]
    assert ("leak", "test/0") in {(one.reason, one.key) for one in found.faults}


def test_a_limit_leaves_samples_out_and_says_how_many(checked):
    found = checked(limit=3)
    assert (found.samples, found.left_out) == (6, 14)
    assert [(one.reason, one.key) for one in found.findings] == [("leak", "test/0")]


def test_an_error_that_is_no_user_error_is_a_fault_and_no_end(checked, tokenizer, monkeypatch):
    def fail(self, index):
        if index == 2:
            raise KeyError("image")
        return Sample((Message.of("user", str(index)), Message.of("assistant", "a")), "train", f"train/{index}")

    monkeypatch.setattr("mmgpt.datasets.readers.registry.MessagesSource.__getitem__", fail)
    monkeypatch.setattr("mmgpt.inspection.recipe_data.make_tokenizer", lambda recipe, chat, sources: tokenizer)
    found = checked(tasks=False)
    assert [(one.reason, one.key, one.message) for one in found.findings] == [("crash", "train/2", "KeyError: 'image'")]


def test_media_over_a_recipe_s_limits_are_refused_as_its_training_refuses_them(make_recipe):
    data = open_data(make_recipe(limits={"pixels": 100}))
    found = check_data(data, limit=4)
    assert {one.reason for one in found.findings} == {"medium"}
    assert "pixels" in found.findings[0].message


def test_the_same_sample_twice_in_a_generated_source_is_a_warning(make_recipe):
    recipe = make_recipe(
        {"data": [{"reader": "world", "name": "stories", "size": 30}], "objective": "causal"},
        {"data": [{"reader": "world", "name": "stories", "size": 30, "weight": 2}], "objective": "causal"},
    )
    data = open_data(recipe)
    found = check_data(data)
    assert (found.sources, found.samples, found.faults) == (1, 30, [])


def test_shipped_worlds_keep_what_is_tested_apart_from_what_is_trained_on(make_recipe):
    worlds = [{"reader": "world", "name": name, "size": 150} for name in ("scenes", "scene_lookups")]
    found = check_data(open_data(make_recipe({"data": worlds}, tasks=["scene_questions"])), limit=150)
    assert Counter(one.reason for one in found.faults) == {}


@pytest.mark.parametrize(("size", "limit"), [(10, 3), (3, 10), (1000, 999)])
def test_spread_indexes_are_distinct_in_order_and_one_from_each_stretch(size, limit):
    indexes = stratified_indexes(size, limit, seed=1)
    assert len(indexes) == min(size, limit)
    assert all(at * size // len(indexes) <= index < (at + 1) * size // len(indexes) for at, index in enumerate(indexes))
    assert indexes == stratified_indexes(size, limit, seed=1)


def test_rows_that_say_what_nothing_reads_are_each_a_finding_and_the_check_goes_on(make_recipe, tmp_path):
    turns = asked("Who?", "I.")["messages"]
    faulty = [
        {"messages": [{"role": "user", "content": "<image>?"}, turns[1]], "image_path": "a.png"},
        {"messages": turns, "label": False},
        {"messages": [turns[0], {"role": "assistant", "content": None}]},
        {"messages": [turns[0], {**turns[1], "weight": 0.5}]},
        {"messages": [turns[0], {**turns[1], "tool_calls": [{"name": "f"}]}]},
        {"messages": [turns[0], {**turns[1], "reasoning_content": "x"}]},
        {"messages": turns, "objects": {"bbox": [[1, 2]]}},
        {"messages": [{"role": "user", "content": "Which?"}, {**turns[1], "loss": False}]},
    ]
    fine = {"messages": [{"role": "user", "content": "\ud83d?"}, turns[1]]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*faulty, fine]))
    data = open_data(make_recipe({"data": [{"reader": "messages", "path": "rows.jsonl"}]}), data_root=tmp_path)
    found = check_data(data)
    assert [(one.reason, one.key) for one in found.findings] == [("sample", f"rows/{n}") for n in range(len(faulty))]
    told = ["<image>.*image_path", "'label'", "no content", "weight=0.5", "tool_calls", "reasoning", "bbox", "no token"]
    assert [one.key for one, words in zip(found.findings, told, strict=True) if not re.search(words, one.message)] == []
    assert found.samples == len(faulty) + 1
    found.write(tmp_path / "found.jsonl")
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == len(faulty)

"""Data that changed are noticed by a source's fingerprint, in every reader, in a time that does not grow with them."""

import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmgpt.datasets.fingerprint import difference
from mmgpt.datasets.readers import tars
from mmgpt.datasets.readers.registry import _Alone, open_source
from mmgpt.datasets.source import Source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(root: Path, **config) -> Source:
    tars.ranges_of.cache_clear()
    return open_source(_Alone.model_validate({"source": config}).source, root)


def picture(file: Path, level: int) -> None:
    PIL.Image.new("RGB", (9, 9), (level, 0, 0)).save(file)


def lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def talk(answer: str) -> dict:
    return {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]}


def tar_of(file: Path, texts: list[str]) -> None:
    with tarfile.open(file, "w") as tar:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def folder_of(root: Path, levels: list[int]) -> None:
    shutil.rmtree(root / "pictures", ignore_errors=True)
    (root / "pictures").mkdir()
    for number, level in enumerate(levels):
        picture(root / "pictures" / f"red_{number}.png", level)


def vqa(root: Path, answer: str) -> None:
    asked = [{"question_id": n, "image_id": n, "question": "What?"} for n in range(3)]
    given = [{"question_id": n, "answers": [{"answer": answer}]} for n in range(3)]
    (root / "q.json").write_text(json.dumps({"questions": asked}))
    (root / "a.json").write_text(json.dumps({"annotations": given}))


def captions(root: Path, caption: str) -> None:
    tree = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": caption}]}
    (root / "captions.json").write_text(json.dumps(tree))


def speech(root: Path, said: str) -> None:
    (root / "LibriSpeech" / "dev" / "1" / "2").mkdir(parents=True, exist_ok=True)
    (root / "LibriSpeech" / "dev" / "1" / "2" / "1-2.trans.txt").write_text(f"1-2-0000 {said}\n")


NUMBERS = {
    "reader": "table",
    "path": "pictures",
    "files": "{color}_{n}.png",
    "image": "pictures/{file}",
    "prompt": "{image}",
}
EPISODES = {"reader": "table", "path": "t.csv", "prompt": "{q}", "answer": "{a}"}
READERS: dict[str, tuple[dict, Callable[[Path], None], Callable[[Path], None], str]] = {
    "messages, a row more": (
        {"reader": "messages", "path": "m.jsonl"},
        lambda root: lines(root / "m.jsonl", [talk("red")]),
        lambda root: lines(root / "m.jsonl", [talk("red"), talk("blue")]),
        "1 samples then, 2 now",
    ),
    "messages, other words of the same length": (
        {"reader": "messages", "path": "m.jsonl"},
        lambda root: lines(root / "m.jsonl", [talk("blue")]),
        lambda root: lines(root / "m.jsonl", [talk("pink")]),
        "of other content",
    ),
    "messages, another file": (
        {"reader": "messages", "path": "m*.jsonl"},
        lambda root: lines(root / "m0.jsonl", [talk("red")]),
        lambda root: lines(root / "m1.jsonl", [talk("red")]),
        "1 files then, 2 now",
    ),
    "table of csv": (
        {"reader": "table", "path": "t.csv", "prompt": "{q}", "answer": "{a}"},
        lambda root: (root / "t.csv").write_text("q,a\nx,yes\ny,no\n"),
        lambda root: (root / "t.csv").write_text("q,a\nx,yes\ny,nope\n"),
        "bytes then",
    ),
    "parquet": (
        {"reader": "parquet", "path": "t.parquet", "prompt": "{q}", "answer": "{a}"},
        lambda root: pq.write_table(pa.table({"q": ["x"], "a": ["yes"]}), root / "t.parquet"),
        lambda root: pq.write_table(pa.table({"q": ["x"], "a": ["not"]}), root / "t.parquet"),
        "of other content",
    ),
    "pictures in a folder, one less": (
        {**NUMBERS, "prompt": "{image}", "answer": "{color}"},
        lambda root: folder_of(root, [10, 20, 30]),
        lambda root: folder_of(root, [10, 20]),
        "3 samples then, 2 now",
    ),
    "pictures in a folder, one repainted": (
        {**NUMBERS, "prompt": "{image}", "answer": "{color}"},
        lambda root: folder_of(root, [10, 20, 30]),
        lambda root: folder_of(root, [10, 21, 30]),
        "of other content",
    ),
    "text": (
        {"reader": "text", "path": "book.txt"},
        lambda root: (root / "book.txt").write_text("once upon a time " * 999),
        lambda root: (root / "book.txt").write_text("once upon a time " * 500 + "ONCE" + "once upon a time " * 499),
        "16,983 bytes then, 16,987 now",
    ),
    "shards of others": (
        {"reader": "shards", "path": "few.tar", "prompt": ""},
        lambda root: tar_of(root / "few.tar", ["red", "blue"]),
        lambda root: tar_of(root / "few.tar", ["red", "pink"]),
        "of other content",
    ),
    "coco captions": (
        {"reader": "coco_captions", "path": "captions.json", "images": "."},
        lambda root: captions(root, "a cat"),
        lambda root: captions(root, "a dog"),
        "of other content",
    ),
    "vqa": (
        {"reader": "vqa", "questions": "q.json", "annotations": "a.json", "image": "{image_id}.png"},
        lambda root: vqa(root, "cat"),
        lambda root: vqa(root, "cats"),
        "bytes then",
    ),
    "librispeech": (
        {"reader": "librispeech", "subsets": ["dev"]},
        lambda root: speech(root, "GOOD MORNING"),
        lambda root: speech(root, "GOOD EVENING"),
        "of other content",
    ),
    "episodes of a table": (
        {"reader": "episodes", "ways": 2, "of": EPISODES},
        lambda root: (root / "t.csv").write_text("q,a\n" + "x,yes\ny,no\n" * 3),
        lambda root: (root / "t.csv").write_text("q,a\n" + "x,yes\ny,no\n" * 2 + "z,yes\ny,no\n"),
        "of other content",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_data_that_changed_differ_in_their_fingerprint_and_say_how(name, tmp_path):
    config, before, after, told = READERS[name]
    before(tmp_path)
    first = opened(tmp_path, **config).fingerprint()
    assert difference(json.loads(json.dumps(first)), opened(tmp_path, **config).fingerprint()) is None
    after(tmp_path)
    assert told in str(difference(first, opened(tmp_path, **config).fingerprint()))


@pytest.mark.parametrize("name", READERS)
def test_data_that_were_moved_or_copied_are_the_same(name, tmp_path):
    config, write, _, _ = READERS[name]
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    first, second = (opened(tmp_path / place, **config).fingerprint() for place in ("a", "elsewhere"))
    assert difference(first, second) is None


def test_a_world_is_its_parameters_and_what_it_draws():
    names = [("scenes", 0), ("scenes", 1), ("stories", 0)]
    told = [opened(Path(), reader="world", name=name, seed=seed).fingerprint()["hash"] for name, seed in names]
    assert len(set(told)) == 3
    assert opened(Path(), reader="world", name="scenes").fingerprint()["hash"] == told[0]


def test_a_fingerprint_takes_as_long_for_many_samples_as_for_few(tmp_path):
    lines(tmp_path / "m.jsonl", [talk("word " * 20)] * 20_000)
    for config in (
        {"reader": "messages", "path": "m.jsonl"},
        {"reader": "world", "name": "scene_sounds", "size": 10**9},
    ):
        source = opened(tmp_path, **config)
        started = time.process_time()
        source.fingerprint()
        assert time.process_time() - started < 0.1

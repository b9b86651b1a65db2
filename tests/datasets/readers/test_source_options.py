"""Options that every source has: each means something for a reader, or is refused by it."""

import io
import json
import tarfile

import pytest

from mmgpt.config import Config, UserError, build
from mmgpt.datasets.readers.registry import AnySource, open_source


class Data(Config):
    data: AnySource


TABLE = {"reader": "table", "path": "a.csv", "answer": "{a}"}
OF = {"reader": "table", "path": "a.csv", "prompt": "{q}", "answer": "{a}"}


def opened(tree, root="."):
    return open_source(build(Data, {"data": tree}, "x").data, root)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"reader": "world", "name": "scenes", "ignore": ["a"]}, "ignore is of sources that read rows"),
        (
            {
                "reader": "composed",
                "pictures": TABLE,
                "sounds": TABLE,
                "facts": {"color": ["a", "b"], "shape": ["c", "d"]},
                "ignore": ["a"],
            },
            "ignore is of pictures and sounds",
        ),
        ({"reader": "episodes", "of": OF, "ways": 2, "ignore": ["a"]}, "ignore is of the source below of"),
        ({"reader": "episodes", "of": OF, "ways": 2, "split": "test"}, "split=test is of the source below of"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_with_its_place(tree, told):
    with pytest.raises(UserError, match=told):
        opened(tree)


def test_split_fills_the_path_of_messages(tmp_path):
    for split in ("train", "test"):
        turns = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": split}]
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        tree = {"reader": "messages", "path": "{split}.jsonl", "split": split}
        assert [sample.messages[-1].text for sample in opened(tree, tmp_path)] == [split]


def test_split_fills_the_path_of_shards(tmp_path):
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            member = tarfile.TarInfo("1.txt")
            member.size = len(split)
            tar.addfile(member, io.BytesIO(split.encode()))
        tree = {"reader": "shards", "path": "{split}-0.tar", "prompt": "which?", "answer": "{txt}", "split": split}
        assert [sample.messages[-1].text for sample in opened(tree, tmp_path)] == [split]

"""Text files and JSON as the world writes them, in every reader."""

import gzip
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.plain_text import parse_json, read_lines
from mmgpt.datasets.readers.official_layouts import LibriSpeechConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.rows import open_rows
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.readers.text import TextConfig
from mmgpt.evaluation.tasks.task import TaskConfig

MARK = "\ufeff"
ROWS = [{"q": "\u00e9?", "a": "red"}, {"q": "2?", "a": "x\u2028y\u0085z"}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def read(root, **options):
    tree = {"reader": "table", "prompt": "{q}", "answer": "{a}", **options}
    return open_source(build(TableConfig, tree, "table"), root)


def text_of(root, **options) -> list[str]:
    source = open_source(TextConfig(reader="text", **options), root)
    return [source[n].messages[0].text for n in range(len(source))]


def put(root, name: str, text: str | bytes) -> None:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def lines(rows) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", json.dumps(ROWS, ensure_ascii=False)),
        ("rows.json", lines(ROWS)),  # json lines by another name
        ("rows.json", lines(ROWS) + "\n\n\r\n"),
        ("ROWS.JSON", json.dumps(ROWS)),
        ("rows.jsonl", lines(ROWS)),
        ("rows.jsonl", lines(ROWS).replace("\n", "\r\n\r\n") + "\r\n"),
        ("rows.JsonL", lines(ROWS) + "\n"),
        ("rows.txt", "\u00e9?\tred\r\n2?\tx\u2028y\u0085z\r\n"),
        ("rows.txt", "\u00e9?\tred\n2?\tx\u2028y\u0085z\n\n\n"),
        ("rows.TXT", "\u00e9?\tred\r2?\tx\u2028y\u0085z"),
    ],
)
def test_marks_line_ends_and_capitals_change_no_row(name, text, mark, tmp_path):
    put(tmp_path, name, mark + text)
    columns = {"columns": ["q", "a"]} if name.lower().endswith("txt") else {}
    source = read(tmp_path, path=name, **columns)
    assert [[turn.text for turn in source[n].messages] for n in range(len(source))] == [
        ["\u00e9?", "red"],
        ["2?", "x\u2028y\u0085z"],
    ]
    assert len(read(tmp_path, path=name, **columns, where={"q": "2?"})) == 1


@given(rows=st.lists(st.dictionaries(st.text(st.characters(), max_size=4), VALUES, max_size=3), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_rows_come_back_as_they_were_written(name, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / name
    path.write_text(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    found = open_rows([path])
    assert [found[n] for n in range(len(found))] == rows
    assert [found.place(n).startswith(f"row {n} of") for n in range(len(rows))] == [True] * len(rows)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.json", '[{"q": "1", "a": "x", "a": "y"}]', "an object has the key 'a' twice"),
        ("rows.jsonl", '{"q": "1", "a": "x", "a": "y"}', "row 0 is not JSON .an object has the key 'a' twice"),
        ("rows.json", "", "it is empty"),
        ("rows.json", MARK, "it is empty"),
        ("rows.json", "[" * 100_000, "it is nested too deeply"),
        ("rows.jsonl", "[" * 100_000, "row 0 is not JSON .it is nested too deeply"),
        ("rows.json", '{"q": "1", "a": "x"}\n\n{"q": \n', "line 3: "),
        ("rows.jsonl", '[\n{"q": "1", "a": "x"}\n]', "if it is one list, name the file .json"),
        ("rows.jsonl", '[{"q": "1", "a": "x"}]', "give objects, or lists and as many names in columns"),
        ("rows.jsonl", b'{"q": "1", "a": "\xe9"}', r"not a UTF-8 text file \(row 0: .*0xe9.*; save it as UTF-8"),
        ("rows.jsonl", lines(ROWS).encode("utf-16"), "it is UTF-16.; save it as UTF-8"),
        ("rows.json", lines(ROWS[1:]).encode("utf-16-le"), "it looks like UTF-16"),
        ("rows.json", b'[{"q": "1",\n"a": "\xe9"}]', r"not a UTF-8 text file \(line 2: .*; save it as UTF-8"),
        ("rows.jsonl.gz", gzip.compress(b"{}"), "unpack the gz file first"),
        ("rows.csv.zst", b"(\xb5/\xfd", "unpack the zst file first"),
        ("rows.jsonl", gzip.compress(b"{}"), "it is compressed by gzip.; unpack it by gunzip"),
        ("rows.json", b"PAR1", "it is parquet.; name it .parquet"),
        ("rows.parquet", b"", "not a readable parquet file"),
        ("rows.xlsx", b"PK\x03\x04", "a table is a file of .json"),
    ],
)
def test_json_that_would_be_read_wrongly_is_refused_with_its_reason(name, text, told, tmp_path):
    put(tmp_path, name, text)
    with pytest.raises(UserError, match=rf"{name}: .*{told}|{name}: {told}"):
        read(tmp_path, path=name)[0]


def test_a_corpus_is_read_behind_its_mark(tmp_path):
    put(tmp_path, "a.txt", f"{MARK}first line\r\nsecond line\r\n")
    put(tmp_path, "b.TXT", "first line\r\nsecond line\r\n")
    for unit in ("line", "paragraph", "window", "piece"):
        marked, plain = (text_of(tmp_path, path=name, unit=unit, window=8) for name in ("a.txt", "b.TXT"))
        assert marked == plain
        assert MARK not in "".join(marked)
    for span in ((0.0, 0.5), (0.5, 1.0)):
        assert text_of(tmp_path, path="a.txt", span=span) == text_of(tmp_path, path="b.TXT", span=span)
    put(tmp_path, "a.txt", MARK)
    with pytest.raises(UserError, match=r"a.txt: holds no samples"):
        text_of(tmp_path, path="a.txt")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), window=st.integers(1, 9))
def test_the_pieces_of_a_marked_corpus_are_its_text(text, window, tmp_path_factory):
    root = tmp_path_factory.mktemp("pieces")
    text = text.replace("\r\n", "\n")  # which the edge of a window may part
    put(root, "text.txt", MARK + "0" + text)
    assert "".join(text_of(root, path="text.txt", unit="piece", window=window)) == "0" + text


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ("words".encode("utf-16"), "it is UTF-16"),
        ("words words".encode("utf-16-be"), "it looks like UTF-16"),
        (gzip.compress(b"words"), "it is compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"caf\xe9", "can't decode .*; save it as UTF-8, as by iconv -f LATIN1"),
    ],
)
def test_a_corpus_that_is_no_utf8_text_says_what_it_is(payload, told, tmp_path):
    put(tmp_path, "book.txt", payload)
    with pytest.raises(UserError, match=rf"book.txt: not a UTF-8 text file \(.*{told}"):
        text_of(tmp_path, path="book.txt")


def test_lists_of_values_and_lines_beside_a_table_are_read_without_marks_and_line_ends(tmp_path):
    put(tmp_path, "rows.csv", "q\n1?\n2?\n3?\n")
    put(tmp_path, "keep.txt", f"{MARK}1?\r\n3?\r\n\r\n")
    put(tmp_path, "answers.txt", f"{MARK}red\r\nblue\r\nlime\r\n\r\n")
    beside = {"a": {"path": "answers.txt"}}
    source = read(tmp_path, path="rows.csv", beside=beside, listed={"q": "keep.txt"})
    assert [source[n].messages[1].text for n in range(len(source))] == ["red", "lime"]


def test_a_split_is_filled_into_the_path_of_a_text(tmp_path):
    put(tmp_path, "valid.txt", "words")
    assert text_of(tmp_path, path="{split}.txt", split="valid") == ["words"]


def test_what_a_mac_leaves_beside_librispeech_is_no_transcript(tmp_path):
    folder = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    folder.mkdir(parents=True)
    put(folder, "84-121123.trans.txt", f"{MARK}84-121123-0000 GO ON\r\n\r\n")
    put(folder, "._84-121123.trans.txt", b"\x00\x05\x16\x07\x00\x02")
    soundfile.write(folder / "84-121123-0000.flac", np.zeros(800, np.float32), 8000)
    source = open_source(LibriSpeechConfig(reader="librispeech", subsets=["dev-clean"]), tmp_path)
    assert [source[n].messages[1].text for n in range(len(source))] == ["go on"]


@pytest.mark.parametrize("key", ["\ud83d", "a\udfff", "\ud83d\udcde\ud83d"])
def test_half_a_pair_of_surrogates_in_a_key_or_a_cell_stops_no_error_from_being_printed(key, tmp_path):
    put(tmp_path, "rows.json", json.dumps([{"q": key, "a": None, key: "x"}]))
    for options in ({}, {"ignore": ["*"]}, {"prompt": f"{{{key}}}"}, {"answer": f"{{{key}{key}}}"}):
        with pytest.raises(UserError) as told:
            read(tmp_path, path="rows.json", **options)[0]
        str(told.value).encode()
    sample = read(tmp_path, path="rows.json", answer="{q}", key="{q}", tags=["q"], ignore=["*"])[0]
    f"{sample.key}{sample.turns[-1].text}{sample.truths[0].tags}".encode()


def test_lines_end_at_line_feeds_alone(tmp_path):
    put(tmp_path, "a.txt", "a\x0bb\x0c\x1c\u2028\u2029\u0085c\rd\r\ne\n\n")
    assert read_lines(tmp_path / "a.txt") == ["a\x0bb\x0c\x1c\u2028\u2029\u0085c\rd", "e", ""]
    assert parse_json('{"a": {"b": 1}}') == {"a": {"b": 1}}


def test_exemplars_of_another_split_that_nothing_reads_are_the_test_itself():
    task = {"name": "t", "reader": {"kind": "csv", "path": "rows.csv"}, "prompt": "{q}", "answer": "{a}"}
    with pytest.raises(UserError, match="exemplars are the test data itself"):
        build(TaskConfig, {**task, "exemplar_split": "train"}, "t.yaml")
    task["reader"] = {"kind": "csv", "path": "{split}.csv"}
    build(TaskConfig, {**task, "exemplar_split": "train"}, "t.yaml")

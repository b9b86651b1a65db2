import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.readers import text as text_module
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.text import TextConfig


@pytest.fixture
def open_text(tmp_path):
    def read(text: str, **options):
        (tmp_path / "book.txt").write_text(text, encoding="utf-8")
        return open_source(TextConfig(reader="text", path="book.txt", **options), tmp_path)

    return read


def texts(source) -> list[str]:
    return [source[index].messages[0].text for index in range(len(source))]


def test_lines_and_paragraphs_are_documents_and_blank_ones_are_none(open_text):
    text = "one\n  \ntwo words\n\nthree\nfour\n\n\n five"
    assert texts(open_text(text, unit="line")) == ["one", "two words", "three", "four", " five"]
    assert texts(open_text(text, unit="paragraph")) == ["one\n  \ntwo words\n", "three\nfour\n", " five"]


@given(length=st.integers(1, 60), window=st.integers(1, 20), stride=st.none() | st.integers(1, 20))
def test_windows_cover_the_text_and_none_is_shorter_unless_the_text_is(length, window, stride, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    text = "".join(chr(0x4E00 + n) for n in range(length))
    (folder / "book.txt").write_text(text, encoding="utf-8")
    source = open_source(TextConfig(reader="text", path="book.txt", window=window, stride=stride), folder)
    pieces = texts(source)
    assert all(piece in text and len(piece) == min(window, length) for piece in pieces)
    if stride is None or stride <= window:
        assert set("".join(pieces)) == set(text)
    assert len(set(pieces)) == len(pieces)


def test_a_span_reads_its_share_and_two_spans_share_nothing(open_text):
    text = "".join(chr(0x4E00 + n) for n in range(1000))
    first = open_text(text, span=(0.0, 0.9), window=50)
    last = open_text(text, span=(0.9, 1.0), window=50)
    assert set("".join(texts(first))) == set(text[:900])
    assert set("".join(texts(last))) == set(text[900:])
    assert (first.name, first[3].key) == ("book", "book/3")


def test_texts_that_hold_nothing_or_are_none_are_refused(open_text, tmp_path):
    with pytest.raises(UserError, match=r"book.txt: holds no samples"):
        open_text("")
    with pytest.raises(UserError, match=r"book.txt: holds no samples"):
        open_text("\n \n", unit="line")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes.txt: not a UTF-8 text file"):
        open_source(TextConfig(reader="text", path="bytes.txt"), tmp_path)


def test_paths_that_are_absent_or_climb_out_of_the_data_root_are_refused(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root").mkdir()
    for path in ("../secret.txt", str(tmp_path / "secret.txt")):
        with pytest.raises(UserError, match=r"secret.txt: leads out of the data root"):
            open_source(TextConfig(reader="text", path=path), tmp_path / "root")
    with pytest.raises(UserError, match=r"absent.txt: no such file or folder; set --data-root"):
        open_source(TextConfig(reader="text", path="absent.txt"), tmp_path / "root")


@pytest.mark.parametrize("unit", ["window", "line", "paragraph"])
def test_several_files_are_read_one_after_another_in_the_order_of_their_names(unit, tmp_path):
    (tmp_path / "wiki").mkdir()
    for name, text in (("b.txt", "three\r\nfour\r\n\r\nfive"), ("a.txt", "one\ntwo\n"), ("c.md", "no"), ("0.txt", "")):
        (tmp_path / "wiki" / name).write_bytes(text.encode())
    (tmp_path / "last.txt").write_text("six")
    expected = {
        "window": ["one\ntwo\n", "three\nfour\n\nfive", "six"],
        "line": ["one", "two", "three", "four", "five", "six"],
        "paragraph": ["one\ntwo\n", "three\nfour\n", "five", "six"],
    }
    for path in (["wiki/*.txt", "last.txt"], ["wiki", "last.txt"]):
        source = open_source(TextConfig(reader="text", path=path, unit=unit), tmp_path)
        assert texts(source) == expected[unit]
    with pytest.raises(UserError, match=r"none\*.txt: matches no file"):
        open_source(TextConfig(reader="text", path="none*.txt"), tmp_path)


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_texts_of_a_column_are_cut_and_no_piece_crosses_a_row(name, tmp_path):
    rows = [{"body": "caf\u00e9 au lait", "id": 1}, {"body": " ", "id": 2}, {"body": "tea\nmilk", "id": 3}]
    write_rows(tmp_path / name, rows)
    body = {"reader": "text", "path": name, "column": "body", "ignore": ["id"]}
    found = {
        unit: texts(open_source(TextConfig(**body, unit=unit, window=6), tmp_path))
        for unit in ("row", "window", "piece", "line")
    }
    assert found["row"] == ["caf\u00e9 au lait", "tea\nmilk"]
    assert found["window"] == [
        "caf\u00e9 a",
        "af\u00e9 au",
        "f\u00e9 au ",
        "\u00e9 au l",
        " au la",
        "au lai",
        "u lait",
        *windows("tea\nmilk"),
    ]
    assert found["piece"] == ["caf\u00e9 a", "u lait", "tea\nmi", "lk"]
    assert found["line"] == ["caf\u00e9 au lait", "tea", "milk"]
    last = TextConfig(**body, unit="row", span=(0.5, 1.0))
    assert texts(open_source(last, tmp_path)) == ["tea\nmilk"]
    with pytest.raises(UserError, match=r"no column txt; .*body"):
        open_source(TextConfig(**{**body, "column": "txt"}), tmp_path)
    with pytest.raises(UserError, match=r"row 0 holds no text in id: '1'"):
        open_source(TextConfig(**{**body, "column": "id", "ignore": ["body"]}), tmp_path)


def windows(text):
    return [text[at : at + 6] for at in range(len(text) - 5)]


@given(text=st.text(st.sampled_from("a\u00e9\u4e00\n"), min_size=1, max_size=40), window=st.integers(1, 9))
def test_pieces_are_the_text_each_character_once(text, window, tmp_path_factory):
    root = tmp_path_factory.mktemp("pieces")
    (root / "text.txt").write_text(text, encoding="utf-8")
    found = texts(open_source(TextConfig(reader="text", path="text.txt", unit="piece", window=window), root))
    assert "".join(found) == text
    assert [len(piece) for piece in found[:-1]] == [window] * (len(found) - 1)


@pytest.mark.parametrize("unit", ["window", "piece", "line", "paragraph"])
def test_a_text_is_read_by_place_so_that_memory_does_not_grow_with_it(unit, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", 1 << 16)
    (tmp_path / "long.txt").write_text(("\u4e00" * 9_999 + "\n\n") * 200, encoding="utf-8")  # 6 MB
    tracemalloc.start()
    source = open_source(TextConfig(reader="text", path="long.txt", unit=unit, window=9_999, stride=9_999), tmp_path)
    assert source[len(source) - 2].messages[0].text.count("\u4e00") > 9_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_text_file_has_no_rows(open_text):
    with pytest.raises(UserError, match=r"book.txt: a text file has no rows"):
        open_text("a", unit="row")

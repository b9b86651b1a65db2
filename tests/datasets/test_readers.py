import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.messages import MessagesConfig
from mmgpt.datasets.readers import open_source
from mmgpt.datasets.sample import Text
from mmgpt.datasets.text import TextConfig


@pytest.fixture
def open_text(tmp_path):
    def read(text: str, **options):
        (tmp_path / "book.txt").write_text(text, encoding="utf-8")
        return open_source(TextConfig(reader="text", path="book.txt", **options), tmp_path)

    return read


@pytest.fixture
def open_rows(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / "pictures" / name)

    def read(*rows, **options):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return open_source(MessagesConfig(reader="messages", path="rows.jsonl", **options), tmp_path)

    return read


def texts(source) -> list[str]:
    return [source[index].messages[0].text for index in range(len(source))]


def talk(asked, answer: str = "red") -> list[dict]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def colour(part) -> tuple[int, ...]:
    return tuple(np.asarray(part.load())[0, 0].tolist())


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


def test_rows_of_hugging_face_content_parts_are_read_with_media_beside_the_file(open_rows):
    parts = [{"type": "image", "path": "pictures/red.png"}, {"type": "text", "text": "What <image> is it?"}]
    source = open_rows({"messages": talk(parts)})
    picture, text = source[0].messages[0].parts
    assert colour(picture) == (255, 0, 0)
    assert text == Text("What <image> is it?")
    assert source[0].key == "rows/0"


def test_ms_swift_rows_put_their_images_where_the_tags_stand(open_rows):
    row = {
        "messages": talk("<image>First<image> second", "caf\u00e9"),
        "images": ["pictures/blue.png", "pictures/red.png"],
    }
    parts = open_rows(row, media_root=None)[0].messages[0].parts
    assert [p.text if isinstance(p, Text) else colour(p) for p in parts] == [
        (0, 0, 255),
        "First",
        (255, 0, 0),
        " second",
    ]
    rooted = open_rows({**row, "images": ["blue.png", "red.png"]}, media_root="pictures")[0].messages[0].parts
    assert colour(rooted[0]) == (0, 0, 255)


@pytest.mark.parametrize("images", [None, []])
def test_an_image_tag_in_a_row_without_images_is_plain_text(images, open_rows):
    row = {"messages": talk("write <image> in <audio> HTML")}
    source = open_rows(row if images is None else {**row, "images": images})
    assert source[0].messages[0].parts == (Text("write <image> in <audio> HTML"),)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("no tag", "rows/1: 2 images have no placeholder"),
        ("<image> one", "rows/1: 1 images have no placeholder"),
        ("<image><image><image>", "rows/1: more <image> tags than images"),
    ],
)
def test_tags_and_images_that_differ_in_number_are_refused_with_the_row(asked, told, open_rows):
    good = {"messages": talk("hello")}
    bad = {"messages": talk(asked), "images": ["pictures/red.png"] * 2}
    with pytest.raises(UserError, match=told):
        open_rows(good, bad)[1]


def test_media_paths_may_not_climb_out_of_the_media_folder(open_rows):
    for path in ("../a.png", "pictures/../../a.png"):
        source = open_rows({"messages": talk("<image>"), "images": [path]})
        with pytest.raises(UserError, match="leads out of the data root"):
            source[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{not json", "row 1 is not JSON"),
        ("[1, 2]", "row 1 is .1, 2.; give objects"),
        ('{"text": "a"}', "row 1 has no messages"),
        ('{"messages": "a"}', "messages must be a list"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "role 'robot' is not known"),
    ],
)
def test_a_row_that_is_no_conversation_is_refused_with_its_number(row, told, open_rows):
    source = open_rows({"messages": talk("a")}, row)
    with pytest.raises(UserError, match=told):
        source[1]


def test_blank_lines_are_no_rows_and_a_limit_keeps_the_first(open_rows):
    rows = [json.dumps({"messages": talk(str(number))}) for number in range(5)]
    source = open_rows(rows[0], "", rows[1], "  ", *rows[2:])
    assert texts(source) == ["0", "1", "2", "3", "4"]
    assert texts(open_rows(*rows, limit=2)) == ["0", "1"]
    assert isinstance(
        open_rows({"messages": talk("<image>"), "images": ["pictures/red.png"]})[0].messages[0].parts[0], Image
    )

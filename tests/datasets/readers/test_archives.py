"""Zips as other programs pack them, and files that are written again while a process reads them."""

import io
import os
import zipfile

import numpy as np
import PIL.Image
import pytest

from mmgpt.config import UserError, build
from mmgpt.datasets.file_names import members_of, split_zip
from mmgpt.datasets.media import Image, MediaError
from mmgpt.datasets.readers.parquet_rows import ParquetRows
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.table_config import TableConfig


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colour_of(picture: Image) -> tuple[int, ...]:
    return tuple(np.asarray(picture.load())[0, 0].tolist())


def pack(path, *members: tuple[str | bytes, bytes]) -> None:
    """A zip; a name in bytes stands in it as it is, without the flag of UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(members):
            archive.writestr(name if isinstance(name, str) else f"{number:0{len(name)}}", data)
    packed = path.read_bytes()
    for number, (name, _) in enumerate(members):
        if isinstance(name, bytes):
            packed = packed.replace(b"%0*d" % (len(name), number), name)
    path.write_bytes(packed)


@pytest.mark.parametrize("suffix", [".zip", ".ZIP", ".Zip"])
def test_a_member_is_read_whatever_the_case_of_its_archives_suffix(suffix, tmp_path):
    pack(tmp_path / f"a{suffix}", ("in/red.png", png("red")))
    assert colour_of(Image(str(tmp_path / f"a{suffix}" / "in" / "red.png"))) == (255, 0, 0)
    tree = {
        "reader": "table",
        "path": f"a{suffix}",
        "files": "in/{colour}.png",
        "image": f"a{suffix}/in/{{colour}}.png",
        "prompt": "{image}",
        "answer": "{colour}",
    }
    source = open_source(build(TableConfig, tree, "table"), tmp_path)
    assert [sample.messages[-1].text for sample in source] == ["red"]
    assert colour_of(source[0].messages[0].parts[0]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a.zip/b.png", ("a.zip", "b.png")),
        ("a.zip", ("a.zip", "")),
        ("a.zipped/b.png", ("a.zipped/b.png", "")),
        ("x/a.ZIP/in/b.zip/c.png", ("x/a.ZIP", "in/b.zip/c.png")),
        ("folder.zip/b.png", ("folder.zip/b.png", "")),
        ("folder.zip/in.zip/b.png", ("folder.zip/in.zip", "b.png")),
    ],
)
def test_a_path_is_cut_at_its_first_archive_that_is_no_folder(path, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.zip").mkdir()
    assert split_zip(path) == parts


@pytest.mark.parametrize("name", ["红.png".encode("gbk"), "赤い.png".encode("cp932"), "красный.png".encode("cp1251")])
def test_a_zip_whose_names_are_in_a_code_page_it_does_not_tell_is_refused(name, tmp_path):
    pack(tmp_path / "a.zip", (name, png("red")))
    with (
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        pytest.raises(UserError, match=r"a\.zip: '.*' is named in a code page that the zip does not tell"),
    ):
        members_of(tmp_path / "a.zip", archive)


@pytest.mark.parametrize(
    "name", ["红.png", "красный.png", "café.png".encode("cp437"), "straße.png".encode("cp437"), "赤.png".encode()]
)
def test_names_in_utf_8_and_in_the_code_page_of_zips_are_read(name, tmp_path):
    pack(tmp_path / "a.zip", (name, png("red")))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(members_of(tmp_path / "a.zip", archive)) == 1


def test_an_archive_that_is_packed_again_is_read_again(tmp_path):
    for colour, pixel in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        pack(tmp_path / "a.zip", ("a.png", png(colour)), (f"{colour}.png", png(colour)))
        assert colour_of(Image(str(tmp_path / "a.zip" / "a.png"))) == pixel
    os.remove(tmp_path / "a.zip")
    with pytest.raises(MediaError, match="no such file"):
        Image(str(tmp_path / "a.zip" / "a.png")).load()


def test_parquet_that_is_written_again_is_read_again(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for answers in (["cat", "dog"], ["a cow", "a bird"]):
        parquet.write_table(pyarrow.table({"q": ["what?"] * 2, "a": answers}), tmp_path / "t.parquet")
        tree = {"reader": "table", "path": "t.parquet", "prompt": "{q}", "answer": "{a}"}
        source = open_source(build(TableConfig, tree, "table"), tmp_path)
        assert [sample.messages[-1].text for sample in source] == answers


def test_floats_of_32_bits_stay_short_in_lists_and_structs_too(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    box = pa.struct([("x", pa.float32()), ("of", pa.list_(pa.float32()))])
    table = pa.table(
        {
            "plain": pa.array([0.1], pa.float32()),
            "many": pa.array([[0.1, None, 2.5]], pa.list_(pa.float32())),
            "box": pa.array([{"x": 0.3, "of": [0.7]}], box),
            "double": pa.array([0.1]),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    row = ParquetRows([tmp_path / "t.parquet"])[0]
    held = [row["plain"], row["many"][0], row["many"][2], row["box"]["x"], row["box"]["of"][0], row["double"]]
    assert list(map(str, held)) == ["0.1", "0.1", "2.5", "0.3", "0.7", "0.1"]
    assert row["many"][1] is None

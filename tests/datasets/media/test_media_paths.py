"""Paths, URLs and base64 as people and programs write them: opened, or refused with the reason."""

import base64
import io
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures_made import PIXELS, encode, pixels

from mmgpt.datasets.media import Image, MediaError, Video
from mmgpt.datasets.source import media_from_cell

PNG = encode()


def test_a_path_in_any_spelling_is_opened(tmp_path, monkeypatch):
    folder = tmp_path / "with space"
    folder.mkdir()
    for name in ("a b.png", "100%.png", "caf\u00e9.png", unicodedata.normalize("NFD", "n\u00e9e.png"), "x#1?.png"):
        (folder / name).write_bytes(PNG)
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "folder.zip" / "a.png").write_bytes(PNG)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    (folder / "~tilde.png").write_bytes(PNG)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(unicodedata.normalize("NFD", "\u00e9.png"), PNG)
    for source in (
        "a b.png",
        Path("a b.png"),
        "~/a b.png",
        "~tilde.png",
        (folder / "a b.png").as_uri(),
        f"file://localhost{folder}/a%20b.png",
        f"file:{folder}/a%20b.png",
        f"FILE://{folder}/100%25.png",
        f"file://{folder}/x#1?.png",
        "caf\u00e9.png",
        unicodedata.normalize("NFD", "caf\u00e9.png"),
        "n\u00e9e.png",
        f"{tmp_path}/folder.zip/a.png",
        "a.zip/\u00e9.png",
        next(entry for entry in os.scandir(folder) if entry.name == "a b.png"),
        np.str_("a b.png"),
    ):
        assert np.array_equal(pixels(source), PIXELS), source


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("a.png\n", r"'.*a.png\\n': no such file; without the blanks at its ends it is there"),
        (" a.png", "no such file; without the blanks at its ends it is there"),
        ("sub\\b.png", r"no such file; with / for \\ it is there"),
        ("absent.png", "no such file; check the image's path"),
        ("sub", "cannot be read, for it is no regular file but a folder"),
        ("file://sub/b.png", "names another machine; write file:///path"),
        ("HTTPS://example.com/a.png", "does not fetch media from the network"),
        ("s3://bucket/a.png", "does not fetch media from the network"),
        ("\ud83d.png", "cannot be read"),
        (b"a.png", "a path goes in as a string"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(source, told, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError, match=told):
        pixels(source)


CODED = base64.b64encode(PNG).decode()
SAFE = base64.urlsafe_b64encode(PNG).decode()


@pytest.mark.parametrize(
    "source",
    [
        CODED,
        CODED.rstrip("="),
        SAFE,
        "\n".join(CODED[at : at + 76] for at in range(0, len(CODED), 76)),
        CODED + "\n",
        f"data:image/png;base64,{CODED}",
        f"DATA:image/png;charset=utf-8;BASE64,{CODED}",
        f"data:image/png; base64 ,{CODED}",
        f"data:;base64, {CODED}\r\n",
        "data:image/png;base64," + "\r\n ".join(CODED[at : at + 60] for at in range(0, len(CODED), 60)),
        f"data:image/png;base64,{SAFE.rstrip('=')}",
        f"data:image/png;base64,{CODED.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        bytearray(PNG),
        memoryview(PNG),
        io.BytesIO(PNG),
    ],
)
def test_content_in_any_spelling_is_read(source, tmp_path):
    assert np.array_equal(pixels(source), PIXELS)
    if isinstance(source, str):
        assert np.array_equal(media_from_cell("image", source, tmp_path, tmp_path)[0].load(), PIXELS)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("data:image/png;base64,@@@", "is not valid base64 \\(it holds '@'\\)"),
        ("data:image/png;base64,AAAAA", "is not valid base64 \\(its last letter is missing\\)"),
        ("data:image/png;base64,\u00e9", "is not valid base64"),
        ("data:image/png;base64,", "0 bytes, not a picture"),
        ("data:image/png", "has no comma; write data:image/png;base64"),
        ("train/images/" + "a_long_name_without_an_ending/" * 3, "no such file"),
    ],
)
def test_content_that_is_none_says_why(source, told):
    with pytest.raises(MediaError, match=told):
        pixels(source)


def test_open_files_that_give_no_bytes_say_why(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with open(tmp_path / "a.png") as text, pytest.raises(MediaError, match="open the file in binary mode, 'rb'"):
        pixels(text)
    closed = open(tmp_path / "a.png", "rb")  # noqa: SIM115
    closed.close()
    with pytest.raises(MediaError, match=r"cannot be read .*closed file"):
        pixels(closed)


def test_cells_of_rows_stay_below_the_data(tmp_path, monkeypatch):
    inside, outside = tmp_path / "data", tmp_path / "secret"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(PNG)
    monkeypatch.setenv("HOME", str(outside))
    name = unicodedata.normalize("NFD", "\u00e9.png")
    (inside / name).symlink_to(outside / "a.png")
    assert np.array_equal(media_from_cell("image", (inside / "a.png").as_uri(), inside, inside)[0].load(), PIXELS)
    for cell in ((outside / "a.png").as_uri(), "\u00e9.png", "../secret/a.png"):
        with pytest.raises(ValueError, match="leads out of"):
            media_from_cell("image", cell, inside, inside)
    with pytest.raises(MediaError, match="no such file"):
        media_from_cell("image", "~/a.png", inside, inside)[0].load()


@pytest.mark.parametrize("kind", [Image, Video])
@pytest.mark.parametrize("source", [None, 5, 0.5, True, np.float32(1), np.bool_(True), float("nan"), "", " \n"])
def test_what_holds_nothing_is_refused_at_the_door(kind, source):
    with pytest.raises(MediaError, match=f"is no {kind.modality}; give a path, bytes, an open file, a data"):
        kind(source)

"""Nothing of a table is dropped in silence: columns, files, and keys of the config that would do nothing."""

import json
import unicodedata
import zipfile

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers.episodes import EpisodesConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.readers.text import TextConfig

USED = {"q": "1?", "a": "red"}


def read(root, **options):
    tree = {"reader": "table", "prompt": "{q}", "answer": "{a}", **options}
    return open_source(build(TableConfig, tree, "table"), root)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        sep = "\t" if path.suffix == ".tsv" else ","
        path.write_text(
            "\n".join(sep.join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)]) + "\n"
        )


FILES = ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl", "rows.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_a_column_that_nothing_reads_is_refused_when_the_table_opens(name, tmp_path):
    write(tmp_path / name, [{**USED, "note": "x", "weight": "0"}] * 2)
    with pytest.raises(UserError, match=rf"{name}: nothing reads 'note', 'weight'; .*ignore: \[note, weight\]"):
        read(tmp_path, path=name)
    for ignore in (["note", "weight"], ["*"], ["n*", "w?ight"]):
        assert read(tmp_path, path=name, ignore=ignore)[1].messages[1].text == "red"
    assert read(tmp_path, path=name, tags=["note"], where={"weight": "0"})[0].truths[0].tags == {"note": "x"}


@given(
    extra=st.sets(st.sampled_from(["image", "A", "label", "Prediction", "a ", "weight", "id", "split"]), min_size=1),
    kept=st.sets(st.sampled_from(["image", "A", "label", "Prediction", "a ", "weight", "id", "split"])),
    name=st.sampled_from(["rows.csv", "rows.json", "rows.jsonl"]),
)
def test_every_further_column_raises_or_is_ignored_by_name(extra, kept, name, tmp_path_factory):
    root = tmp_path_factory.mktemp("columns")
    extra = {one.strip() for one in extra} if name.endswith("csv") else extra
    extra -= {"a"}
    write(root / name, [{**USED, **dict.fromkeys(sorted(extra), "x")}])
    if extra <= kept:
        assert read(root, path=name, ignore=sorted(kept))[0].messages[1].text == "red"
        return
    with pytest.raises(UserError, match="nothing reads"):
        read(root, path=name, ignore=sorted(kept))


def test_a_row_with_other_keys_than_those_before_it_is_refused_where_it_stands(tmp_path):
    write(tmp_path / "rows.jsonl", [USED, USED, {**USED, "anser": "blue"}])
    source = read(tmp_path, path="rows.jsonl")
    with pytest.raises(UserError, match=r"nothing reads 'anser'; .*\(row 2 of .*rows.jsonl\)"):
        source[2]
    with pytest.raises(UserError, match=r"nothing reads 'anser'; .*\(row 2 of"):
        read(tmp_path, path="rows.jsonl", where={"a": "red"})
    write(tmp_path / "rows.json", [USED, USED, {**USED, "anser": "blue"}])
    with pytest.raises(UserError, match=r"rows.json: nothing reads 'anser'; known: a, q"):
        read(tmp_path, path="rows.json", prompt="{q}", answer="{a}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_tag": "<image {number}>"}, "image names none"),
        ({"missing_media": "skip"}, "missing_media=skip, but no image, audio or video is named"),
        ({"missing_media": "optional"}, "missing_media=optional, but no"),
        ({"files": "{q}.png", "columns": ["q"]}, "to which columns means nothing"),
        ({"files": "{q}.png", "is_quoted": True}, "to which is_quoted means nothing"),
        ({"files": "{q}.png", "rows": "data"}, "to which rows means nothing"),
        ({"splits": {"test": {"q": "1"}}, "holdout": {"key": "{q}"}}, "both say which rows are the test"),
        ({"optional": ["b"]}, r"optional names b, the prompt does not; known: q"),
        ({"derive": {"b": {"column": "a", "most_common": True, "lettered": True}}}, "most_common and lettered each"),
        ({"columns": ["q", "a"]}, r"row 0 is an object, which names its own columns; leave columns out"),
        ({"is_quoted": True}, r"is_quoted means nothing for .json, only for .csv, .tsv"),
        ({"path": "rows.csv", "rows": "data"}, r"rows means nothing for .csv, only for .json"),
        ({"path": "rows.csv", "columns": ["x", "x"]}, r"two columns are called 'x'"),
        ({"prompt": "{image}{q}"}, r"\{image\} in the prompt is the image itself, and none is given"),
        ({"prompt": "{q} {b}"}, r"names \{b\}, the rows do not"),
        ({"prompt": "{q"}, r"the template '\{q': "),
        ({"tags": ["split"]}, r"names \{split\}, the rows do not"),
        ({"holdout": {"key": "{q}"}, "split": "val"}, r"split 'val' of rows.json does not exist"),
        ({"beside": {"a": {"path": "lines.txt"}}}, r"lines.txt: .*rows.json has a column 'a' of its own"),
        ({"beside": {"b": {"path": "lines.txt"}}}, r"rows.json: nothing reads 'b'"),
        (
            {"derive": {"a": {"column": "q"}}},
            r"rows.json: nothing reads 'a'",
        ),  # the column is hidden by the derived one
    ],
)
def test_a_key_that_would_do_nothing_or_another_thing_is_refused(options, told, tmp_path):
    write(tmp_path / "rows.json", [USED])
    write(tmp_path / "rows.csv", [USED])
    (tmp_path / "lines.txt").write_text("x\n")
    with pytest.raises(UserError, match=told):
        read(tmp_path, **{"path": "rows.json", **options})[0]


def test_names_in_a_path_and_in_file_names_need_not_be_read_but_hide_no_column(tmp_path):
    for subject in ("art", "law"):
        write(tmp_path / f"{subject}-1.csv", [USED])
    assert len(read(tmp_path, path="{subject}-{part}.csv")) == 2
    with pytest.raises(UserError, match=r"its rows and its path name 'q'"):
        read(tmp_path, path="{q}-{part}.csv")
    write(tmp_path / "named.json", {"x": USED, "y": USED})
    assert len(read(tmp_path, path="named.json")) == 2


def test_parquet_of_two_columns_of_one_name_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["1"])] * 3, names=["q", "a", "a"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows.parquet: two columns are called 'a'"):
        read(tmp_path, path="rows.parquet")


def test_pictures_that_a_tag_cannot_tell_apart_are_not_dropped(tmp_path):
    for name in ("0.png", "1.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    write(tmp_path / "rows.json", [{"q": "<image> and <image>", "a": "x", "one": "0.png", "two": "1.png"}])
    options = {"path": "rows.json", "image": ["{one}", "{two}"], "image_tag": "<image>", "prompt": "{image}{q}"}
    with pytest.raises(UserError, match=r"image_tag='<image>' names 2 pictures alike; write \{number\} in it"):
        read(tmp_path, **options)[0]


def test_a_struct_of_a_medium_holds_nothing_else(tmp_path):
    write(tmp_path / "rows.json", [{**USED, "picture": {"path": "a.png", "caption": "a cat"}}])
    with pytest.raises(MediaError, match=r"has the key 'caption'; a struct holds bytes and path alone"):
        read(tmp_path, path="rows.json", image="{picture}", prompt="{image}{q}")[0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_columns_beside_a_text_must_be_named_too(name, tmp_path):
    write(tmp_path / name, [{"text": "one", "url": "x"}, {"text": "two", "url": "y"}])
    with pytest.raises(UserError, match=rf"{name}: nothing reads 'url'"):
        open_source(TextConfig(reader="text", path=name, unit="row"), tmp_path)
    assert len(open_source(TextConfig(reader="text", path=name, unit="row", ignore=["url"]), tmp_path)) == 2
    write(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "two", "meta": 1}])
    with pytest.raises(UserError, match=r"row 1 of .*rows.jsonl: nothing reads 'meta'"):
        open_source(TextConfig(reader="text", path="rows.jsonl", unit="row"), tmp_path)
    (tmp_path / "book.txt").write_text("x")
    with pytest.raises(UserError, match=r"book.txt: a text file has no columns"):
        open_source(TextConfig(reader="text", path="book.txt", column="body"), tmp_path)


def test_a_folder_of_two_kinds_of_files_is_none_that_a_reader_chooses_from(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "LICENSE.TXT").write_text("all rights reserved")
    write(tmp_path / "data" / "rows.jsonl", [{"text": "one"}])
    with pytest.raises(UserError, match=r"data: holds .jsonl and .txt files; say which, as in data/\*.jsonl"):
        open_source(TextConfig(reader="text", path="data"), tmp_path)
    assert len(open_source(TextConfig(reader="text", path="data/*.jsonl", unit="row"), tmp_path)) == 1


JUNK = [
    *(".DS_Store", "._cat-1.png", "Thumbs.db", "desktop.ini", "~$cat-1.png", ".ipynb_checkpoints/cat-9.png"),
    *("__MACOSX/._cat-1.png", "__MACOSX/cat-3.png", "@eaDir/cat-4.png", ".hidden/cat-5.png", "$RECYCLE.BIN/cat-6.png"),
]


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_the_system_are_no_data_in_folders_and_zips(is_zip, tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    payload = (tmp_path / "cat.png").read_bytes()
    names = ["cat-1.png", *JUNK, *(f"deep/{name}" for name in JUNK)]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(payload if name == "cat-1.png" else b"junk")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "in" / name, name)
    path = "in.zip" if is_zip else "in"
    options = {"path": path, "image": f"{path}/{{file}}", "prompt": "{image}", "answer": "{label}"}
    for files in ("{label}-{n}.png", "{x}{label}-{n}.png", "{folder}/{label}-{n}.png"):
        if "folder" in files:
            with pytest.raises(UserError, match="holds no samples"):
                read(tmp_path, **options, files=files)
            continue
        source = read(tmp_path, **options, files=files)
        assert len(source) == 1
        assert source[0].messages[0].parts[0].load().size == (4, 4)


def test_files_of_the_system_are_no_tables_and_no_texts(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.JSONL", "._a.jsonl", "~$a.jsonl"):
        (tmp_path / "data" / name).write_bytes(json.dumps(USED).encode() if name == "a.JSONL" else b"\x00\x05\x16\x07")
    (tmp_path / "data" / ".cache").mkdir()
    write(tmp_path / "data" / ".cache" / "b.jsonl", [USED])
    for path in ("data", "data/*", "data/*.JSONL"):
        assert len(read(tmp_path, path=path)) == 1
    assert len(read(tmp_path, path="data/.cache/*.jsonl")) == 1, "a hidden folder that is named is meant"
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "._a.txt", ".b.txt"):
        (tmp_path / "texts" / name).write_text("words")
    for path in ("texts", "texts/*.txt", ["texts/*"]):
        assert len(open_source(TextConfig(reader="text", path=path), tmp_path)) == 1


@pytest.mark.parametrize("path", ["in", "in.zip"])
@pytest.mark.parametrize("files", ["{label}/{n}.png", "{label}/*.PNG"])
def test_a_pattern_of_files_takes_their_ends_in_any_case(files, path, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("cat/1.png", "cat/2.PNG", "Cat/3.Png", "cat/4.jpg", "cat/5png"):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (4, 4)).save(tmp_path / "in" / name, format="PNG")
            archive.write(tmp_path / "in" / name, name)
    options = {"path": path, "image": f"{path}/{{file}}", "prompt": "{image}", "answer": "{label}"}
    source = read(tmp_path, **options, files=files)
    samples = [source[n] for n in range(len(source))]
    assert sorted(sample.messages[1].text for sample in samples) == ["Cat", "cat", "cat"]
    assert all(sample.messages[0].parts[0].load().size == (4, 4) for sample in samples)


def test_members_of_a_zip_are_found_however_their_names_are_spelt(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    payload = (tmp_path / "x.png").read_bytes()
    decomposed = unicodedata.normalize("NFD", "caf\u00e9/1.png")
    old = zipfile.ZipInfo("na\u00efve/3.png".encode().decode("cp437"))  # UTF-8 that does not say so
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(decomposed, payload)
        archive.writestr("dir\\2.png", payload)
        archive.writestr(old, payload)
    raw = (tmp_path / "a.zip").read_bytes()
    for name in (b"PK\x03\x04", b"PK\x01\x02"):  # the flag that a name is UTF-8 off, for the third member
        at = raw.rindex(name)
        flag = at + (6 if name == b"PK\x03\x04" else 8)
        raw = raw[: flag + 1] + bytes([raw[flag + 1] & ~0x08]) + raw[flag + 2 :]
    utf8, stated = "na\u00efve/3.png".encode(), "na\u00efve/3.png".encode().decode("cp437").encode()
    assert raw.count(stated) == 2
    options = {"path": "a.zip", "image": "a.zip/{file}", "prompt": "{image}", "answer": "{label}"}
    source = read(tmp_path, **options, files="{label}/{n}.png")
    assert [source[n].messages[1].text for n in range(2)] == ["caf\u00e9", "dir"]
    assert all(source[n].messages[0].parts[0].load().size == (4, 4) for n in range(2))
    write(tmp_path / "rows.json", [{"file": "caf\u00e9/1.png"}, {"file": "dir/2.png"}, {"file": "dir/9.png"}])
    options = {"path": "rows.json", "image": "a.zip/{file}", "prompt": "{image}", "answer": "x"}
    assert len(read(tmp_path, **options, missing_media="skip")) == 2
    with pytest.raises(MediaError, match="the zip holds no such member"):
        read(tmp_path, **options)[2].messages[0].parts[0].load()
    assert utf8 != stated


def test_a_zip_that_holds_a_file_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.png", b"1")
        archive.writestr("cat\\1.png", b"2")
    with pytest.raises(UserError, match=r"a.zip: holds 'cat/1.png' twice"):
        read(tmp_path, path="a.zip", files="{label}/{n}.png", prompt="", answer="{label}")


@pytest.mark.parametrize(("disk", "row"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_is_opened_however_its_accents_are_spelt(disk, row, tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / unicodedata.normalize(disk, "caf\u00e9.png"))
    write(tmp_path / "rows.json", [{"file": unicodedata.normalize(row, "caf\u00e9.png")}])
    options = {"path": "rows.json", "image": "{file}", "prompt": "{image}", "answer": "x"}
    for missing_media in ("error", "skip"):
        source = read(tmp_path, **options, missing_media=missing_media)
        assert source[0].messages[0].parts[0].load().size == (4, 4)


def test_arrays_beside_a_table_are_no_text(tmp_path):
    write(tmp_path / "rows.json", [{"a": "x"}])
    np.save(tmp_path / "p.npy", np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"'\{p\}' cannot be filled .*no text"):
        read(tmp_path, path="rows.json", beside={"p": {"path": "p.npy"}}, prompt="{p}", answer="{a}")[0]


def test_the_keys_of_episodes_have_their_meaning_below_of():
    with pytest.raises(UserError, match="ignore is of the source below of"):
        build(EpisodesConfig, {"reader": "episodes", "ignore": ["*"]}, "episodes")

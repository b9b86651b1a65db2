"""Rows of parquet, json lines and other files, and what the table makes of their cells."""

import base64
import io
import json
import multiprocessing
import os
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Media, MediaError
from mmgpt.datasets.readers import parquet_rows
from mmgpt.datasets.readers.parquet_rows import ParquetRows
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.rows import JsonLines, open_rows
from mmgpt.datasets.readers.table_config import TableConfig

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(root, **options):
    tree = {"reader": "table", "answer": "{answer}", **options}
    return open_source(build(TableConfig, tree, "table"), root)


def media(sample) -> list[Media]:
    return [part for message in sample.messages for part in message.parts if isinstance(part, Media)]


def colours(sample) -> list[tuple[int, ...]]:
    return [tuple(np.asarray(one.load())[0, 0].tolist()) for one in media(sample)]


def answers(source) -> list[str]:
    return [source[n].messages[-1].text for n in range(len(source))]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(80), 8000, format="WAV")
    return buffer.getvalue()


def write(path, rows, group=2):
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"bytes": png("red"), "path": None}, [RED]),
        ({"bytes": png("red"), "path": "../unread.png"}, [RED]),
        ({"bytes": None, "path": "red.png"}, [RED]),
        ([{"bytes": png("red"), "path": "a"}, {"bytes": png("blue"), "path": "b"}], [RED, BLUE]),
        (png("blue"), [BLUE]),
        ("red.png", [RED]),
    ],
)
def test_pictures_in_a_parquet_cell_are_read_however_they_are_held(cell, expected, tmp_path):
    (tmp_path / "red.png").write_bytes(png("red"))
    write(tmp_path / "rows.parquet", [{"picture": cell, "answer": "yes", "unused": 1}])
    options = {"reader": "parquet", "image": "{picture}", "prompt": "{image}?", "ignore": ["unused"]}
    source = read(tmp_path, path="rows.parquet", **options)
    assert colours(source[0]) == expected
    assert [m.text for m in source[0].messages] == ["?", "yes"]


def test_sounds_in_parquet_cells_are_read_as_bytes_or_as_arrays_with_their_rate(tmp_path):
    cells = [{"bytes": wav(), "path": "a.wav"}, {"bytes": wav(), "path": None}]
    write(tmp_path / "bytes.parquet", [{"audio": cell, "answer": "rain"} for cell in cells])
    write(tmp_path / "array.parquet", [{"audio": {"array": [0.0] * 80, "sampling_rate": 8000}, "answer": "rain"}])
    for name in ("bytes", "array"):
        source = read(tmp_path, path=f"{name}.parquet", audio="{audio}", prompt="{audio}What?")
        sound = media(source[0])[0].load()
        assert (len(sound.samples), sound.rate) == (80, 8000)


@pytest.mark.parametrize("path", ["data", "data/*.parquet", "data/b-*"])
def test_folders_and_patterns_of_parquet_are_one_table_in_the_order_of_names(path, tmp_path):
    write(tmp_path / "data" / "b-1.parquet", [{"answer": str(n), "kind": "odd" if n % 2 else "even"} for n in range(5)])
    write(tmp_path / "data" / "b-2.parquet", [{"kind": "odd", "answer": str(n)} for n in range(5, 8)])
    assert answers(read(tmp_path, path=path, ignore=["kind"])) == list("01234567")
    assert answers(read(tmp_path, path=path, where={"kind": "even"})) == list("024")
    grouped = read(tmp_path, path=path, prompt="{kind}?", group_by="kind")
    assert [[b[-1].text for b in grouped[n].branches] for n in range(2)] == [list("024"), list("13567")]
    assert [source.key for source in (grouped[0], grouped[1])] == [f"{grouped.name}/train/{k}" for k in ("even", "odd")]


def test_parquet_that_cannot_be_read_or_differs_in_its_columns_is_refused(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"bad.parquet: not a readable parquet file"):
        read(tmp_path, path="bad.parquet")
    write(tmp_path / "data" / "a.parquet", [{"answer": "1"}])
    write(tmp_path / "data" / "b.parquet", [{"answr": "1"}])
    with pytest.raises(UserError, match=r"b.parquet: has the columns \['answr'\], a.parquet has \['answer'\]"):
        read(tmp_path, path="data")
    with pytest.raises(UserError, match=r"names \{answer\}, the rows do not; did you mean answr\?"):
        read(tmp_path, path="data/b.parquet")
    with pytest.raises(UserError, match=r"none.parquet: no such file"):
        read(tmp_path, path="none.parquet")


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "alone.parquet", [{"answer": "1"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'alone.parquet: parquet needs pyarrow; pip install "mmgpt\[data\]"'):
        read(tmp_path, path="alone.parquet")


def test_parquet_holds_two_row_groups_whatever_the_size_of_the_file(tmp_path):
    parquet_rows._row_group.cache_clear()
    row = {"answer": "x" * 1000, "unused": "y" * 10_000}
    write(tmp_path / "rows.parquet", [row] * 4_000, group=100)
    before = pyarrow.total_allocated_bytes()
    source = read(tmp_path, path="rows.parquet", where={"answer": row["answer"]}, ignore=["unused"])
    tracemalloc.start()
    assert all(len(source[n].messages[0].text) == 1000 for n in range(0, 4_000, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000
    assert pyarrow.total_allocated_bytes() - before < 3 * 100 * 1000  # two groups of one column of the 40
    assert list(source.rows[0]) == ["answer"]


def test_json_lines_hold_eight_bytes_a_row(tmp_path):
    lines = "".join(json.dumps({"answer": "x" * 1000}) + "\n" for _ in range(5_000))
    (tmp_path / "rows.jsonl").write_text(lines)
    tracemalloc.start()
    source = read(tmp_path, path="rows.jsonl", where={"answer": "x" * 1000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 5_000
    assert peak < 500_000


def test_rows_of_several_files_are_numbered_through_and_errors_name_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 0}\n\n{"n": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n{"n": \n')
    rows = open_rows([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert isinstance(rows, JsonLines)
    assert [rows[n]["n"] for n in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"b.jsonl: row 1 is not JSON"):
        rows[3]
    with pytest.raises(UserError, match=r"b.jsonl: row 1 is not JSON"):
        list(rows.iterate([]))
    write(tmp_path / "c.parquet", [{"n": n} for n in range(5)])
    rows = open_rows([tmp_path / "c.parquet"] * 2)
    assert isinstance(rows, ParquetRows)
    assert [rows[n]["n"] for n in range(len(rows))] == [row["n"] for row in rows.iterate(["n"])] == [*range(5)] * 2
    with pytest.raises(UserError, match="all of one kind"):
        open_rows([tmp_path / "a.jsonl", tmp_path / "c.parquet"])


def test_rows_beside_a_table_are_joined_and_must_be_as_many(tmp_path):
    (tmp_path / "q.txt").write_text("one\ttwo\nthree\tfour\tfive\n")
    (tmp_path / "a.out").write_text("yes\nno\n")
    np.save(tmp_path / "p.npy", np.stack([np.full((2, 2, 3), (1, 2, 3), np.uint8)] * 2))
    beside = {"picture": {"path": "p.npy", "is_bgr": True}, "answer": {"path": "a.out"}}
    options = {"path": "q.txt", "columns": ["a", "b"], "image": "{picture}", "prompt": "{image}{a}+{b}"}
    source = read(tmp_path, **options, beside=beside)
    assert [source[n].messages[0].text for n in range(2)] == ["one+two", "three+four\tfive"]
    assert (answers(source), colours(source[1])) == (["yes", "no"], [(3, 2, 1)])
    (tmp_path / "a.out").write_text("yes\n")
    with pytest.raises(UserError, match=r"a.out: holds 1 rows, .*q.txt holds 2; they must match"):
        read(tmp_path, **options, beside=beside)
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"p.npy: not an array that can be read"):
        read(tmp_path, **options, beside=beside)


def test_a_list_of_answers_makes_branches_and_needs_a_prompt(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    source = read(tmp_path, path="rows.csv", prompt="Say:", answer=["{a}", "{b}!"])
    assert [one.messages[-1].text for one in source[0].unbranched()] == ["1", "2!"]
    with pytest.raises(UserError, match="make branches of one prompt; give a prompt"):
        read(tmp_path, path="rows.csv", answer=["{a}", "{b}!"])


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("a,answer\n1\n", {}, "row 0 has more or fewer fields than the header"),
        ("a,answer\n1,2,3\n", {}, "row 0 has more or fewer fields than the header"),
        ("answer\nx\n", {"derive": {"b": {"column": "answer", "most_common": True}}}, "answer='x' is no list of items"),
        ("answer\nx\n", {"prompt": "{answer:03d}"}, "'{answer:03d}' cannot be filled with"),
        ("answer\nx\n", {"answer": "{answer:03d}"}, "'{answer:03d}' cannot be filled with"),
        ("answer\nx\n", {"listed": {"answer": "none.txt"}}, "none.txt: no such file"),
        ("answer\nx\n", {"listed": {"anwser": "rows.csv"}}, r"did you mean answer\?"),
    ],
)
def test_rows_and_templates_that_do_not_fit_are_refused(content, options, told, tmp_path):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=told):
        read(tmp_path, path="rows.csv", **options)[0]


def test_empty_cells_are_refused_where_a_template_names_them(tmp_path):
    (tmp_path / "red.png").write_bytes(png("red"))
    rows = [{"file": "red.png", "answer": "yes"}, {"file": None, "answer": "no"}, {"file": "", "answer": None}]
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows, "info": {}}))
    options = {"path": "rows.json", "rows": "data", "image": "{file}", "prompt": "{image}?"}
    with pytest.raises(MediaError, match=r"a row has no image, .*'no'"):
        read(tmp_path, **options)[1]
    assert answers(read(tmp_path, **options, missing_media="skip")) == ["yes"]
    source = read(tmp_path, **options, missing_media="optional")
    assert (len(media(source[1])), source[1].messages[-1].text) == (0, "no")
    with pytest.raises(UserError, match=r"answer is empty in the row"):
        source[2]
    with pytest.raises(UserError, match=r"it has no key rows that holds its rows"):
        read(tmp_path, **{**options, "rows": "rows"})
    with pytest.raises(UserError, match=r"it holds a dict, not a list of rows; is there a key to name in rows\?"):
        read(tmp_path, **{**options, "rows": None})


@pytest.mark.parametrize("missing_media", ["error", "skip"])
def test_pictures_in_base64_are_read_through_a_data_url(missing_media, tmp_path):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    coded = base64.b64encode((tmp_path / "noise.png").read_bytes()).decode()
    assert len(coded) > 131_072, "longer than csv fields are by default"
    (tmp_path / "MMBench.tsv").write_text(f"index\timage\tanswer\n0\t{coded}\tA\n")
    url = "data:image/png;base64,{image}"
    options = {"prompt": "{image}?", "missing_media": missing_media, "ignore": ["index"]}
    source = read(tmp_path, path="MMBench.tsv", image=url, **options)
    assert media(source[0])[0].load().tobytes() == noise.tobytes()


def test_rows_that_lack_a_key_are_rows_with_an_empty_cell(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"answer": "a", "kind": "x"}\n{"kind": "x"}\n{"answer": "c"}\n')
    assert answers(read(tmp_path, path="rows.jsonl", where={"kind": "x"}, limit=1)) == ["a"]
    assert len(read(tmp_path, path="rows.jsonl", where={"kind": "x"})) == 2
    with pytest.raises(UserError, match=r"rows.jsonl: answer is empty in the row {'kind': 'x'}"):
        read(tmp_path, path="rows.jsonl", ignore=["kind"])[1]
    with pytest.raises(UserError, match=r"rows.jsonl: kind is empty in the row {'answer': 'c'}"):
        read(tmp_path, path="rows.jsonl", prompt="?", group_by="kind")


def test_a_damaged_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"a.zip: not a zip that can be read"):
        read(tmp_path, path="a.zip", files="{answer}.png")


def test_a_link_out_of_the_data_root_is_not_followed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png("red"))
    os.symlink(tmp_path / "secret.png", root / "link.png")
    (tmp_path / "far").mkdir()
    write(tmp_path / "far" / "rows.parquet", [{"answer": "secret"}])
    os.symlink(tmp_path / "far", root / "far")
    (root / "rows.csv").write_text("file,answer\nlink.png,x\n")
    with pytest.raises(UserError, match=r"link.png: leads out of the data root"):
        read(root, path="rows.csv", image="{file}", prompt="{image}")[0]
    for path in ("far/rows.parquet", "far", "far/*.parquet", "*/rows.parquet", "../far/*"):
        with pytest.raises(UserError, match=r"leads out of the data root"):
            read(root, path=path)


def test_a_data_root_may_be_relative_and_a_path_below_it_absolute(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    write(tmp_path / "root" / "rows.parquet", [{"answer": "x"}])
    monkeypatch.chdir(tmp_path)
    for path in ("rows.parquet", str(tmp_path / "root" / "rows.parquet"), str(tmp_path / "root"), "*.parquet"):
        assert answers(read(Path("root"), path=path)) == ["x"]
    with pytest.raises(UserError, match=r"/none-\*: no such file"):
        read(Path("root"), path=str(tmp_path / "root" / "none-*"))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_rows_read_in_worker_processes_are_those_of_this_one(name, tmp_path):
    rows = [{"answer": str(n)} for n in range(40)]
    write(tmp_path / "rows.parquet", rows, group=3)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read(tmp_path, path=name)
    here = answers(source)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert [s.messages[0].text for s in pool.map(source.__getitem__, range(40))] == here

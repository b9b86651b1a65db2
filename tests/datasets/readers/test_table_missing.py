"""A missing value is missing in every column, list and layout: never a word, never 2.0 for 2."""

import json
import re

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError, build
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers.registry import SOURCES, open_source
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.readers.text import TextConfig
from mmgpt.datasets.sample import Sample
from mmgpt.evaluation.tasks.item import items_of

NAN = float("nan")
CELLS = st.sampled_from(
    [None, NAN, "", "  ", "\u200b", "x", 2, 2.0, 0.5, True, [], [None], ["x", None], [NAN], {"b": None}]
)
KEYS: list[dict] = [
    *({}, {"group_by": "b"}, {"key": "{b}-{c}"}, {"tags": ["b", "c"]}, {"answers": "b"}, {"choices": "c"}),
    *({"where": {"b": ["x", "2"]}}, {"splits": {"test": {"c": "x"}}}, {"choices": ["{b}", "{c}"]}, {"optional": ["q"]}),
    {"holdout": {"key": "{b}", "modulo": 1}, "split": "test"},
    {"derive": {"e": {"column": "b", "replace": {"y": "z"}}}, "answer": "{e}"},
    {"derive": {"e": {"column": "c", "most_common": True}}, "answer": "{e}"},
    {"derive": {"e": {"column": "c", "lettered": True}}, "prompt": "{e}"},
]
WORDS = re.compile(r"nan|none|null|nat\b|\.0\b", re.IGNORECASE)


def read(root, **options):
    tree = {"reader": "table", "prompt": "{q}", "answer": "{a}", **options}
    return open_source(build(TableConfig, tree, "table"), root)


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def words(sample: Sample) -> str:
    truths = [(truth.answers, truth.choices, sorted(truth.tags.items())) for truth in sample.truths]
    flat = [
        word for answers, choices, tags in truths for word in (*answers, *choices, *(w for tag in tags for w in tag))
    ]
    return "|".join([sample.key, *(turn.text for turn in sample.turns), *flat])


@given(
    rows=st.lists(st.fixed_dictionaries({}, optional={name: CELLS for name in "qabcd"}), min_size=1, max_size=5),
    suffix=st.sampled_from(["json", "jsonl"]),
    extra=st.sampled_from(KEYS),
)
def test_no_pattern_of_missing_values_gives_a_word(rows, suffix, extra, tmp_path_factory):
    rows = [dict.fromkeys("qabcd"), *rows]
    root = tmp_path_factory.mktemp("missing")
    write(root / f"rows.{suffix}", rows)
    try:
        source = read(root, path=f"rows.{suffix}", ignore=["*"], **extra)
    except UserError:
        return
    for index in range(len(source)):
        try:
            sample = source[index]
        except UserError as error:
            told = str(error)
        else:
            told = "(row 0 of it)"
            assert not WORDS.search(words(sample).removeprefix("rows/")), words(sample)
            assert all(one.messages[-1].text.strip() for one in sample.unbranched())
        assert re.search(r"\(row \d+ of .*\)$", told)


def test_floats_with_holes_are_whole_numbers_and_nan_is_no_answer(tmp_path):
    rows = [{"q": "1?", "a": 2.0}, {"q": "2?", "a": NAN}, {"q": "3?", "a": None}, {"q": "4?", "a": 2.5}]
    write(tmp_path / "floats.parquet", rows)
    source = read(tmp_path, path="floats.parquet", tags=["a"])
    assert [source[0].messages[1].text, source[0].truths[0].tags] == ["2", {"a": "2"}]
    assert source[3].messages[1].text == "2.5"
    for number in (1, 2):
        with pytest.raises(
            UserError, match=rf"floats.parquet: a is empty in the row .*\(row {number} of .*floats.parq"
        ):
            source[number]
    assert len(read(tmp_path, path="floats.parquet", where={"a": "2"})) == 1
    assert len(read(tmp_path, path="floats.parquet", where={"a": ["2.0", ""]})) == 3
    split = read(tmp_path, path="floats.parquet", splits={"test": {"a": "2"}}, split="test")
    assert split[0].key == "floats/test/0"
    with pytest.raises(UserError, match=r"a is empty in the row .*\(row 1 of"):
        read(tmp_path, path="floats.parquet", group_by="a")
    grouped = read(tmp_path, path="floats.parquet", group_by="a", where={"a": ["2", "2.5"]})
    assert [grouped[n].key for n in range(2)] == ["floats/train/2", "floats/train/2.5"]


def test_a_float_of_32_bits_is_written_as_it_was(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"q": pyarrow.array(["x"]), "a": pyarrow.array([0.1], pyarrow.float32())}
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert read(tmp_path, path="rows.parquet")[0].messages[1].text == "0.1"
    assert read(tmp_path, path="rows.parquet", where={"a": "0.1"})[0].messages[1].text == "0.1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12345678901234567890123", "12345678901234567890123"),
        ("1e22", "10000000000000000000000"),
        ("0.1", "0.1"),
        ("-0.0", "0"),
        ("true", "True"),
        ('"nan"', "nan"),
        ('"None"', "None"),
        ('"\\ud83d"', "\ufffd"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_the_values_of_json_are_written_as_they_stand(text, expected, tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"q": "?", "a": {text}}}\n')
    sample = read(tmp_path, path="rows.jsonl", key="{a}", tags=["a"])[0]
    assert [sample.messages[1].text, sample.truths[0].tags["a"]] == [expected, expected]
    assert sample.key.encode()


@pytest.mark.parametrize(
    "text", ["NaN", "null", '""', '" "', "1e400", "-Infinity", '["x"]', '{"b": 1}', "[]", '"\\u200b"']
)
def test_what_is_no_answer_stops_with_its_row(text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"q": "?", "a": "x"}}\n{{"q": "?", "a": {text}}}\n')
    with pytest.raises(UserError, match=r"rows.jsonl: .*\(row 1 of .*rows.jsonl\)"):
        read(tmp_path, path="rows.jsonl")[1]


def test_empty_cells_of_a_csv_are_empty_in_prompts_answers_keys_and_groups(tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\n1?,red\n2?,\n,blue\n\n3?,  \n")
    source = read(tmp_path, path="rows.csv")
    assert source[0].messages[1].text == "red"
    for number, column, line in ((1, "a", 3), (2, "q", 4), (3, "a", 6)):
        with pytest.raises(UserError, match=rf"rows.csv: {column} is empty in the row .*\(line {line} of .*rows.csv\)"):
            source[number]
    optional = read(tmp_path, path="rows.csv", optional=["q"], prompt="{q} Say it.")
    assert [turn.text for turn in optional[2].messages] == [" Say it.", "blue"]
    with pytest.raises(UserError, match="q is empty"):
        read(tmp_path, path="rows.csv", key="{q}")[2]
    with pytest.raises(UserError, match=r"q is empty .*\(line 4 of"):
        read(tmp_path, path="rows.csv", prompt="?", group_by="q")


def test_lists_with_holes_are_right_answers_without_them_and_no_choices(tmp_path):
    rows = [{"q": "?", "a": "x", "all": ["x", None, "", 2.0]}, {"q": "?", "a": "x", "all": [None, ""]}]
    write(tmp_path / "rows.json", rows)
    source = read(tmp_path, path="rows.json", answers="all")
    assert source[0].truths[0].answers == ("x", "2")
    with pytest.raises(UserError, match=r"all is .*not a list of values; .*\(row 1 of"):
        source[1]
    with pytest.raises(UserError, match=r"all is empty"):
        read(tmp_path, path="rows.json", choices="all")[0]
    usual = {"b": {"column": "all", "most_common": True}}
    lines = {"c": {"column": "all", "lettered": True}}
    assert read(tmp_path, path="rows.json", derive=usual, answer="{b}", ignore=["a"])[0].messages[1].text == "x"
    with pytest.raises(UserError, match="b is empty"):
        read(tmp_path, path="rows.json", derive=usual, answer="{b}", ignore=["a"])[1]
    with pytest.raises(UserError, match="all holds an item that is no text"):
        read(tmp_path, path="rows.json", derive=lines, answer="{c}", ignore=["a"])[0]


def test_a_derived_column_of_a_missing_cell_is_missing(tmp_path):
    rows = [{"q": "?", "a": 1.0, "names": ["x", "y"]}, {"q": "?", "a": NAN, "names": ["x", "y"]}]
    write(tmp_path / "rows.parquet", rows)
    for rule in ({"column": "names", "item": "a"}, {"column": "a", "names": ["x", "y"]}):
        source = read(tmp_path, path="rows.parquet", derive={"b": rule}, answer="{b}", ignore=["names"])
        assert source[0].messages[1].text == "y"
        with pytest.raises(UserError, match=r"b is empty .*\(row 1 of"):
            source[1]
    source = read(
        tmp_path, path="rows.parquet", derive={"b": {"column": "a", "replace": {"1": ""}}}, answer="{b}", ignore=["*"]
    )
    with pytest.raises(UserError, match="b is empty"):
        source[0]
    write(tmp_path / "rows.json", [{"q": "?", "a": "x"}])
    with pytest.raises(UserError, match="the answer is empty"):
        read(tmp_path, path="rows.json", answer=" ", tags=["a"])[0]


@pytest.mark.parametrize("cell", [None, NAN, "", "  ", [], [None], {"bytes": None, "path": None}, {"path": ""}])
def test_a_medium_that_is_missing_is_none_in_every_way_of_asking(cell, tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write(tmp_path / "rows.json", [{"q": "?", "a": "x", "file": "a.png"}, {"q": "?", "a": "y", "file": cell}])
    options = {"path": "rows.json", "image": "{file}", "prompt": "{image}{q}"}
    assert len(read(tmp_path, **options, missing_media="skip")) == 1
    assert len(read(tmp_path, **options, missing_media="optional")[1].messages[0].parts) == 1
    with pytest.raises(MediaError, match=r"a row has no image, .*\(row 1 of"):
        read(tmp_path, **options)[1]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_without_text_are_no_documents(name, tmp_path):
    write(tmp_path / name, [{"text": "one"}, {"text": None}, {"text": ""}, {"text": " "}, {"text": "two"}])
    source = open_source(TextConfig(reader="text", path=name, unit="row"), tmp_path)
    assert [source[n].messages[0].text for n in range(len(source))] == ["one", "two"]


def source_of(root, reader: str, **options):
    config = next(c for c in SOURCES if reader in str(c.model_fields["reader"].annotation))
    return open_source(build(config, {"reader": reader, **options}, reader), root)


@pytest.mark.parametrize("caption", [None, NAN, "", " \n", "\u200b"])
def test_a_caption_that_is_missing_is_no_caption(caption, tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "license": 3}, {"id": 2, "file_name": "2.jpg"}]
    captions = [{"image_id": 1, "id": 1, "caption": " a cup "}, {"image_id": 2, "id": 2, "caption": caption}]
    write(tmp_path / "c.json", {"images": images, "annotations": captions})
    source = source_of(tmp_path, "coco_captions", path="c.json", images="images")
    assert source[0].branches[0][-1].text == "a cup"
    with pytest.raises(UserError, match="caption is empty in the row"):
        source[1]
    flickr = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": caption}]}
    write(tmp_path / "k.json", {"images": [flickr]})
    with pytest.raises(UserError, match="caption is empty in the row"):
        source_of(tmp_path, "coco_captions", path="k.json", images="images")[0]


def test_answers_of_vqa_that_are_missing_are_none(tmp_path):
    questions = [{"image_id": 1, "question": "What?", "question_id": n} for n in (1, 2)]
    write(tmp_path / "q.json", {"questions": questions})
    own = {"question_id": 1, "image_id": 1, "answers": [{"answer": word} for word in (None, "", "red", NAN, "red")]}

    def opened(**second):
        write(tmp_path / "a.json", {"annotations": [own, {**own, "question_id": 2, **second}]})
        return source_of(tmp_path, "vqa", questions="q.json", annotations="a.json", image="{image_id}.jpg")

    sample = opened(multiple_choice_answer=None)[0]
    assert [branch[-1].text for branch in sample.branches] == ["red", "red"]
    assert [truth.answers for truth in sample.truths] == [("red", "red")] * 2
    assert sample.truths[0].tags == {}
    with pytest.raises(UserError, match=r"a.json: question 2 has no answer"):
        opened(answers=[{"answer": None}])
    with pytest.raises(UserError, match=r"a.json: question_id 1 stands twice"):
        opened(question_id=1)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("images", r"c.json: images: nothing reads 'width_'; did you mean width\?"),
        ("annotations", r"c.json: annotations: nothing reads 'width_'"),
    ],
)
def test_keys_that_an_official_format_does_not_have_are_refused(where, told, tmp_path):
    tree = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 3, "coco_url": "x"}],
        "annotations": [{"image_id": 1, "id": 1, "caption": "a"}],
    }
    tree[where][0]["width_"] = 1
    write(tmp_path / "c.json", tree)
    with pytest.raises(UserError, match=told):
        source_of(tmp_path, "coco_captions", path="c.json", images=".")
    assert len(source_of(tmp_path, "coco_captions", path="c.json", images=".", ignore=["width_"])) == 1


def test_a_task_scores_nothing_against_an_empty_answer():
    from mmgpt.datasets.sample import GroundTruth, Message

    messages = (Message.of("user", "?"), Message.of("assistant", " "))
    with pytest.raises(UserError, match="its answer is empty"):
        next(items_of(Sample(messages, "a", "a/1")))
    messages = (Message.of("user", "?"), Message.of("assistant", "x"))
    with pytest.raises(UserError, match="its answer is empty"):
        next(items_of(Sample(messages, "a", "a/1", truths=(GroundTruth(answers=("x", "")),))))

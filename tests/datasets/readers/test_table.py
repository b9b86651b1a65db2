import json
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.config import UserError, build, read_yaml
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.sample import Text

PNG_COLOURS = ("red", "lime", "blue")
QUESTIONS = [
    ["what color is the shape?", "red", 0],
    ["is there a circle?", "no", 0],
    ["does the image contain a square?", "yes", 1],
    ["what shape is present?", "circle", 0],
]
EASY_VQA = {
    "path": "easy/{split}/questions.json",
    "columns": ["question", "answer", "image_id"],
    "image": "easy/{split}/images/{image_id}.png",
    "prompt": "{image}{question}",
    "answer": "{answer}",
    "group_by": "image_id",
}
CIFAR = {
    "path": "cifar.zip",
    "files": "{split}/{label}/{name}.jpg",
    "image": "cifar.zip/{file}",
    "prompt": "{image}What is this?",
    "answer": "a {label}",
}


def read(root, **options):
    return open_source(build(TableConfig, {"reader": "table", **options}, "table"), root)


def colour(part) -> tuple[int, ...]:
    return tuple(np.asarray(part.load())[0, 0].tolist())


def talk(sample) -> list[str]:
    return [message.text for message in sample.messages]


@pytest.fixture
def root(tmp_path):
    """A data root with a piece of easy-VQA and of CIFAR-10 as they are downloaded."""
    for split in ("train", "test"):
        (tmp_path / "easy" / split / "images").mkdir(parents=True)
        (tmp_path / "easy" / split / "questions.json").write_text(json.dumps(QUESTIONS))
        for number, name in enumerate(PNG_COLOURS):
            PIL.Image.new("RGB", (4, 4), name).save(tmp_path / "easy" / split / "images" / f"{number}.png")
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
        for split, label, name in [
            ("train", "cat", "2"),
            ("train", "dog", "1"),
            ("train", "cat", "1"),
            ("test", "cat", "9"),
        ]:
            PIL.Image.new("RGB", (32, 32), "blue").save(tmp_path / "one.jpg")
            archive.write(tmp_path / "one.jpg", f"{split}/{label}/{name}.jpg")
        archive.writestr("train/readme.txt", "not a picture")
        archive.writestr("train/cat/deep/1.jpg", "too deep")
    return tmp_path


def test_easy_vqa_gives_a_sample_a_picture_with_its_questions_as_branches(root):
    source = read(root, **EASY_VQA)
    assert len(source) == 2
    sample = source[0]
    assert (sample.key, sample.source) == ("questions/train/0", "questions")
    ((picture,),) = (message.parts for message in sample.messages)
    assert colour(picture) == (255, 0, 0)
    asked = [(question.text, answer.text) for question, answer in sample.branches]
    assert asked == [(q, a) for q, a, image in QUESTIONS if image == 0]
    assert [(m.role, n.role) for m, n in sample.branches] == [("user", "assistant")] * 3
    assert colour(source[1].messages[0].parts[0]) == (0, 255, 0)


def test_without_groups_every_row_is_a_sample_of_its_own(root):
    source = read(root, **{**EASY_VQA, "group_by": None, "label": "easy"})
    grouped = read(root, **{**EASY_VQA, "label": "easy"})
    assert [source[n].key for n in range(4)] == ["easy/train/0", "easy/train/1", "easy/train/2", "easy/train/3"]
    alone = [replace(source[n], key="") for n in (0, 1, 3)]
    separate = [replace(one, key="") for one in grouped[0].unbranched()]
    assert [talk(one) for one in alone] == [talk(one) for one in separate]
    assert all(colour(one.messages[0].parts[0]) == (255, 0, 0) for one in alone)


def test_a_prompt_with_words_before_the_picture_shares_them(root):
    source = read(root, **{**EASY_VQA, "prompt": "Look: {image}\n{question}"})
    context = source[0].messages[0].parts
    assert context[0] == Text("Look: ")
    assert source[0].branches[1][0].parts == (Text("\n"), Text("is there a circle?"))


def test_cifar_in_a_zip_is_read_by_the_pattern_of_its_file_names(root):
    source = read(root, **CIFAR)
    assert [talk(source[n]) for n in range(len(source))] == [
        ["What is this?", f"a {label}"] for label in ("cat", "cat", "dog")
    ]
    assert np.asarray(source[0].messages[0].parts[0].load()).shape == (32, 32, 3)
    assert len(read(root, **CIFAR, split="test")) == 1


def test_a_folder_is_read_by_the_pattern_of_its_file_names(root):
    options = {"path": "easy/{split}/images", "files": "{number}.png", "image": "easy/{split}/images/{file}"}
    source = read(root, **options, prompt="{image}", answer="{number}")
    assert [talk(source[n])[1] for n in range(3)] == ["0", "1", "2"]
    assert colour(source[2].messages[0].parts[0]) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'word,meaning\n"a, b",one\nc,"two ""2"""\n'),
        ("rows.tsv", 'word\tmeaning\n"a, b"\tone\nc\t"two ""2"""\n'),
        ("rows.jsonl", '{"word": "a, b", "meaning": "one"}\n\n{"word": "c", "meaning": "two \\"2\\""}\n'),
        ("rows.json", '[{"word": "a, b", "meaning": "one"}, {"word": "c", "meaning": "two \\"2\\""}]'),
    ],
)
def test_the_four_kinds_of_table_give_the_same_rows(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    is_quoted = True if name.endswith(".tsv") else None
    source = read(tmp_path, path=name, prompt="{word}?", answer="{meaning}", is_quoted=is_quoted)
    assert [talk(source[n]) for n in range(2)] == [["a, b?", "one"], ["c?", 'two "2"']]


def test_without_a_prompt_the_answer_is_a_document(tmp_path):
    (tmp_path / "rows.csv").write_text("text\nhello {world}\n")
    (message,) = read(tmp_path, path="rows.csv", answer="{text}")[0].messages
    assert (message.role, message.text) == ("assistant", "hello {world}")


def test_braces_in_the_rows_are_never_filled_in(tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\n{a} {split} {0},{q}\n")
    assert talk(read(tmp_path, path="rows.csv", prompt="{q}", answer="{a}")[0]) == ["{a} {split} {0}", "{q}"]


def test_columns_are_derived_and_rows_are_kept_by_their_values(tmp_path):
    (tmp_path / "rows.csv").write_text("name,group\nRed_Apple,fruit\nOak_Tree,tree\nGreen_PEAR,fruit\nCarrot,root\n")
    derive = {"words": {"column": "name", "lower": True, "replace": {"_": " "}}}
    options = {"path": "rows.csv", "derive": derive, "answer": "{words}", "ignore": ["group"]}
    fruit = read(tmp_path, **options, where={"group": "fruit"})
    assert [talk(fruit[n]) for n in range(2)] == [["red apple"], ["green pear"]]
    assert len(read(tmp_path, **options, where={"group": ["fruit", "root"]})) == 3
    assert len(read(tmp_path, **options, where={"words": "oak tree"})) == 1
    with pytest.raises(UserError, match=r"rows.csv: holds no samples"):
        read(tmp_path, **options, where={"group": "metal"})


def test_columns_are_derived_from_lists(tmp_path):
    rows = [
        {"choices": ["cat", "Dog"], "right": 1, "said": ["b", "a", "a"]},
        {"choices": ["x"], "right": 1, "said": []},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    derive = {
        "word": {"column": "choices", "item": "right", "lower": True},
        "lines": {"column": "choices", "lettered": True},
        "usual": {"column": "said", "most_common": True},
    }
    source = read(tmp_path, path="rows.json", derive=derive, prompt="{lines}", answer="{word} {usual}")
    assert talk(source[0]) == ["A. cat\nB. Dog", "dog a"]
    with pytest.raises(UserError, match="right=1 is not the number of one of 1 items"):
        source[1]
    with pytest.raises(UserError, match=r"said=.*is no list of items"):
        read(tmp_path, path="rows.json", derive={"usual": derive["usual"]}, answer="{usual}", ignore=["*"])[1]
    with pytest.raises(UserError, match=r"names \{wrong\}, the rows do not"):
        read(tmp_path, path="rows.json", derive={"word": {"column": "choices", "item": "wrong"}}, answer="x")


def test_columns_are_derived_from_lists_as_a_whole_from_texts_that_spell_them_and_from_each_other(tmp_path):
    rows = [{"options": "['[x] Cat', \"it's\"]", "right": "1", "grade": 2}, {"options": "[]", "right": "0", "grade": 7}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    derive = {
        "choices": {"column": "options", "literal": True, "lower": True, "replace": {"[x] ": ""}},
        "word": {"column": "choices", "item": "right"},
        "lines": {"column": "choices", "lettered": True},
        "level": {"column": "grade", "names": ["first", "second", "third"]},
    }
    options = {"path": "rows.json", "derive": derive, "prompt": "{lines}", "answer": "{word} {level}"}
    source = read(tmp_path, **options, choices="choices", where={"grade": "2"})
    assert len(source) == 1, "a row that is left out needs no columns to derive from"
    assert talk(source[0]) == ["A. cat\nB. it's", "it's third"]
    assert source[0].truths[0].choices == ("cat", "it's")
    with pytest.raises(UserError, match=r"choices='\[\]' is no list of items"):
        read(tmp_path, **options)[1]
    with pytest.raises(UserError, match="grade=7 is not the number of one of 3 items"):
        read(tmp_path, path="rows.json", derive={"level": derive["level"]}, answer="{level}", ignore=["*"])[1]
    wrong = {"w": {**derive["lines"], "column": "right"}}
    with pytest.raises(UserError, match="right='1' is no list of items"):
        read(tmp_path, path="rows.json", derive=wrong, answer="{w}", ignore=["*"])[0]
    swapped = {"word": derive["word"], "choices": derive["choices"]}
    with pytest.raises(UserError, match=r"names \{choices\}, the rows do not"):
        read(tmp_path, path="rows.json", derive=swapped, answer="{word}")


def test_a_list_that_python_does_not_spell_so_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"options": "[a, b"}]))
    derive = {"all": {"column": "options", "literal": True, "lettered": True}}
    with pytest.raises(UserError, match="'\\[a, b' is no list as Python spells it; leave literal out"):
        read(tmp_path, path="rows.json", derive=derive, answer="{all}")[0]


@pytest.mark.parametrize("is_parquet", [True, False])
def test_names_in_a_path_are_columns_of_the_rows_of_each_file(is_parquet, tmp_path):
    suffix = "parquet" if is_parquet else "csv"
    for subject, answers in (("art", "ab"), ("law", "c")):
        (tmp_path / "exam" / subject).mkdir(parents=True)
        file = tmp_path / f"exam/{subject}/test_{subject}-0.{suffix}"
        if is_parquet:
            pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.table({"q": ["Q"] * len(answers), "a": list(answers)}), file)
        else:
            file.write_text("".join(f'"Q",{answer}\n' for answer in answers))
    columns = None if is_parquet else ["q", "a"]
    options = {"columns": columns, "prompt": "{q}", "answer": "{a} of {subject}", "tags": ["subject"], "split": "test"}
    source = read(tmp_path, path="exam/{subject}/{split}_{subject}-*." + suffix, **options)
    assert [talk(source[n])[1] for n in range(len(source))] == ["a of art", "b of art", "c of law"]
    assert source[2].truths[0].tags == {"subject": "law"}
    source = read(tmp_path, path="exam/{subject}/{split}_*." + suffix, **options, where={"subject": "law"})
    assert [len(source), talk(source[0])] == [1, ["Q", "c of law"]]
    with pytest.raises(UserError, match="is not named as"):
        read(tmp_path, path="exam/{x}/{split}_{x}{x}-0." + suffix, **{**options, "tags": []})


def test_a_csv_whose_columns_are_named_has_no_header(tmp_path):
    (tmp_path / "rows.csv").write_text('"a, ""b""",1\nc,2\n')
    source = read(tmp_path, path="rows.csv", columns=["q", "n"], prompt="{q}", answer="{n}")
    assert [talk(source[n]) for n in range(2)] == [['a, "b"', "1"], ["c", "2"]]
    with pytest.raises(UserError, match="row 0 has more or fewer fields"):
        read(tmp_path, path="rows.csv", columns=["q"], answer="{q}")


def test_json_lines_may_be_called_json(tmp_path):
    (tmp_path / "rows.json").write_text('{"a": 1}\n\n{"a": 2}\n')
    source = read(tmp_path, path="rows.json", answer="{a}")
    assert [talk(source[n]) for n in range(2)] == [["1"], ["2"]]
    (tmp_path / "rows.json").write_text('{"a": 1}\n{"a": 2\n')
    with pytest.raises(UserError, match=r"rows\.json: not a readable json table"):
        read(tmp_path, path="rows.json", answer="{a}")


def test_several_pictures_stand_together_but_for_those_that_the_words_place(tmp_path):
    for number, colour in enumerate(PNG_COLOURS):
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.png")
    rows = [{"q": "Is <image 2> like <image 2>?", "a": "0.png", "b": "1.png", "c": "2.png"}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {**rows[0], "b": None, "c": None}]))
    options = {"path": "rows.json", "image": ["{a}", "{b}", "{c}"], "missing_media": "optional", "answer": "x"}
    shown = {"prompt": "{image}{q}"}
    tagged = read(tmp_path, **options, **shown, image_tag="<image {number}>")

    def parts(sample) -> list[str]:
        return [p.text if isinstance(p, Text) else Path(str(p.source)).name for p in sample.messages[0].parts]

    assert parts(tagged[0]) == ["0.png", "2.png", "Is ", "1.png", " like ", "<image 2>", "?"]
    assert parts(tagged[1]) == ["0.png", "Is <image 2> like <image 2>?"]
    assert parts(read(tmp_path, **options, **shown)[0]) == ["0.png", "1.png", "2.png", rows[0]["q"]]


@settings(max_examples=30)
@given(names=st.sets(st.text("abcdefgh", min_size=1, max_size=6), min_size=60, max_size=90), modulo=st.integers(2, 5))
def test_a_holdout_cuts_the_rows_into_two_splits_that_share_nothing(names, modulo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("holdout")
    (folder / "rows.json").write_text(json.dumps([{"name": name} for name in sorted(names)]))
    options = {"path": "rows.json", "answer": "{name}", "holdout": {"key": "{name}", "modulo": modulo}}
    parts = {split: read(folder, **options, split=split) for split in ("train", "test")}
    found = {split: {talk(source[n])[0] for n in range(len(source))} for split, source in parts.items()}
    assert found["train"] | found["test"] == names
    assert not found["train"] & found["test"]
    assert found["test"] == {name for name in names if zlib.crc32(name.encode()) % modulo == 0}


def test_splits_by_column_take_their_rows_and_train_the_others(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("7_ann_0", "7_ann_1", "8_bob_0", "8_bob_2", "9_ann_3"):
        (tmp_path / "a" / f"{name}.wav").write_bytes(b"")
    splits = {"test": {"take": "0"}, "valid": {"take": ["1", "2"], "speaker": "ann"}}
    options = {"path": "a", "files": "{digit}_{speaker}_{take}.wav", "answer": "{digit}{take}", "splits": splits}
    parts = {split: read(tmp_path, **options, split=split) for split in ("train", "valid", "test")}
    found = {split: [talk(source[n])[0] for n in range(len(source))] for split, source in parts.items()}
    assert found == {"train": ["82", "93"], "valid": ["71"], "test": ["70", "80"]}
    with pytest.raises(UserError, match=r"names \{taek\}, the rows do not; did you mean take\?"):
        read(tmp_path, **{**options, "splits": {"test": {"taek": "0"}}})
    with pytest.raises(UserError, match=r"split 'tset' of a does not exist; did you mean test\?"):
        read(tmp_path, **options, split="tset")


def test_missing_media_are_an_error_of_their_sample_or_left_out(root):
    (root / "easy" / "train" / "images" / "0.png").unlink()
    with pytest.raises(MediaError, match=r"0.png: no such file"):
        read(root, **EASY_VQA)[0].messages[0].parts[0].load()
    source = read(root, **EASY_VQA, missing_media="skip")
    assert [source[n].key for n in range(len(source))] == ["questions/train/1"]
    rows = [{"file": "train/cat/1.jpg"}, {"file": "train/cat/none.jpg"}]
    (root / "rows.json").write_text(json.dumps(rows))
    options = {"path": "rows.json", "image": "cifar.zip/{file}", "prompt": "{image}", "answer": "x"}
    assert len(read(root, **options, missing_media="skip")) == 1


@pytest.mark.parametrize("climbing", ["../secret.png", "easy/../../secret.png", "/etc/secret.png"])
def test_a_table_may_not_name_files_outside_the_data_root(climbing, tmp_path):
    (tmp_path / "root" / "easy").mkdir(parents=True)
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "root" / "rows.json").write_text(json.dumps([{"file": climbing}]))
    source = read(tmp_path / "root", path="rows.json", image="{file}", prompt="{image}", answer="x")
    with pytest.raises(UserError, match=r"secret.png: leads out of the data root"):
        source[0]
    with pytest.raises(UserError, match=r"leads out of the data root"):
        read(tmp_path / "root", path="../rows.json", answer="x")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"answer": "{anwser}"}, r"names \{anwser\}, the rows do not; did you mean answer\?"),
        ({"prompt": "{image}{qestion}"}, r"names \{qestion\}, the rows do not; did you mean question\?"),
        ({"group_by": "image"}, r"names \{image\}, the rows do not; did you mean image_id\?"),
        ({"where": {"answr": "yes"}}, r"names \{answr\}, the rows do not; did you mean answer\?"),
        ({"image": "{id}.png"}, r"names \{id\}, the rows do not"),
        ({"prompt": "{question}"}, r"image is given but the prompt '\{question\}' has no \{image\}"),
        ({"columns": ["question", "answer"]}, "row 0 is .*; give objects, or lists and as many names in columns"),
        ({"path": "easy/train/images"}, "for a folder of media give files: PATTERN"),
        ({"path": "easy/{split}/absent.json"}, r"train/absent.json: no such file or folder"),
        ({"split": "valid"}, r"valid/questions.json: no such file or folder"),
    ],
)
def test_a_template_that_does_not_fit_its_table_is_refused_with_the_nearest_column(options, told, root):
    with pytest.raises(UserError, match=told):
        read(root, **{**EASY_VQA, **options})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", "{"),
        ("rows.json", '{"a": 1}'),
        ("rows.jsonl", "{}\n{"),
        ("rows.json", "[1, 2]"),
        ("rows.csv", b"\xff\xfe\x00,"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"{name}: "):
        read(tmp_path, path=name, answer="x")[1]  # the lines of a jsonl are read when asked for


def test_easy_vqa_of_the_data_packs_is_read_with_the_config_that_comes_with_mmgpt(data_packs):
    if not (data_packs / "easy_vqa" / "test").is_dir():
        pytest.skip("the data packs hold no easy-VQA")
    source = read(data_packs, **{**read_yaml("easy_vqa", "data"), "split": "test", "limit": 20})
    assert len(source) == 20
    assert source[0].messages[0].parts[0].load().size == (64, 64)
    assert all(answer.text for _, answer in source[19].branches)

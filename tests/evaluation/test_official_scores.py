import gzip
import json

import pytest

from mmgpt.config import UserError
from mmgpt.evaluation.official_scores import score_captions, score_vqa

ANSWERS = {1: ["red"] * 9 + ["blue"], 2: ["yes"] * 10, 3: ["2"] * 2 + ["3"] * 8}
TYPES = {1: "other", 2: "yes/no", 3: "number"}


@pytest.fixture
def write(tmp_path):
    def write(name, content, packed=False):
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
        return tmp_path / name

    return write


@pytest.fixture
def vqa_files(write):
    annotations = [
        {
            "question_id": key,
            "answer_type": TYPES[key],
            "question_type": "what",
            "answers": [{"answer": a} for a in some],
        }
        for key, some in ANSWERS.items()
    ]
    return (
        write("questions.json", {"questions": [{"question_id": key, "question": "?"} for key in ANSWERS]}),
        write("annotations.json.gz", {"annotations": annotations}, packed=True),
    )


def results(*pairs):
    return [{"question_id": key, "answer": answer} for key, answer in pairs]


@pytest.fixture
def references(write):
    captions = {7: ["a dog runs", "the dog is running"], 8: ["a cat sits", "one cat"]}
    rows = [{"image_id": key, "id": 0, "caption": text} for key, some in captions.items() for text in some]
    return write("references.json", {"images": [{"id": 7}, {"id": 8}], "annotations": rows})


def captions(*pairs):
    return [{"image_id": key, "caption": caption} for key, caption in pairs]


def test_vqa_scores_equal_the_official_tool_s(data_packs, mmgpt_says):
    pack = data_packs / "vqa_metrics"
    if not pack.is_dir():
        pytest.skip(f"no official VQA figures at {pack}")
    files = ["--questions", pack / "vqa_questions_test.gzip", "--annotations", pack / "vqa_annotatons_test.gzip"]
    code, said, _ = mmgpt_says(
        "score", "vqa", *files, "--results", pack / "fake_results.json", "--json", "--per-question"
    )
    found, expected = json.loads(said), json.loads((pack / "fake_results_expected.json").read_text())
    assert code == 0
    assert found["overall"] == 68.37 == expected["accuracy"]["overall"]
    assert found["per_answer_type"] == expected["accuracy"]["perAnswerType"]
    assert found["per_question_type"] == expected["accuracy"]["perQuestionType"]
    assert found["per_question"] == expected["evalQA"]


def test_caption_scores_equal_the_official_tool_s(data_packs, mmgpt_says):
    pack = data_packs / "caption_metrics" / "flickr8k_human0_vs_4"
    if not pack.is_dir():
        pytest.skip(f"no official caption figures at {pack}")
    files = ["--references", pack / "references.json", "--results", pack / "results.json"]
    code, said, _ = mmgpt_says("score", "captions", *files, "--json")
    found, expected = json.loads(said), json.loads((pack / "expected.json").read_text())["corpus"]
    assert code == 0
    for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    assert found["METEOR"] is None
    assert any("METEOR is absent" in note for note in found["notes"])


def test_a_table_shows_the_scores_and_json_the_same_ones(vqa_files, write, mmgpt_says):
    given = write("results.json", results((1, "Red."), (2, "yes"), (3, "two")))
    files = ["--questions", vqa_files[0], "--annotations", vqa_files[1], "--results", given]
    code, said, _ = mmgpt_says("score", "vqa", *files)
    assert code == 0
    assert "VQA accuracy in %, 3 questions" in said
    assert "86.67" in said
    found = json.loads(mmgpt_says("score", "vqa", *files, "--json")[1])
    assert found["per_answer_type"] == {"number": 60.0, "other": 100.0, "yes/no": 100.0}
    assert "per_question" not in found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (results((1, "red"), (2, "yes")), "1 of 3 questions have no result: 3; give one for each, or .* --partial"),
        (results((1, "red"), (2, "yes"), (3, "2"), (9, "x")), "1 ids are none of the 3 questions: 9"),
        (results((1, "red"), (1, "blue"), (2, "yes"), (3, "2")), "1 double question_ids: 1"),
        (results((1, "red"), (2, "yes"), (3, 2)), "has no answer that is text"),
        ([{"question": 1, "answer": "red"}], "has no question_id"),
        ([], "holds no results"),
        ({"1": "red"}, "not of the form"),
        (b"[{", "not valid JSON"),
        (b"\x1f\x8b no gzip", "not valid JSON"),
    ],
)
def test_vqa_results_that_do_not_fit_are_refused(vqa_files, write, mmgpt_says, rows, message):
    given = write("results.json", rows)
    with pytest.raises(UserError, match=message):
        score_vqa(*vqa_files, given)
    code, said, error = mmgpt_says(
        "score", "vqa", "--questions", vqa_files[0], "--annotations", vqa_files[1], "--results", given
    )
    assert (code, said) == (2, "")
    assert error.startswith("error: ")


def test_a_part_is_scored_only_on_request_and_told(vqa_files, write, mmgpt_says):
    given = write("results.json", results((1, "red"), (2, " ")))
    found = score_vqa(*vqa_files, given, partial=True)
    assert found["overall"] == 50.0
    assert (found["scored"], found["questions"]) == (2, 3)
    assert found["notes"] == ["scored over 2 of 3 questions", "1 empty answers count as wrong: 2"]
    files = ["--questions", vqa_files[0], "--annotations", vqa_files[1], "--results", given]
    assert "note: scored over 2 of 3 questions" in mmgpt_says("score", "vqa", *files, "--partial")[1]


def test_questions_and_annotations_of_two_splits_are_refused(vqa_files, write):
    other = write("other.json", {"questions": [{"question_id": 1}, {"question_id": 4}]})
    with pytest.raises(UserError, match="differ in 3 ids: 4, 2, 3; give files of one split"):
        score_vqa(other, vqa_files[1], write("results.json", results((1, "red"))))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (captions((7, "a dog")), "1 of 2 images have no result: 8"),
        (captions((7, "a dog"), (8, "a cat"), (9, "x")), "1 ids are none of the 2 images: 9"),
        (captions((7, "a dog"), (7, "a dog"), (8, "a cat")), "1 double image_ids: 7"),
        (captions((7, ""), (8, "a cat")), "1 predictions have no words: 7"),
        (captions((7, "?!"), (8, "a cat")), "1 predictions have no words: 7"),
    ],
)
def test_caption_results_that_do_not_fit_are_refused(references, write, mmgpt_says, rows, message):
    given = write("results.json", rows)
    with pytest.raises(UserError, match=message):
        score_captions(references, given)
    assert mmgpt_says("score", "captions", "--references", references, "--results", given)[0] == 2


def test_captions_of_a_part_say_so_and_use_the_references_of_that_part(references, write):
    part = score_captions(references, write("results.json", captions((7, "a dog runs"))), partial=True)
    assert (part["scored"], part["images"]) == (1, 2)
    assert "scored over 1 of 2 images" in part["notes"]
    assert part["CIDEr"] == 0.0  # one image alone has no rare words


def test_references_in_another_script_or_without_words_are_counted(write):
    rows = [(1, "a dog"), (1, "\u4e00\u53ea\u72d7"), (1, "..."), (2, "caf\u00e9"), (2, "\u043a\u043e\u0442")]
    file = write("references.json", {"annotations": [{"image_id": key, "caption": text} for key, text in rows]})
    notes = score_captions(file, write("results.json", captions((1, "a dog"), (2, "caf\u00e9"))))["notes"]
    assert "1 references hold nothing but punctuation; they match nothing" in notes
    assert "2 references are not in Latin script; words are cut by the rules of English" in notes


def test_references_without_any_words_are_refused(write):
    file = write("references.json", {"annotations": [{"image_id": 1, "caption": "..."}]})
    with pytest.raises(UserError, match="1 ids have no reference with words in it: 1"):
        score_captions(file, write("results.json", captions((1, "a dog"))))


def test_an_absent_file_is_named(write, references):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        score_captions(references, "none.json")


IDS = {
    "numbers": lambda key: key,
    "floats": float,
    "strings": str,
    "strings with a fraction": lambda key: f"{key}.0",
    "spaces": lambda key: f" {key}",
}


@pytest.mark.parametrize("results_as", IDS)
@pytest.mark.parametrize("annotations_as", ["numbers", "strings", "floats"])
def test_the_type_of_a_question_s_id_never_changes_a_figure(results_as, annotations_as, vqa_files, write):
    given = results((1, "Red."), (2, "yes"), (3, "two"))
    wanted = score_vqa(*vqa_files, write("plain.json", given))
    retyped = [{**row, "question_id": IDS[results_as](row["question_id"])} for row in given]
    rows = json.loads(gzip.decompress(vqa_files[1].read_bytes()))["annotations"]
    for row in rows:
        row["question_id"] = IDS[annotations_as](row["question_id"])
    annotations = write("retyped.json", {"annotations": rows})
    assert score_vqa(vqa_files[0], annotations, write("results.json", retyped)) == wanted


@pytest.mark.parametrize("as_type", IDS)
def test_the_type_of_an_image_s_id_never_changes_a_figure(as_type, references, write):
    given = captions((7, "a dog runs"), (8, "a cat"))
    wanted = score_captions(references, write("plain.json", given))
    retyped = [{**row, "image_id": IDS[as_type](row["image_id"])} for row in given]
    assert score_captions(references, write("results.json", retyped)) == wanted


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (results((1, "red"), ("1", "blue"), (2, "yes"), (3, "2")), "1 double question_ids: 1"),
        (results((1, None), (2, None), (3, "2")), "2 rows have no answer: 1, 2"),
        (results((True, "red")), "has no question_id"),
        (results((float("nan"), "red")), "has no question_id"),
        (results(("", "red")), "has no question_id"),
        (results(([1], "red")), "has no question_id"),
        (results(("1.5", "red"), (2, "yes"), (3, "2")), "1 ids are none of the 3 questions: 1.5"),
    ],
)
def test_ids_and_answers_that_are_none_are_named(rows, message, vqa_files, write):
    with pytest.raises(UserError, match=message):
        score_vqa(*vqa_files, write("results.json", rows))


def test_the_table_of_captions_writes_figures_as_every_other_one(references, write, mmgpt_says):
    given = write("results.json", captions((7, "a dog runs"), (8, "a cat sits")))
    code, said, _ = mmgpt_says("score", "captions", "--references", references, "--results", given)
    assert code == 0
    rows = dict(line.split()[:2] for line in said.splitlines() if line.split()[:1] and "_" in line.split()[0])
    assert rows["Bleu_1"] == "100.0"
    assert rows["ROUGE_L"] == "100.0"

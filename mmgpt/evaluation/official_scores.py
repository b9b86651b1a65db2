"""Scores of other systems' results files, as the official tools of VQA and of MS-COCO captions give them.

A results file must answer every question once; what is scored over a part says so. The type of an id is no matter.
"""

import gzip
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgpt.config import UserError
from mmgpt.evaluation.ids import id_text
from mmgpt.evaluation.metrics.captions import caption_scores, has_words, named, paired
from mmgpt.evaluation.metrics.java import java_scores
from mmgpt.evaluation.metrics.vqa import vqa_accuracy

Record = dict[str, Any]
FORMS = {
    "questions": '{"questions": [{"question_id": 7, ...}]}',
    "annotations": '{"annotations": [{"question_id": 7, "answers": [{"answer": "red"}, ...], ...}]}',
    "vqa": '[{"question_id": 7, "answer": "red"}]',
    "references": '{"images": [{"id": 42}], "annotations": [{"image_id": 42, "caption": "a dog runs"}]}',
    "captions": '[{"image_id": 42, "caption": "a dog runs"}]',
}


def score_vqa(questions: str | Path, annotations: str | Path, results: str | Path, *, partial: bool = False) -> Record:
    """VQA accuracy of a results file, in percent to two digits.

    Args:
        questions, annotations, results: JSON in the official layouts, gzip or not.
        partial: score a file that answers some of the questions only, over those.
    Returns:
        overall, per_answer_type, per_question_type and per_question; `scored` of `questions`; `notes`, what a reader of
        the figures should know.
    Raises:
        UserError: if a file is not what it should be, or an answer is missing, double or of no question.
    """
    asked = _by_id(_list_of(questions, "questions", FORMS["questions"]), "question_id", questions)
    known = _by_id(_list_of(annotations, "annotations", FORMS["annotations"]), "question_id", annotations)
    _same_ids(asked, known, f"the questions of {questions}", f"the annotations of {annotations}")
    answers = _texts(results, "question_id", "answer", FORMS["vqa"])
    notes = _check_ids(answers, known, results, "questions", partial)
    empty = [key for key, answer in answers.items() if not answer.strip()]
    if empty:
        notes.append(f"{len(empty)} empty answers count as wrong: {named(empty)}")
    scores: dict[str, float] = {}
    groups: dict[str, dict[str, list[float]]] = {"answer_type": defaultdict(list), "question_type": defaultdict(list)}
    for key in (key for key in known if key in answers):
        row = known[key]
        scores[key] = vqa_accuracy(answers[key], _answers(row, annotations))
        for name, group in groups.items():
            group[str(row.get(name, "not told"))].append(scores[key])
    return {
        "overall": _percent(scores.values()),
        "per_answer_type": {name: _percent(group) for name, group in sorted(groups["answer_type"].items())},
        "per_question_type": {name: _percent(group) for name, group in sorted(groups["question_type"].items())},
        "per_question": {key: round(100 * score, 2) for key, score in scores.items()},
        "scored": len(scores),
        "questions": len(known),
        "notes": notes,
    }


def score_captions(
    references: str | Path,
    results: str | Path,
    *,
    partial: bool = False,
    meteor_jar: Path | None = None,
    spice_jar: Path | None = None,
) -> Record:
    """Caption scores of a results file against references in the COCO layout.

    Args:
        references, results: JSON, gzip or not.
        partial: score a file that describes some of the images only, over those.
        meteor_jar, spice_jar: the official programs of METEOR and SPICE, which need Java.
    Returns:
        CIDEr (0 to 10), Bleu_1 to Bleu_4, ROUGE_L, METEOR and SPICE (None where absent); `scored` of `images`; `notes`.
    Raises:
        UserError: if a file is not what it should be, or a caption is missing, double, without words or of no image.
    """
    right: dict[str, list[str]] = defaultdict(list)
    for row in _list_of(references, "annotations", FORMS["references"]):
        right[_id(row, "image_id", references)].append(_field(row, "caption", references))
    captions = _texts(results, "image_id", "caption", FORMS["captions"])
    images = len(right)
    notes = _check_ids(captions, right, results, "images", partial)
    right = {key: some for key, some in right.items() if key in captions}
    notes += _doubtful_references(right)
    scores: Record = dict(caption_scores(captions, right))
    jars = {"METEOR": meteor_jar, "SPICE": spice_jar}
    more, absent = java_scores(list(paired(captions, right).values()), jars)
    notes += [f"{name} is absent: {reason}" for name, reason in absent.items()]
    return {"CIDEr": scores.pop("CIDEr"), **scores, **more, "scored": len(captions), "images": images, "notes": notes}


def score_evaluation(folder: str | Path, metrics: Sequence[str] = ()) -> Record:
    """Scores of an evaluation's samples by the name of their file, computed again from their answers.

    Args:
        folder: of an evaluation, or one of its samples files.
        metrics: names; those that the samples have scores of if none are given.
    Raises:
        UserError: if there are no samples, or they cannot be scored so.
    """
    from mmgpt.evaluation.results import rescore  # of the evaluations, slow to import

    path = Path(folder)
    files = sorted(path.glob("samples-*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no samples-TASK-SHOTS.jsonl there; give the folder that `mmgpt eval --out` wrote")
    return {file.stem.removeprefix("samples-"): rescore(file, metrics) for file in files}


def _doubtful_references(references: Mapping[str, Sequence[str]]) -> list[str]:
    texts = [text for some in references.values() for text in some]
    bare = sum(not has_words(text) for text in texts)
    foreign = sum(_is_foreign(text) for text in texts if not text.isascii())
    notes = [f"{bare} references hold nothing but punctuation; they match nothing"] if bare else []
    if foreign:
        notes.append(f"{foreign} references are not in Latin script; words are cut by the rules of English")
    return notes


def _is_foreign(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and not any(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)


def _percent(scores: Iterable[float]) -> float:
    found = list(scores)
    return round(100 * sum(found) / len(found), 2)


def _answers(row: Record, file: str | Path) -> list[str]:
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise UserError(f"{file}: question {row['question_id']} has no answers; they look like {FORMS['annotations']}")
    return [_field(answer, "answer", file) for answer in answers]


def _check_ids(
    given: Mapping[str, str], wanted: Mapping[str, Any], file: str | Path, things: str, partial: bool
) -> list[str]:
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise UserError(f"{file}: {len(unknown)} ids are none of the {len(wanted)} {things}: {named(unknown)}")
    missing = [key for key in wanted if key not in given]
    if not given:
        raise UserError(f"{file}: holds no results; {len(wanted)} {things} are to be answered")
    if missing and not partial:
        raise UserError(
            f"{file}: {len(missing)} of {len(wanted)} {things} have no result: {named(missing)}; "
            "give one for each, or score the others alone with --partial"
        )
    return [f"scored over {len(given)} of {len(wanted)} {things}"] if missing else []


def _same_ids(one: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> None:
    differ = [key for key in {**one, **other} if key not in one or key not in other]
    if differ:
        raise UserError(f"{first} and {second} differ in {len(differ)} ids: {named(differ)}; give files of one split")


def _texts(file: str | Path, key: str, text: str, form: str) -> dict[str, str]:
    """The texts of a results file by id."""
    rows = _by_id(_list_of(file, None, form), key, file)
    bad = [place for place, row in rows.items() if not isinstance(row.get(text), str)]
    if bad:
        shown = json.dumps(rows[bad[0]], ensure_ascii=False)[:80]
        raise UserError(f"{file}: {len(bad)} rows have no {text}: {named(bad)}; {shown} has no {text} that is text")
    return {place: row[text] for place, row in rows.items()}


def _by_id(rows: Sequence[Record], key: str, file: str | Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    double = []
    for row in rows:
        place = _id(row, key, file)
        double += [place] if place in found else []
        found[place] = row
    if double:
        raise UserError(f"{file}: {len(double)} double {key}s: {named(double)}; each may be there once")
    return found


def _id(row: Any, name: str, file: str | Path) -> str:
    found = id_text(row.get(name)) if isinstance(row, dict) else None
    if found is None:
        raise UserError(f"{file}: {json.dumps(row, ensure_ascii=False)[:80]} has no {name}")
    return found


def _field(row: Any, name: str, file: str | Path) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise UserError(f"{file}: {json.dumps(row, ensure_ascii=False)[:80]} has no {name} that is text")
    return value


def _list_of(file: str | Path, key: str | None, form: str) -> list[Record]:
    content = _read(Path(file))
    rows = content.get(key) if key and isinstance(content, dict) else None if key else content
    if not isinstance(rows, list):
        raise UserError(f"{file}: not of the form {form}")
    return rows


def _read(file: Path) -> Any:
    try:
        raw = file.read_bytes()
        return json.loads(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file") from None
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None

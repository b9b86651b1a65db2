"""COCO captions, VQA v2 and LibriSpeech in the layout that they are downloaded in.

Their files are joined to the rows of a table; the table's reader makes the samples. All captions of a picture, and
all questions about it, are the branches of one sample, so that it is encoded once. What the formats tell besides is
known by its key and left out; a key that they do not have is refused unless `ignore` names it.
Sources: cocodataset.org, Karpathy and Fei-Fei 2015 (arXiv:1412.2306), visualqa.org, openslr.org/12.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.cells import cell_text, check_keys, is_missing
from mmgpt.datasets.file_names import files_below
from mmgpt.datasets.parts import short
from mmgpt.datasets.plain_text import parse_json, read_lines, read_text
from mmgpt.datasets.readers.rows import ListRows, Row
from mmgpt.datasets.readers.table import TableSource
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.source import SourceConfig, resolve

# What the formats say besides. Sources: cocodataset.org/#format-data, nocaps.org, visualqa.org/download.html,
# okvqa.allenai.org, and the splits of arXiv:1412.2306 as they are distributed.
UNREAD_KEYS = {
    "images": ("width", "height", "license", "flickr_url", "coco_url", "date_captured", "open_images_id", "domain"),
    "captions": ("id",),
    "karpathy": ("imgid", "sentids", "cocoid", "filepath"),
    "sentences": ("tokens", "imgid", "sentid"),
    "questions": ("multiple_choices",),
    "annotations": ("question_id", "image_id", "answer_type", "question_type", "multiple_choice_answer", "confidence"),
    "answers": ("answer_id", "answer_confidence", "raw_answer"),
}
UNCAPTIONED = "caption them, or say missing_captions: skip"


class CocoCaptionsConfig(SourceConfig):
    """Official `captions_*.json`, or Karpathy's `dataset_*.json` of COCO, Flickr8k or Flickr30k."""

    reader: Literal["coco_captions"]
    path: str
    images: str  # folder of the pictures; with Karpathy's COCO the one that holds train2014 and val2014
    restval: bool = True  # Karpathy's train split takes the rest of the validation pictures too, as is usual
    missing_media: Literal["error", "skip"] = "error"
    missing_captions: Literal["error", "skip"] = "error"  # of a picture of the split
    tags: list[str] = []  # keys of the official images, such as NoCaps' domain: groups that scores are reported of
    prompt: str = "{image}Describe the picture."


class CocoCaptionsSource(TableSource):
    """A sample a picture, its captions as branches."""

    def __init__(self, config: CocoCaptionsConfig, data_root: Path) -> None:
        path = resolve(data_root, config.path.replace("{split}", config.split))
        tree = _read_json(path, "images")
        rows = ListRows(
            _karpathy_rows(tree, config, path) if "annotations" not in tree else _coco_rows(tree, config, path)
        )
        folder = config.images.replace("{split}", config.split)
        table = _table(
            config,
            path=config.path,
            image=f"{folder}/{{file}}",
            missing_media=config.missing_media,
            prompt=config.prompt,
            answer="{caption}",
            tags=config.tags,
            group_by="picture",
        )
        self.files = [path]
        super().__init__(table, data_root, rows)


def _coco_rows(tree: dict[str, Any], config: CocoCaptionsConfig, path: Path) -> list[Row]:
    try:
        _check(
            tree["images"], ("id", "file_name", *UNREAD_KEYS["images"], *config.tags), config.ignore, f"{path}: images"
        )
        _check(
            tree["annotations"],
            ("image_id", "caption", *UNREAD_KEYS["captions"]),
            config.ignore,
            f"{path}: annotations",
        )
        images = {
            key: {"file": image["file_name"], **{tag: image[tag] for tag in config.tags}}
            for key, image in _by_key(tree["images"], "id", path).items()
        }
        captioned = {one["image_id"] for one in tree["annotations"]}
        if config.missing_captions == "error":
            _refuse([key for key in images if key not in captioned], f"{path}: images without a caption", UNCAPTIONED)
        return [
            {"picture": one["image_id"], **images[one["image_id"]], "caption": _stripped(one["caption"])}
            for one in tree["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _misshapen(path, error, "images of id and file_name, annotations of image_id and caption") from None


def _karpathy_rows(tree: dict[str, Any], config: CocoCaptionsConfig, path: Path) -> list[Row]:
    try:
        present = {image["split"] for image in tree["images"]}
        if config.split not in present:
            raise UserError(f"{path}: holds no split {config.split!r}; {did_you_mean(config.split, present)}")
        own = ("filename", "split", "sentences", *UNREAD_KEYS["karpathy"])
        _check(tree["images"], own, config.ignore, f"{path}: images")
        for image in tree["images"]:
            _check(image["sentences"], ("raw", *UNREAD_KEYS["sentences"]), config.ignore, f"{path}: sentences")
        wanted = {config.split, "restval"} if config.split == "train" and config.restval else {config.split}
        chosen = [image for image in tree["images"] if image["split"] in wanted]
        if config.missing_captions == "error":
            uncaptioned = [image["filename"] for image in chosen if not image["sentences"]]
            _refuse(uncaptioned, f"{path}: images without a caption", UNCAPTIONED)
        return [
            {
                "picture": image.get("cocoid", image["filename"]),
                "file": "/".join(filter(None, (image.get("filepath"), image["filename"]))),
                "caption": _stripped(sentence["raw"]),
            }
            for image in chosen
            for sentence in image["sentences"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _misshapen(path, error, "images of filename, split and sentences of raw, or annotations") from None


class VqaConfig(SourceConfig):
    """Official questions and annotations of VQA v2, or of a set in the same layout such as OK-VQA."""

    reader: Literal["vqa"]
    questions: str
    annotations: str | None = None
    image: str  # path of a picture by its {image_id}, as in images/COCO_val2014_{image_id:012d}.jpg
    missing_media: Literal["error", "skip"] = "error"
    missing_questions: Literal["error", "skip"] = "error"  # of an annotation
    prompt: str = "{image}{question}\nAnswer the question using a single word or phrase."


class VqaSource(TableSource):
    """A sample a picture, its questions as branches; what is learnt is the most frequent of the ten answers."""

    def __init__(self, config: VqaConfig, data_root: Path) -> None:
        questions = resolve(data_root, config.questions.replace("{split}", config.split))
        if config.annotations is None:
            raise UserError(f"{questions}: a split without annotations has no answers to learn or to score; give them")
        annotations = resolve(data_root, config.annotations.replace("{split}", config.split))
        table = _table(
            config,
            path=config.questions,
            image=config.image,
            missing_media=config.missing_media,
            prompt=config.prompt,
            answer="{answer}",
            answers="answers",
            tags=["answer_type", "question_type"],
            group_by="image_id",
        )
        self.files = [questions, annotations]
        super().__init__(table, data_root, ListRows(_vqa_rows(questions, annotations, config)))


def _vqa_rows(questions: Path, annotations: Path, config: VqaConfig) -> list[Row]:
    ignore = config.ignore
    asked, answered = _read_json(questions, "questions")["questions"], _read_json(annotations, "annotations")
    try:
        _check(
            asked, ("image_id", "question", "question_id", *UNREAD_KEYS["questions"]), ignore, f"{questions}: questions"
        )
        _check(answered["annotations"], ("answers", *UNREAD_KEYS["annotations"]), ignore, f"{annotations}: annotations")
        by_question = _by_key(answered["annotations"], "question_id", annotations)
        absent = [one["question_id"] for one in asked if one["question_id"] not in by_question]
        if absent:
            raise UserError(
                f"{annotations}: no answers to {len(absent)} questions of {questions.name}: {absent[:3]}..."
            )
        if config.missing_questions == "error":
            questioned = {one["question_id"] for one in asked}
            unasked = [key for key in by_question if key not in questioned]
            what = f"{annotations}: annotations without a question in {questions.name}"
            _refuse(unasked, what, "give the questions of this file, or say missing_questions: skip")
        for one in answered["annotations"]:
            _check(one["answers"], ("answer", *UNREAD_KEYS["answers"]), ignore, f"{annotations}: answers")
        return [_vqa_row(one, by_question[one["question_id"]], annotations) for one in asked]
    except (KeyError, TypeError, IndexError) as error:
        raise _misshapen(
            annotations, error, "questions of question_id, image_id and question, annotations with answers"
        ) from None


def _vqa_row(asked: dict[str, Any], annotation: dict[str, Any], path: Path) -> Row:
    try:
        answers = tuple(cell_text(one["answer"]) for one in annotation["answers"] if not is_missing(one["answer"]))
    except ValueError as error:
        raise UserError(f"{path}: question {asked['question_id']}: {error}") from None
    if not answers:
        raise UserError(f"{path}: question {asked['question_id']} has no answer; leave it out of both files")
    usual = annotation.get("multiple_choice_answer")  # OK-VQA has none
    return {
        "image_id": asked["image_id"],
        "question": asked["question"],
        "answer": Counter(answers).most_common(1)[0][0] if is_missing(usual) else usual,
        "answers": answers,
        **{name: annotation.get(name) for name in ("answer_type", "question_type")},
    }


class LibriSpeechConfig(SourceConfig):
    """`LibriSpeech/<subset>/<speaker>/<chapter>/`, each with a .trans.txt and .flac files."""

    reader: Literal["librispeech"]
    path: str = "LibriSpeech"
    subsets: list[str] = Field(min_length=1)  # folders such as train-clean-100
    lower: bool = True  # transcripts in lower case; the files are in capitals
    prompt: str = "{audio}What is said?"


class LibriSpeechSource(TableSource):
    """A sample an utterance, in the order of their numbers."""

    def __init__(self, config: LibriSpeechConfig, data_root: Path) -> None:
        rows, self.files = ListRows(), list[Path]()
        for subset in config.subsets:
            folder = resolve(data_root, f"{config.path}/{subset}")
            transcripts = [folder / name for name in files_below(folder) if name.endswith(".trans.txt")]
            self.files += transcripts
            for file in transcripts:
                for line in filter(str.strip, read_lines(file)):
                    number, _, text = line.strip().partition(" ")
                    if is_missing(text):
                        raise UserError(f"{file}: {line!r} is no utterance; a line is its number and its words")
                    path = (file.parent / f"{number}.flac").absolute()
                    rows.append({"file": str(path), "id": number, "text": text.lower() if config.lower else text})
        prompt = config.prompt
        table = _table(config, path=config.path, audio="{file}", key="{id}", prompt=prompt, answer="{text}")
        super().__init__(table, data_root, rows)


def _table(config: SourceConfig, **options: Any) -> TableConfig:
    own = {name: getattr(config, name) for name in SourceConfig.model_fields}
    return TableConfig(**{**own, "reader": "table", **options})


def _read_json(path: Path, key: str) -> dict[str, Any]:
    try:
        tree = parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not a readable json file ({error}); download it again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
        raise UserError(f"{path}: has no list of {key}; give the official file")
    return tree


def _check(objects: Sequence[dict[str, Any]], known: Sequence[str], ignore: Sequence[str], where: str) -> None:
    """Refuse keys that the format does not have, and what has none."""
    stray = next((one for one in objects if not isinstance(one, dict)), {})
    if stray != {}:
        raise UserError(f"{where}: {short(stray)} is no object; give the official file")
    check_keys(dict.fromkeys(key for one in objects for key in one), known, ignore, where)


def _by_key(objects: Iterable[dict[str, Any]], key: str, path: Path) -> dict[Any, dict[str, Any]]:
    """Objects by a key of theirs, which no two share."""
    found: dict[Any, dict[str, Any]] = {}
    for one in objects:
        if one[key] in found:
            raise UserError(f"{path}: {key} {one[key]!r} stands twice; leave one of the two")
        found[one[key]] = one
    return found


def _refuse(left_out: Sequence[Any], what: str, remedy: str) -> None:
    """Refuse objects that no sample would hold, told by their keys."""
    if left_out:
        raise UserError(f"{what}: {len(left_out)}, the first of them {left_out[0]!r}; {remedy}")


def _stripped(caption: Any) -> Any:
    return caption.strip() if isinstance(caption, str) else caption


def _misshapen(path: Path, error: Exception, wanted: str) -> UserError:
    return UserError(f"{path}: not in the official layout ({type(error).__name__}: {error}); it needs {wanted}")

"""COCO captions, VQA v2 and LibriSpeech in the layout that they are downloaded in.

Their files are joined to the rows of a table; the table's reader makes the samples. All captions of a picture, and
all questions about it, are the branches of one sample, so that it is encoded once.
Sources: cocodataset.org, Karpathy and Fei-Fei 2015 (arXiv:1412.2306), visualqa.org, openslr.org/12.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.rows import ListRows, Row, read_lines
from mmgpt.datasets.source import SourceConfig, resolve
from mmgpt.datasets.table import TableConfig, TableSource


class CocoCaptionsConfig(SourceConfig):
    """Official `captions_*.json`, or Karpathy's `dataset_*.json` of COCO, Flickr8k or Flickr30k."""

    reader: Literal["coco_captions"]
    path: str
    images: str  # folder of the pictures; with Karpathy's COCO the one that holds train2014 and val2014
    restval: bool = True  # Karpathy's train split takes the rest of the validation pictures too, as is usual
    missing_media: Literal["error", "skip"] = "error"
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
        images = {
            image["id"]: {"file": image["file_name"], **{tag: image[tag] for tag in config.tags}}
            for image in tree["images"]
        }
        return [
            {"picture": one["image_id"], **images[one["image_id"]], "caption": one["caption"].strip()}
            for one in tree["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _misshapen(path, error, "images of id and file_name, annotations of image_id and caption") from None


def _karpathy_rows(tree: dict[str, Any], config: CocoCaptionsConfig, path: Path) -> list[Row]:
    try:
        present = {image["split"] for image in tree["images"]}
        if config.split not in present:
            raise UserError(f"{path}: holds no split {config.split!r}; {did_you_mean(config.split, present)}")
        wanted = {config.split, "restval"} if config.split == "train" and config.restval else {config.split}
        return [
            {
                "picture": image.get("cocoid", image["filename"]),
                "file": "/".join(filter(None, (image.get("filepath"), image["filename"]))),
                "caption": sentence["raw"].strip(),
            }
            for image in tree["images"]
            if image["split"] in wanted
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
        super().__init__(table, data_root, ListRows(_vqa_rows(questions, annotations)))


def _vqa_rows(questions: Path, annotations: Path) -> list[Row]:
    asked, answered = _read_json(questions, "questions")["questions"], _read_json(annotations, "annotations")
    try:
        by_question = {one["question_id"]: one for one in answered["annotations"]}
        absent = [one["question_id"] for one in asked if one["question_id"] not in by_question]
        if absent:
            raise UserError(
                f"{annotations}: no answers to {len(absent)} questions of {questions.name}: {absent[:3]}..."
            )
        return [_vqa_row(one, by_question[one["question_id"]]) for one in asked]
    except (KeyError, TypeError, IndexError) as error:
        raise _misshapen(
            annotations, error, "questions of question_id, image_id and question, annotations with answers"
        ) from None


def _vqa_row(asked: dict[str, Any], annotation: dict[str, Any]) -> Row:
    answers = tuple(answer["answer"] for answer in annotation["answers"])
    usual = annotation.get("multiple_choice_answer")  # OK-VQA has none
    return {
        "image_id": asked["image_id"],
        "question": asked["question"],
        "answer": Counter(answers).most_common(1)[0][0] if usual is None else usual,
        "answers": answers,
        **{name: annotation.get(name, "") for name in ("answer_type", "question_type")},
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
            transcripts = sorted(folder.rglob("*.trans.txt"))
            self.files += transcripts
            for file in transcripts:
                for line in filter(None, read_lines(file)):
                    number, _, text = line.partition(" ")
                    if not text:
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
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a readable json file ({error}); download it again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
        raise UserError(f"{path}: has no list of {key}; give the official file")
    return tree


def _misshapen(path: Path, error: Exception, wanted: str) -> UserError:
    return UserError(f"{path}: not in the official layout ({type(error).__name__}: {error}); it needs {wanted}")

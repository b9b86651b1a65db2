"""A few samples of each data set that a task comes with, in the layout of its download.

The samples are made up here; names of files, keys and columns are the official ones.
"""

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.generation.assistant import Assistant

Rows = Sequence[dict[str, Any]]


class Layout:
    """Writes files below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str) -> Path:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        return self.root / path

    def text(self, path: str, text: str) -> None:
        self.file(path).write_text(text, encoding="utf-8")

    def json(self, path: str, tree: Any) -> None:
        self.text(path, json.dumps(tree))

    def lines(self, path: str, rows: Sequence[Any]) -> None:
        self.text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def csv(self, path: str, rows: Rows, *, header: bool = True) -> None:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
        self.text(path, out.getvalue())

    def pictures(self, *paths: str) -> None:
        for path in paths:
            picture(zlib.crc32(path.encode())).save(self.file(path))

    def sounds(self, *paths: str) -> None:
        for number, path in enumerate(paths):
            tone = 0.3 * np.sin(np.arange(1600) * 0.05 * (number + 1)).astype(np.float32)
            soundfile.write(self.file(path), tone, 8000)


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (16, 16), (40 * number % 256, number // 256 % 256, 200 - 30 * number % 200))


def karpathy(put: Layout, path: str, folders: dict[str, str], root: str) -> None:
    images = []
    for number, split in enumerate(["train", "restval", "test", "test"]):
        said = [{"raw": f"A dog number {number} {way}. ", "tokens": ["a"], "imgid": number} for way in ("runs", "sits")]
        where = {"filepath": folders[split], "cocoid": 10 + number} if folders else {}
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": said, "imgid": number, **where})
        put.pictures("/".join(filter(None, (root, where.get("filepath"), f"{number}.jpg"))))
    put.json(path, {"images": images, "dataset": "made"})


def coco(put: Layout) -> None:
    folders = {"train": "train2014", "restval": "val2014", "test": "val2014"}
    karpathy(put, "coco/dataset_coco.json", folders, "coco")


def nocaps(put: Layout) -> None:
    coco(put)
    domains = ("in-domain", "out-domain")
    images = [
        {"id": n, "file_name": f"00{n}ea2087.jpg", "open_images_id": f"00{n}ea2087", "domain": domain, "coco_url": ""}
        for n, domain in enumerate(domains)
    ]
    said = [
        {"image_id": n, "id": 10 * n + k, "caption": f"A goat {k} on a hill {n}"} for n in (0, 1) for k in range(10)
    ]
    put.json("nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": said})
    put.pictures(*(f"nocaps/images/{image['file_name']}" for image in images))


def vqa(put: Layout, folder: str, prefix: str, *, usual: bool) -> None:
    for split in ("train", "val"):
        asked = [{"image_id": 9, "question_id": n, "question": f"What is {n}?"} for n in (90, 91)]
        answered = [
            {
                "image_id": 9,
                "question_id": n,
                "question_type": "what is",
                "answer_type": "other",
                **({"multiple_choice_answer": "red"} if usual else {}),
                "answers": [
                    {"answer_id": k, "answer": "red" if k < 6 else "pink", "answer_confidence": "yes"}
                    for k in range(10)
                ],
            }
            for n in (90, 91)
        ]
        put.json(f"{folder}/{prefix}OpenEnded_mscoco_{split}2014_questions.json", {"questions": asked})
        put.json(f"{folder}/{prefix}mscoco_{split}2014_annotations.json", {"annotations": answered})
        put.pictures(f"coco/{split}2014/COCO_{split}2014_000000000009.jpg")


def gqa(put: Layout) -> None:
    for split in ("train", "testdev"):
        row = {
            "imageId": f"n_{split}",
            "isBalanced": True,
            "fullAnswer": "It is red.",
            "types": {"structural": "query"},
        }
        rows = {"0201": {**row, "question": "What color is it?", "answer": "red"}}
        put.json(f"gqa/{split}_balanced_questions.json", rows)
    put.pictures("gqa/images/n_train.jpg", "gqa/images/n_testdev.jpg")


def textvqa(put: Layout) -> None:
    for split in ("train", "val"):
        row = {
            "image_id": f"f_{split}",
            "question_id": 1,
            "question": "what brand?",
            "answers": ["nokia"] * 7 + ["n"] * 3,
        }
        put.json(f"textvqa/TextVQA_0.5.1_{split}.json", {"data": [row], "dataset_type": split})
    put.pictures("textvqa/train_images/f_train.jpg", "textvqa/train_images/f_val.jpg")


def scienceqa(put: Layout) -> None:
    row = {
        "question": "Which is hot?",
        "choices": ["ice", "fire"],
        "answer": 1,
        "hint": "",
        "subject": "natural science",
    }
    problems = {"1": {**row, "split": "train", "image": None}, "4": {**row, "split": "test", "image": "image.png"}}
    put.json("scienceqa/problems.json", {**problems, "5": {**row, "split": "test", "image": None, "answer": 0}})
    put.pictures("scienceqa/test/4/image.png")


def mmmu(put: Layout) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number, split in enumerate(("dev", "validation")):
        buffer = io.BytesIO()
        picture(number).save(buffer, format="PNG")
        shown = {"bytes": buffer.getvalue(), "path": "a.png"}
        for subject in ("Art", "Accounting"):
            row: dict[str, Any] = {
                "id": f"{split}_{subject}_1",
                "question": "See <image 1>. Which is it?",
                "options": "['one', \"it's <image 2>\"]",
                "explanation": "",
                "answer": "B",
                "question_type": "multiple-choice",
                "subfield": "Any",
                **{f"image_{n}": shown if n < 3 else None for n in range(1, 8)},
            }
            rows = [row, {**row, "id": "open", "question_type": "open", "options": "[]", "answer": "7"}]
            kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            columns = {
                name: pyarrow.array([one[name] for one in rows], kind if name.startswith("image") else None)
                for name in row
            }
            file = put.file(f"mmmu/{subject}/{split}-00000-of-00001.parquet")
            parquet.write_table(pyarrow.table(columns), file)


def pope(put: Layout) -> None:
    for split in ("random", "popular", "adversarial"):
        row = {"image": "COCO_val2014_000000310196.jpg"}
        asked = [("Is there a dog in the image?", "yes"), ("Is there a car in the image?", "no")]
        rows = [{"question_id": n, **row, "text": text, "label": label} for n, (text, label) in enumerate(asked, 1)]
        put.lines(f"pope/coco_pope_{split}.json", rows)
    put.pictures("coco/val2014/COCO_val2014_000000310196.jpg")


def librispeech(put: Layout) -> None:
    for number, subset in enumerate(("train-clean-100", "test-clean", "test-other")):
        folder = f"LibriSpeech/{subset}/{number}/7"
        put.text(f"{folder}/{number}-7.trans.txt", f"{number}-7-0000 HELLO WORLD\n{number}-7-0001 GOOD DAY\n")
        put.sounds(f"{folder}/{number}-7-0000.flac", f"{folder}/{number}-7-0001.flac")


def audiocaps(put: Layout) -> None:
    for split, number in (("train", 1), ("test", 5)):
        rows = [
            {"audiocap_id": n, "youtube_id": "aB_1", "start_time": 30, "caption": f"a bell rings {n}"}
            for n in range(number)
        ]
        put.csv(f"audiocaps/{split}.csv", [*rows, {**rows[0], "youtube_id": "gone"}])
        put.sounds(f"audiocaps/{split}/aB_1.wav")


def clotho_aqa(put: Layout) -> None:
    for split in ("train", "test"):
        rows = [
            {"file_name": f"{split} bird.wav", "QuestionText": question, "answer": answer, "confidence": "yes"}
            for question, answers in (
                ("Is it a bird?", ("yes", "yes", "no")),
                ("What sings?", ("bird", "birds", "bird")),
            )
            for answer in answers
        ]
        put.csv(f"clotho_aqa/clotho_aqa_{split}.csv", rows)
        put.sounds(f"clotho_aqa/audio_files/{split} bird.wav")


def esc50(put: Layout) -> None:
    names = [(1, "dog"), (2, "clock_tick"), (3, "rain"), (5, "clock_tick"), (5, "dog")]
    rows = [
        {
            "filename": f"{fold}-1003-A-{n}.wav",
            "fold": fold,
            "target": n,
            "category": name,
            "esc10": "True",
            "take": "A",
        }
        for n, (fold, name) in enumerate(names)
    ]
    put.csv("esc50/meta/esc50.csv", rows)
    put.sounds(*(f"esc50/audio/{row['filename']}" for row in rows))


def hellaswag(put: Layout) -> None:
    for split in ("train", "val"):
        row = {
            "ind": 24,
            "activity_label": "Roof work",
            "ctx_a": "A man [title] sits.",
            "ctx_b": "he",
            "ctx": "[header] Roofs [title] A man sits. he",
            "split": split,
            "split_type": "indomain",
            "label": 3,
            "endings": ["eats.", "[step] rips  tiles.", "sings.", "pulls off tiles. [title] Then rests."],
            "source_id": "activitynet~v_1",
        }
        put.lines(f"hellaswag/hellaswag_{split}.jsonl", [row, {**row, "ind": 30, "label": 0}])


def mmlu(put: Layout) -> None:
    for split, answers in (("dev", "BC"), ("test", "AD")):
        for subject in ("anatomy", "us_history"):
            rows = [
                {"q": f'What of, "{subject}"?', "a": "1", "b": "2, or 3", "c": "4", "d": "5", "answer": answer}
                for answer in answers
            ]
            put.csv(f"mmlu/data/{split}/{subject}_{split}.csv", rows, header=False)


def gsm8k(put: Layout) -> None:
    for split in ("train", "test"):
        row = {"question": "Tom has 2 cups and buys 3. How many?", "answer": "He has 2+3=<<2+3=5>>5 cups.\n#### 5"}
        put.lines(f"gsm8k/{split}.jsonl", [row, {**row, "question": "And Ann?"}])


def easy_vqa(put: Layout) -> None:
    for split, numbers in (("train", (0, 1)), ("test", (2, 3))):
        rows = [[f"what shape is in {way}?", "circle", n] for n in numbers for way in ("it", "the image")]
        put.json(f"easy_vqa/{split}/questions.json", rows)
        put.pictures(*(f"easy_vqa/{split}/images/{n}.png" for n in numbers))


def fsdd(put: Layout) -> None:
    put.sounds(*(f"fsdd/recordings/{digit}_theo_{take}.wav" for digit in range(10) for take in (1, 7)))


def digits_and_shapes(put: Layout) -> None:
    fsdd(put)
    colours, shapes = ("black", "blue", "brown", "gray", "green"), ("circle", "rectangle", "triangle")
    for split in ("train", "test"):
        numbers = range(15)
        rows = [
            row for n in numbers for row in (["what shape?", shapes[n % 3], n], ["what colour?", colours[n % 5], n])
        ]
        put.json(f"easy_vqa/{split}/questions.json", rows)
        put.pictures(*(f"easy_vqa/{split}/images/{n}.png" for n in numbers))


def cifar10(put: Layout) -> None:
    buffer = io.BytesIO()
    picture(1).save(buffer, format="JPEG")
    with zipfile.ZipFile(put.file("cifar10/CIFAR-10-images-subset.zip"), "w") as archive:
        for split in ("train", "test"):
            for label in ("cat", "truck"):
                archive.writestr(f"CIFAR-10-images/{split}/{label}/0001.jpg", buffer.getvalue())


def noto_emoji(put: Layout) -> None:
    rows = [{"hexcode": f"1F{number:03X}", "annotation": f"thing {number}"} for number in range(60)]
    put.json("noto_emoji/openmoji.json", rows)
    put.pictures(*(f"noto_emoji/png72/emoji_u{row['hexcode'].lower()}.png" for row in rows))


def shapes(put: Layout) -> None:
    for split in ("train.small", "test"):
        put.text(f"shapes/{split}.query_str.txt", "is a circle red\nis blue above green\n")
        put.text(f"shapes/{split}.output", "true\nfalse\n")
        np.save(put.file(f"shapes/{split}.input.npy"), np.full((2, 30, 30, 3), len(split), np.uint8))


def flickr8k(put: Layout, folder: str = "flickr8k") -> None:
    lines = [f"{n}_a.jpg#{k}\tA child {k} in a pool {n} ." for n in (1, 2, 3) for k in range(5)]
    put.text(f"{folder}/Flickr8k.token.txt", "\n".join(lines) + "\n")
    put.text(f"{folder}/Flickr_8k.trainImages.txt", "1_a.jpg\n")
    put.text(f"{folder}/Flickr_8k.testImages.txt", "2_a.jpg\n3_a.jpg\n")
    put.pictures(f"{folder}/Images/1_a.jpg", f"{folder}/Images/2_a.jpg")


def daquar(put: Layout) -> None:
    put.text("daquar/dataset/data.csv", "question,answer,image_id\nwhat is red,table,image1\nhow many,2,image2\n")
    for split, number in (("train", 1), ("test", 2)):
        put.text(f"daquar/dataset/{split}_images_list.txt", f"image{number}\n")
        put.pictures(f"daquar/dataset/images/image{number}.jpg")


def vqa_rad(put: Layout) -> None:
    row = {"answer": "Yes", "answer_type": "CLOSED ", "question": "Is it?"}
    rows = [{**row, "phrase_type": kind, "image_name": f"{kind}.jpg"} for kind in ("para", "test_para")]
    put.json("vqa_rad/VQA_RAD Dataset Public.json", rows)
    put.pictures(*(f"vqa_rad/VQA_RAD Image Folder/{row['image_name']}" for row in rows))


def speechocean762(put: Layout) -> None:
    for split, number in (("train", 1), ("test", 2)):
        put.text(f"speechocean762/{split}/text", f"{number}\tWE CALL IT BEAR\n")
        put.text(f"speechocean762/{split}/wav.scp", f"{number}\tWAVE/{number}.wav\n")
        put.sounds(f"speechocean762/WAVE/{number}.wav")


LAYOUTS: dict[str, Callable[[Layout], None]] = {
    "coco_karpathy": coco,
    "nocaps": nocaps,
    "flickr30k": lambda put: karpathy(put, "flickr30k/dataset_flickr30k.json", {}, "flickr30k/flickr30k-images"),
    "flickr8k": flickr8k,
    "flickr8k_full": lambda put: flickr8k(put, "flickr8k_full"),
    "daquar": daquar,
    "vqa_rad": vqa_rad,
    "speechocean762": speechocean762,
    "vqa_v2": lambda put: vqa(put, "vqa_v2", "v2_", usual=True),
    "okvqa": lambda put: vqa(put, "okvqa", "", usual=False),
    "gqa": gqa,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "mmmu": mmmu,
    "pope_random": pope,
    "pope_popular": pope,
    "pope_adversarial": pope,
    "librispeech": librispeech,
    "librispeech_other": librispeech,
    "audiocaps": audiocaps,
    "clotho_aqa": clotho_aqa,
    "esc50": esc50,
    "hellaswag": hellaswag,
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "easy_vqa": easy_vqa,
    "fsdd": fsdd,
    "digits_and_shapes": digits_and_shapes,
    "cifar10": cifar10,
    "noto_emoji": noto_emoji,
    "shapes": shapes,
    "wikitext2": lambda put: put.text("text/wikitext-2/test.txt", " \n = Title = \n \n It was a <unk> day . \n"),
    "tinyshakespeare": lambda put: put.text("text/tinyshakespeare/input.txt", "MARCUS: Speak, speak.\n" * 400),
}


@pytest.fixture
def make_hearing_answerer(make_bundle) -> Callable[[], Assistant]:
    """A random model that reads pictures and sounds."""
    return lambda: Assistant(make_bundle(audio={"kind": "linear"}, context=1600))


@pytest.fixture
def laid_out(tmp_path) -> Callable[[str], Path]:
    def lay_out(name: str) -> Path:
        LAYOUTS[name](Layout(tmp_path))
        return tmp_path

    return lay_out

"""Data sets in the layout that they are downloaded in, written small by the test, read by the configs of mmgpt."""

import json

import numpy as np
import PIL.Image
import pytest
import soundfile
from pydantic import TypeAdapter

from mmgpt.config import UserError, read_yaml
from mmgpt.datasets.media import Media
from mmgpt.datasets.readers.registry import AnySource, open_source

SHORT = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def root(tmp_path):
    return tmp_path


@pytest.fixture
def put(root):
    """Write a file below the root: json, text, a picture or a sound, told by the suffix."""

    def write(path, content=None):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".jpg", ".png")):
            PIL.Image.new("RGB", (8, 6), "red").save(root / path)
        elif path.endswith((".wav", ".flac", ".mp3")):
            soundfile.write(root / path, np.zeros(800, np.float32), 8000)
        else:
            (root / path).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    return write


def read(root, name, **changes):
    return open_source(TypeAdapter(AnySource).validate_python({**read_yaml(name, "data"), **changes}), root)


def media(sample) -> list[Media]:
    return [part for message in sample.messages for part in message.parts if isinstance(part, Media)]


def told(sample) -> list[tuple[str, str]]:
    """Question and answer of every branch; the first medium must load."""
    for medium in media(sample):
        medium.load()
    return [(one.messages[0].text, one.messages[-1].text) for one in sample.unbranched()]


OFFICIAL = {
    "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 25, "file_name": "000000000025.jpg"}],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "a cup \n"},
        {"image_id": 25, "id": 2, "caption": "a dog"},
        {"image_id": 9, "id": 3, "caption": "one cup"},
    ],
}


def karpathy(split: str, number: int, **more) -> dict:
    sentences = [{"raw": f"caption {number}", "tokens": [], "sentid": 1}, {"raw": f"again {number}", "sentid": 2}]
    return {"filename": f"{number}.jpg", "split": split, "sentences": sentences, "imgid": number, **more}


def test_official_coco_captions_give_a_picture_with_its_captions_as_branches(root, put):
    put("coco/annotations/captions_train2017.json", OFFICIAL)
    for image in OFFICIAL["images"]:
        put(f"coco/train2017/{image['file_name']}")
    source = read(root, "coco_captions")
    assert [source[n].key for n in range(len(source))] == ["coco_captions/train/9", "coco_captions/train/25"]
    asked = "Describe the picture."
    assert told(source[0]) == [(asked, "a cup"), (asked, "one cup")]
    assert [[turn.role for turn in branch] for branch in source[0].branches] == [["assistant"], ["assistant"]]
    assert told(source[1]) == [(asked, "a dog")]
    source = read(root, "coco_captions", prompt="Look: {image}", limit=1)
    assert [len(source), told(source[0])[0][0]] == [1, "Look: "]


def test_captions_that_share_their_prompt_are_rendered_as_the_separate_samples_are(root, put, make_bundle):
    put("coco/annotations/captions_train2017.json", OFFICIAL)
    put("coco/train2017/000000000009.jpg")
    sample = read(root, "coco_captions")[0]
    renderer = make_bundle().renderer
    whole = renderer.render(sample)
    for number, alone in enumerate(map(renderer.render, sample.unbranched()), start=1):
        own = [i for i, branch in enumerate(whole.branches) if branch in (0, number)]
        assert [whole.ids[i] for i in own] == alone.ids
        assert [whole.labels[i] for i in own] == alone.labels


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["1", "2"]),
        ({"restval": False}, ["1"]),
        ({"split": "val"}, ["3"]),
        ({"split": "test"}, ["4"]),
    ],
)
def test_karpathys_train_split_takes_the_rest_of_validation_unless_told_not_to(changes, expected, root, put):
    images = [
        karpathy("train", 1, filepath="train2014", cocoid=1),
        karpathy("restval", 2, filepath="val2014", cocoid=2),
        karpathy("val", 3, filepath="val2014", cocoid=3),
        karpathy("test", 4, filepath="val2014", cocoid=4),
    ]
    put("coco/dataset_coco.json", {"images": images, "dataset": "coco"})
    for image in images:
        put(f"coco/{image['filepath']}/{image['filename']}")
    source = read(root, "coco_karpathy", **changes)
    assert [source[n].key.rpartition("/")[2] for n in range(len(source))] == expected
    assert [answer for _, answer in told(source[0])] == [f"caption {expected[0]}", f"again {expected[0]}"]


def test_flickr_in_karpathys_layout_has_no_folders(root, put):
    put("flickr30k/dataset_flickr30k.json", {"images": [karpathy("test", 7)], "dataset": "flickr30k"})
    put("flickr30k/flickr30k-images/7.jpg")
    assert told(read(root, "flickr30k", split="test")[0])[0][1] == "caption 7"
    with pytest.raises(UserError, match=r"dataset_flickr30k.json: holds no split 'tset'; did you mean test\?"):
        read(root, "flickr30k", split="tset")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "not a readable json file"),
        ([1], "has no list of images"),
        ({"images": {}}, "has no list of images"),
        ({"images": [{"id": 1}], "annotations": []}, "not in the official layout .KeyError: 'file_name'"),
        ({"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}, "not in the official layout .KeyError: 1"),
        ({"images": [{"filename": "a.jpg"}]}, "not in the official layout .KeyError: 'split'"),
        ({"images": [], "annotations": []}, "holds no samples"),
    ],
)
def test_captions_of_another_shape_are_refused(content, wrong, root, put):
    put("coco/annotations/captions_train2017.json", content)
    with pytest.raises(UserError, match=rf"captions_train2017.json: {wrong}"):
        read(root, "coco_captions")


@pytest.mark.parametrize(
    ("name", "path", "tree", "first"),
    [
        (
            "coco_captions",
            "coco/annotations/captions_train2017.json",
            {**OFFICIAL, "annotations": OFFICIAL["annotations"][::2]},
            "25",
        ),
        (
            "coco_karpathy",
            "coco/dataset_coco.json",
            {"images": [karpathy("restval", 1), {**karpathy("train", 2), "sentences": []}]},
            "'2.jpg'",
        ),
    ],
)
def test_pictures_without_a_caption_are_told_or_skipped_when_asked(name, path, tree, first, root, put):
    put(path, tree)
    rule = f"{path.rpartition('/')[2]}: images without a caption: 1, the first of them {first}; caption them, or say"
    with pytest.raises(UserError, match=rf"{rule} missing_captions: skip"):
        read(root, name)
    assert len(read(root, name, missing_captions="skip")) == 1


def test_a_picture_of_another_split_needs_no_caption(root, put):
    put("coco/dataset_coco.json", {"images": [karpathy("train", 1), {**karpathy("val", 2), "sentences": []}]})
    assert len(read(root, "coco_karpathy")) == 1


@pytest.mark.parametrize("name", ["vqa_v2", "okvqa"])
def test_official_vqa_groups_the_questions_of_a_picture_and_keeps_the_ten_answers(name, root, put):
    prefix = "vqa_v2/v2_" if name == "vqa_v2" else "okvqa/"
    questions = [{"image_id": n, "question": f"q{q}?", "question_id": q} for n, q in ((42, 1), (7, 2), (42, 3))]
    answers = [{"answer": word, "answer_id": n} for n, word in enumerate(["red"] * 6 + ["pink"] * 4)]
    annotations = [
        {"question_id": q, "image_id": 0, "multiple_choice_answer": f"red{q}", "answers": answers} for q in (3, 2, 1)
    ]
    put(f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    put(f"{prefix}mscoco_val2014_annotations.json", {"annotations": annotations})
    put("coco/val2014/COCO_val2014_000000000042.jpg")
    put("coco/val2014/COCO_val2014_000000000007.jpg")
    source = read(root, name, split="val")
    assert told(source[0]) == [(f"q1?{SHORT}", "red1"), (f"q3?{SHORT}", "red3")]
    assert [source[1].key, told(source[1])] == [f"{name}/val/7", [(f"q2?{SHORT}", "red2")]]
    assert [truth.answers for truth in source[0].truths] == [("red",) * 6 + ("pink",) * 4] * 2
    with pytest.raises(UserError, match="a split without annotations has no answers to learn"):
        read(root, name, split="val", annotations=None)
    put(f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": questions[:1]})
    with pytest.raises(UserError, match=r"annotations without a question in .*: 2, the first of them 3; give the que"):
        read(root, name, split="val")
    assert len(read(root, name, split="val", missing_questions="skip")) == 1
    put(f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    put(f"{prefix}mscoco_val2014_annotations.json", {"annotations": annotations[:1]})
    with pytest.raises(UserError, match=r"no answers to 2 questions of .*: \[1, 2\]"):
        read(root, name, split="val")
    put(f"{prefix}mscoco_val2014_annotations.json", {"annotations": [{"question_id": q} for q in (1, 2, 3)]})
    with pytest.raises(UserError, match=r"not in the official layout .KeyError: 'answers'"):
        read(root, name, split="val")
    with pytest.raises(UserError, match="no such file"):
        read(root, name, split="test")


def test_librispeech_is_read_from_its_folders(root, put):
    for subset, chapter, lines in (
        ("train-clean-100", "103/1240", ["103-1240-0000 CHAPTER ONE", "103-1240-0001 IT'S LATE"]),
        ("dev-clean", "84/121123", ["84-121123-0000 GO"]),
    ):
        folder = f"LibriSpeech/{subset}/{chapter}"
        put(f"{folder}/{chapter.replace('/', '-')}.trans.txt", "\n".join(lines) + "\n")
        for line in lines:
            put(f"{folder}/{line.split()[0]}.flac")
    source = read(root, "librispeech")
    assert [told(source[n]) for n in range(2)] == [[("What is said?", "chapter one")], [("What is said?", "it's late")]]
    assert source[1].key == "librispeech/train/103-1240-0001"
    source = read(root, "librispeech", subsets=["dev-clean", "train-clean-100"], lower=False)
    assert [told(source[n])[0][1] for n in range(len(source))] == ["GO", "CHAPTER ONE", "IT'S LATE"]
    with pytest.raises(UserError, match=r"train-other-500: no such file or folder"):
        read(root, "librispeech", subsets=["train-other-500"])
    put("LibriSpeech/dev-clean/84/121123/84-121123.trans.txt", "84-121123-0000\n")
    with pytest.raises(UserError, match=r"'84-121123-0000' is no utterance"):
        read(root, "librispeech", subsets=["dev-clean"])


def test_sounds_with_captions_in_csv_files(root, put):
    header = "audiocap_id,youtube_id,start_time,caption\n"
    put("audiocaps/test.csv", f'{header}1,aB-c,30,"A dog, barking"\n2,aB-c,30,Barks\n3,gone,0,Rain\n')
    put("audiocaps/test/aB-c.wav")
    source = read(root, "audiocaps", split="test")
    assert [told(source[n]) for n in range(len(source))] == [
        [("Describe the sound.", "A dog, barking"), ("Describe the sound.", "Barks")]
    ]
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    put("clotho/clotho_captions_development.csv", f"{header}A b.wav,one,two,three,four,five\n")
    put("clotho/development/A b.wav")
    (sample,) = (read(root, "clotho")[n] for n in range(1))
    assert [answer for _, answer in told(sample)] == ["one", "two", "three", "four", "five"]
    assert sample.key == "clotho/development/A b.wav"


def test_common_voice_sentences_may_hold_single_quotation_marks(root, put):
    put("common_voice/dev.tsv", 'client_id\tpath\tsentence\nx\ta.mp3\t"Open only\ny\tb.mp3\tNo "one" said\n')
    put("common_voice/clips/a.mp3")
    put("common_voice/clips/b.mp3")
    source = read(root, "common_voice", split="dev")
    assert [told(source[n])[0][1] for n in range(len(source))] == ['"Open only', 'No "one" said']


def test_scienceqa_lists_its_choices_and_shows_a_picture_where_there_is_one(root, put):
    one = {"question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": "Look.", "split": "val"}
    put(
        "scienceqa/problems.json",
        {"1": {**one, "image": "image.png"}, "2": {**one, "image": None}, "3": {**one, "split": "test"}},
    )
    put("scienceqa/val/1/image.png")
    source = read(root, "scienceqa", split="val")
    asked = "Look.\nWhich?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    assert [told(source[n]) for n in range(len(source))] == [[(asked, "B")]] * 2
    assert [len(media(source[n])) for n in range(2)] == [1, 0]
    assert source[1].key == "scienceqa/val/2"


def test_textvqa_gqa_and_llava(root, put):
    row = {"question": "What word?", "image_id": "ab", "answers": ["stop", "go", "go", "stop!"], "question_id": 1}
    put("textvqa/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    put("textvqa/train_images/ab.jpg")
    assert told(read(root, "textvqa", split="val")[0]) == [(f"What word?{SHORT}", "go")]
    gqa = {n: {"imageId": "7", "question": f"q{n}", "answer": f"a{n}"} for n in ("01", "02")}
    put("gqa/val_balanced_questions.json", gqa)
    put("gqa/images/7.jpg")
    assert told(read(root, "gqa", split="val")[0]) == [(f"q01{SHORT}", "a01"), (f"q02{SHORT}", "a02")]
    talk = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "Red."}]
    put("llava/llava_instruct_150k.json", [{"id": "1", "image": "1.jpg", "conversations": talk}])
    put("coco/train2017/1.jpg")
    assert told(read(root, "llava_instruct")[0]) == [("What?\n", "Red.")]


def kaldi(put, text, scp="u1 a/u1.wav\nu2\ta/u2.wav\n"):
    put("set/train/text", text)
    put("set/train/wav.scp", scp)
    for name in ("u1", "u2"):
        put(f"set/a/{name}.wav")
    return {"reader": "kaldi", "label": "said", "path": "set/{split}", "sounds": "set"}


def opened(root, tree):
    return open_source(TypeAdapter(AnySource).validate_python(tree), root)


def test_a_folder_of_kaldi_gives_a_sample_an_utterance(root, put):
    tree = kaldi(put, "u2 TWO WORDS\nu1\tONE\n")
    assert [told(one) for one in opened(root, tree)] == [[("What is said?", "TWO WORDS")], [("What is said?", "ONE")]]
    source = opened(root, {**tree, "lower": True})
    assert (source[0].messages[-1].text, source[0].key) == ("two words", "said/train/u2")


@pytest.mark.parametrize(
    ("text", "scp", "fault"),
    [
        ("u1 ONE\n", "u1 a/u1.wav\nu2 a/u2.wav\n", r"text: lacks 1 utterances, the first of them u2"),
        ("u1 ONE\nu2 TWO\n", "u1 a/u1.wav\n", r"wav\.scp: lacks 1 utterances, the first of them u2"),
        ("u1 ONE\nu1 TWO\n", "u1 a/u1.wav\n", "u1 stands twice; leave one of the two"),
        ("u1\n", "u1 a/u1.wav\n", r"'u1' is an utterance's name alone; write what it is"),
        (
            "u1 ONE\n",
            "u1 sph2pipe -f wav a/u1.sph |\n",
            r"wav\.scp: u1 is made by a command; write its sound",
        ),
    ],
)
def test_a_folder_of_kaldi_that_does_not_fit_is_refused(text, scp, fault, root, put):
    tree = kaldi(put, text, scp)
    with pytest.raises(UserError, match=fault):
        opened(root, tree)


def test_parts_of_recordings_are_refused(root, put):
    tree = kaldi(put, "u1 ONE\n", "u1 a/u1.wav\n")
    put("set/train/segments", "u1 r 0 1\n")
    with pytest.raises(UserError, match="segments: parts of recordings are not read; cut them into files first"):
        opened(root, tree)

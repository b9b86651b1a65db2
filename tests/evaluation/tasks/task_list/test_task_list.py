"""Every task that comes with mmgpt on real data, run from end to end on samples in the layout of its download."""

from pathlib import Path

import pytest

import mmgpt.configs
from mmgpt.config import UserError, build, read_yaml
from mmgpt.datasets.media import Audio, Image
from mmgpt.evaluation.run import evaluate
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task

NAMES = sorted(path.stem for path in (Path(mmgpt.configs.__file__).parent / "tasks").glob("*.yaml"))
TASKS = [name for name in NAMES if read_yaml(name, "tasks")["data"]["reader"] not in ("world", "episodes")]
WITHOUT_POOL = {"pope_random", "pope_popular", "pope_adversarial", "wikitext2", "tinyshakespeare"}
LETTERS = "Answer with the option's letter from the given choices directly."


def asked(name: str, root: Path, number: int = 0) -> str:
    """The prompt of an item, media as their kind in brackets."""
    item = Task(load_task(name), root).items()[number]
    return "".join(getattr(p, "text", "<" + type(p).__name__ + ">") for m in item.messages for p in m.parts)


@pytest.mark.parametrize("name", [name for name in TASKS])
def test_a_task_runs_from_its_official_files_to_its_scores(name, laid_out, make_hearing_answerer):
    root = laid_out(name)
    config = load_task(name)
    brief = config.model_copy(update={"generate": config.generate.model_copy(update={"max_new_tokens": 3})})
    shots = [0] if name in WITHOUT_POOL else [0, 1]
    found = evaluate(make_hearing_answerer(), [brief], shots=shots, limit=3, data_root=root)
    for count, result in zip(shots, found.results, strict=True):
        assert set(result["metrics"]) == set(config.metrics)
        samples = found.samples[f"{name}-{count}"]
        assert len(samples) == result["n"] == len(Task(config, root).items(limit=3)) > 0
        assert all(len(sample["exemplars"]) == count for sample in samples)


@pytest.mark.parametrize("name", TASKS)
def test_the_media_of_a_task_can_be_read_and_the_pool_is_not_the_test_data(name, laid_out):
    root = laid_out(name)
    task = Task(load_task(name), root)
    for item in task.items(limit=3):
        for message in item.messages:
            for part in message.parts:
                assert not isinstance(part, Image | Audio) or part.load() is not None
    assert (task.pool is None) == (name in WITHOUT_POOL)
    assert task.config.exemplars != task.config.data


@pytest.mark.parametrize("name", TASKS)
def test_a_task_whose_data_is_absent_says_what_to_download_and_where_it_goes(name, tmp_path):
    with pytest.raises(UserError) as told:
        Task(load_task(name), tmp_path)
    assert f"task {name}: {tmp_path}" in str(told.value)
    assert load_task(name).download
    assert f"its data: {load_task(name).download}" in str(told.value)


def test_no_exemplars_are_opened_where_no_shots_are_asked_for(laid_out):
    root = laid_out("gqa")
    (root / "gqa/train_balanced_questions.json").unlink()
    assert Task(load_task("gqa"), root, with_pool=False).pool is None
    with pytest.raises(UserError, match=r"train_balanced_questions\.json: no such file.*; its data: cs\.stanford\.edu"):
        Task(load_task("gqa"), root)


@pytest.mark.parametrize(
    ("name", "prompt", "references", "choices", "tags"),
    [
        ("nocaps", "<Image>Describe the picture.", [f"A goat {k} on a hill 0" for k in range(10)], [], "in-domain"),
        ("audiocaps", "<Audio>Describe the sound.", [f"a bell rings {n}" for n in range(5)], [], ""),
        ("textvqa", "<Image>what brand?\nAnswer the question using a single word or phrase.",
         ["nokia"] * 7 + ["n"] * 3, [], ""),
        ("okvqa", "<Image>What is 90?\nAnswer the question using a single word or phrase.",
         ["red"] * 6 + ["pink"] * 4, [], "other what is"),
        ("scienceqa", f"<Image>\nWhich is hot?\nA. ice\nB. fire\n{LETTERS}", ["B"], ["ice", "fire"], "natural science"),
        ("mmmu", f"See <Image>. Which is it?\nA. one\nB. it's <Image>\n{LETTERS}",
         ["B"], ["one", "it's <image 2>"], "Accounting"),
        ("pope_popular", "<Image>Is there a dog in the image?\nAnswer the question using a single word or phrase.",
         ["yes"], [], ""),
        ("librispeech_other", "<Audio>What is said?", ["hello world"], [], ""),
        ("clotho_aqa", "<Audio>Is it a bird?\nAnswer the question using a single word or phrase.",
         ["yes", "yes", "no"], [], ""),
        ("esc50", "<Audio>What is heard?", ["clock tick"], ["clock tick", "dog", "rain"], ""),
        ("hellaswag", "Roof work:  Roofs. A man sits. he", ["pulls off tiles.. Then rests."],
         ["eats.", " rips tiles.", "sings.", "pulls off tiles.. Then rests."], "indomain"),
        ("mmlu", 'What of, "anatomy"?\nA. 1\nB. 2, or 3\nC. 4\nD. 5\nAnswer:', ["A"], list("ABCD"), "anatomy"),
        ("gsm8k", "Question: Tom has 2 cups and buys 3. How many?\nAnswer:",
         ["He has 2+3=<<2+3=5>>5 cups.\n#### 5"], [], ""),
        ("shapes", "<Image>is a circle red?", ["yes"], ["yes", "no"], ""),
        ("wikitext2", "", [" = Title = "], [], ""),
    ],
)  # fmt: skip
def test_what_a_task_asks_and_takes_for_right(name, prompt, references, choices, tags, laid_out):
    root = laid_out(name)
    item = Task(load_task(name), root).items(limit=1)[0]
    assert asked(name, root) == prompt
    assert item.references == tuple(references)
    assert item.reference == references[0]
    assert item.choices == tuple(choices)
    assert " ".join(item.tags.values()) == tags


def test_captions_of_a_picture_are_one_item_and_its_questions_are_several(laid_out):
    root = laid_out("coco_karpathy")
    items = Task(load_task("coco_karpathy"), root).items()
    assert [item.key for item in items] == ["coco_karpathy/test/12", "coco_karpathy/test/13"]
    assert items[1].references == ("A dog number 3 runs.", "A dog number 3 sits.")
    root = laid_out("clotho_aqa")
    items = Task(load_task("clotho_aqa"), root).items()
    assert [(item.key[-2:], item.question[:4], item.references) for item in items] == [
        ("#0", "Is i", ("yes", "yes", "no")),
        ("#3", "What", ("bird", "birds", "bird")),
    ]


def test_mmmu_s_other_pictures_stand_first_and_a_second_tag_stays_a_word(laid_out):
    root = laid_out("mmmu")
    data = load_task("mmmu").data.model_copy(update={"prompt": "{image}<image 2> is like <image 2>", "ignore": ["*"]})
    parts = Task(load_task("mmmu").model_copy(update={"data": data}), root).items()[0].messages[0].parts
    assert [getattr(part, "text", "picture") for part in parts] == ["picture", "picture", " is like ", "<image 2>"]


@pytest.mark.parametrize("name", ["tinyshakespeare", "wikitext2", "shapes"])
def test_a_task_of_the_packs_without_files_of_media_opens(name, data_packs):
    task = Task(load_task(name), data_packs)
    items = task.items()
    if name == "shapes":
        assert (len(items), len({item.key for item in items}), len(task.pool)) == (1024, 1024, 640)
        assert {item.choices for item in items} == {("yes", "no")}
        return
    said = "".join(item.reference for item in items)
    if name == "tinyshakespeare":
        text = (data_packs / "text/tinyshakespeare/input.txt").read_text(encoding="utf-8")
        assert said == text[round(0.9 * len(text)) :], "each character is scored once"
    else:
        lines = (data_packs / "text/wikitext-2/test.txt").read_text(encoding="utf-8").split("\n")
        assert said == "".join(line for line in lines if line.strip())


def test_more_shots_than_the_pool_holds_are_refused(laid_out, make_hearing_answerer):
    root = laid_out("gqa")
    with pytest.raises(UserError, match="2 shots asked for, it has 1 exemplars"):
        evaluate(make_hearing_answerer(), ["gqa"], shots=[2], data_root=root)
    root = laid_out("pope_random")
    with pytest.raises(UserError, match="1 shots asked for, it has no exemplars"):
        evaluate(make_hearing_answerer(), ["pope_random"], shots=[1], data_root=root)


def test_a_class_that_no_exemplar_has_is_refused(laid_out):
    root = laid_out("esc50")
    table = root / "esc50/meta/esc50.csv"
    table.write_text(table.read_text().replace("5,3,clock_tick", "5,3,sheep"))
    with pytest.raises(UserError, match="its reference 'sheep' is not among the choices: clock tick, dog, rain"):
        Task(load_task("esc50"), root).items()


def test_ranking_offers_the_references_of_all_items_or_so_many_of_them(laid_out):
    root = laid_out("coco_karpathy")
    tree = load_task("coco_karpathy").model_dump() | {"kind": "rank"}
    items = Task(build(TaskConfig, tree, "made"), root).items(limit=1)
    assert items[0].choices == tuple(f"A dog number {n} {way}." for n in (2, 3) for way in ("runs", "sits"))
    few = Task(build(TaskConfig, tree | {"candidates": 2}, "made"), root).items()
    assert [len(set(item.choices)) for item in few] == [2, 2]
    assert all(len(set(item.choices) & set(item.references)) == 1 for item in few)
    with pytest.raises(UserError, match="9 candidates asked for, only 2 other answers exist"):
        Task(build(TaskConfig, tree | {"candidates": 9}, "made"), root).items()

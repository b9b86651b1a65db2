import json
import random
import re
from pathlib import Path

import PIL.Image
import pytest
import yaml

import mmgpt
from mmgpt.applications.pipeline import run_recipe
from mmgpt.config import UserError
from mmgpt.run_log import read_log

README = Path(__file__).resolve().parents[2] / "README.md"
SMALL = [
    "model.decoder.width=64",
    "model.decoder.heads=4",
    "model.encoders.image.width=48",
    "model.encoders.image.depth=1",
    "tokenizer.num_samples=300",
    "stages.pretrain.steps=20",
    "model.encoders.audio.width=48",
    "model.encoders.audio.depth=1",
    "stages.look.steps=15",
    "stages.listen.steps=10",
    "stages.instruct.steps=80",
]


def write_task(folder: Path, name: str, world: str, size: int) -> str:
    (folder / f"{name}.yaml").write_text(
        f"name: {name}\n"
        f"data: {{reader: world, name: {world}, split: test, size: {size}}}\n"
        f"exemplars: {{reader: world, name: {world}, split: train, size: 300}}\n"
        "generate: {max_new_tokens: 16}\n"
    )
    return str(folder / f"{name}.yaml")


@pytest.fixture
def task_file(tmp_path) -> str:
    return write_task(tmp_path, "few_questions", "scene_questions", 15)


@pytest.fixture
def evaluated(make_recipe, tmp_path, task_file):
    recipe = make_recipe({"steps": 2}, tasks=[task_file])
    return lambda **options: run_recipe(recipe, out=tmp_path / "run", device="cpu", **options)


@pytest.mark.train
def test_a_small_quickstart_learns_is_scored_reported_and_answers(tmp_path, task_file, scenes):
    told = []
    tasks = [task_file, write_task(tmp_path, "few_scenes", "scene_questions", 2)]
    tasks += [write_task(tmp_path, f"few_{world}", world, 2) for world in ("sound_questions", "scene_sounds")]
    finished = mmgpt.train(
        "quickstart",
        overrides=[*SMALL, f"tasks=[{', '.join(tasks)}]"],
        out=tmp_path / "run",
        device="cpu",
        on_progress=lambda *one: told.append(one),
    )
    losses = [record["loss"] for record in read_log(finished.folder / "log.jsonl") if "loss" in record]
    assert losses[-1] < 0.25 * losses[0]
    assert finished.evaluation.value("few_questions") > 0.2
    assert finished.evaluation.results[0]["blind"].keys() == {"exact_match", "text_only"}
    assert ("few_questions", 120, 120) in told
    assert finished.report == finished.folder / "report.html"
    assert "few_questions" in finished.report.read_text()
    stored = json.loads((finished.folder / "eval" / "results.json").read_text())
    assert stored["results"] == finished.evaluation.results
    files = [file.name for example in finished.examples for file in example.files]
    assert sorted(files) == ["0.png", "1.png", "2.wav", "3.png", "3.wav"]
    shown = re.search(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    exec(shown[1].replace("runs/quickstart", str(finished.folder)), {})
    assert stored["model"] == str(finished.folder)
    model = mmgpt.load(finished.folder, verify=True)
    item = scenes[0].unbranched()[1].messages[:-1]
    reply = model.chat(item)
    assert reply.finish_reason == "stop"
    assert reply.text == mmgpt.load(finished.folder).chat(item).text


@pytest.mark.train
def test_a_tiny_model_learns_to_name_the_colour_of_a_picture(make_recipe, tmp_path):
    rng = random.Random(0)
    colours = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (240, 220, 40)}
    for split, count in (("train", 64), ("test", 40)):
        (tmp_path / split).mkdir()
        for number in range(count):
            name, shade = rng.choice(sorted(colours.items()))
            near = tuple(channel + rng.randint(-15, 15) for channel in shade)
            PIL.Image.new("RGB", (16, 16), near).save(tmp_path / split / f"{name}-{number}.png")
    data = {"reader": "table", "path": ".", "files": "{split}/{colour}-{number}.png", "image": "{file}"}
    data |= {"prompt": "{image}Which colour?", "answer": "{colour}"}
    task = {"name": "colours", "data": data | {"split": "test"}, "exemplars": data, "generate": {"max_new_tokens": 8}}
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(task))
    stage = {"data": [data], "steps": 60, "batch_size": 16}
    recipe = make_recipe(stage, tasks=[str(tmp_path / "colours.yaml")])
    found = run_recipe(recipe, out=tmp_path / "run", data_root=tmp_path, device="cpu").evaluation
    assert found.value("colours") > 0.9
    assert found.results[0]["blind"]["exact_match"]["value"] < 0.5
    assert found.results[0]["blind"]["text_only"]["exact_match"]["value"] < 0.5


@pytest.mark.train
def test_a_finished_run_is_scored_again_but_not_trained_again(evaluated):
    first = evaluated()
    before = (first.folder / "log.jsonl").read_bytes()
    again = evaluated(on_record=lambda record: pytest.fail("trained again"))
    assert (first.folder / "log.jsonl").read_bytes() == before
    assert again.evaluation.samples == first.evaluation.samples


@pytest.mark.train
def test_a_recipe_without_tasks_is_reported_without_scores(make_recipe, tmp_path):
    finished = run_recipe(make_recipe({"steps": 1}), out=tmp_path / "run", device="cpu")
    assert finished.evaluation is None
    assert not (tmp_path / "run" / "eval").exists()
    assert finished.report.is_file()


def test_a_misspelt_task_is_refused_before_the_training(make_recipe, tmp_path):
    with pytest.raises(UserError, match="did you mean scene_questions"):
        run_recipe(
            make_recipe({"steps": 1}, tasks=["scene_question"]),
            out=tmp_path / "run",
            device="cpu",
            on_record=lambda record: pytest.fail("trained"),
        )


def test_absent_data_of_a_task_are_told_before_the_training(make_recipe, tmp_path):
    with pytest.raises(UserError, match="set --data-root"):
        run_recipe(
            make_recipe({"steps": 1}, tasks=["easy_vqa"]),
            out=tmp_path / "run",
            data_root=tmp_path,
            device="cpu",
            on_record=lambda record: pytest.fail("trained"),
        )

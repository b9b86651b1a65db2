import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import build
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation import scorer
from mmgpt.evaluation.answer_cache import AnswerCache, digest_of
from mmgpt.evaluation.predict import Prediction
from mmgpt.evaluation.run import Evaluation, evaluate
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import TaskConfig, load_task
from mmgpt.files import write_folder
from mmgpt.generation.assistant import Assistant

CHOICES = ["circle", "triangle", "rectangle", "red", "green", "blue", "teal", "yes", "no"]
KINDS = ["greedy", "sampled", "choose"]


def task(kind: str, **changes) -> TaskConfig:
    changes = {
        "greedy": {},
        "sampled": {"generate": {"max_new_tokens": 8, "temperature": 1.0}},
        "choose": {"kind": "choose", "choices": CHOICES, "metrics": ["choice_accuracy"]},
    }[kind] | changes
    return build(TaskConfig, load_task("easy_vqa").model_dump() | changes, "made")


class Counting(Assistant):
    """Counts the conversations it was asked."""

    def __init__(self, bundle) -> None:
        super().__init__(bundle)
        self.asked = 0

    def replies(self, messages, **options):
        self.asked += len(messages)
        return super().replies(messages, **options)

    def choose(self, messages, choices, **options):
        self.asked += len(messages)
        return super().choose(messages, choices, **options)


class Killed(Exception):
    pass


def killed_after(count: int):
    def on_progress(name: str, done: int, total: int) -> None:
        if done >= count:
            raise Killed

    return on_progress


def told(found: Evaluation) -> list:
    """All but what may differ: times, and log-probabilities to their rounding."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in found.results]
    return [rows, [row["prediction"] for rows in found.samples.values() for row in rows]]


@pytest.fixture
def counting(answerer) -> Counting:
    return Counting(answerer.bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_that_was_killed_goes_on_where_it_was(kind, counting, easy_vqa, tmp_path):
    options = {"shots": [0, 1], "data_root": easy_vqa, "blind": True}
    straight = evaluate(counting, [task(kind)], **options)
    asked = counting.asked
    assert 42 < asked <= 84  # blind, some prompts are the same
    with pytest.raises(Killed):
        evaluate(counting, [task(kind)], out=tmp_path, batch_size=4, on_progress=killed_after(12), **options)
    (part,) = (tmp_path / "parts").iterdir()
    assert part.name == "easy_vqa-0-0.0.jsonl"
    with part.open("ab") as file:
        file.write(b'{"digest": "the middle of a li')
    counting.asked = 0
    resumed = evaluate(counting, [task(kind)], out=tmp_path, batch_size=7, **options)
    assert counting.asked == asked - 12
    assert told(resumed) == told(straight)
    assert b"the middle" not in part.read_bytes()
    counting.asked = 0
    assert told(evaluate(counting, [task(kind)], out=tmp_path, **options)) == told(straight)
    assert counting.asked == 0


def test_a_changed_model_prompt_or_option_is_asked_again(counting, easy_vqa, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(easy_vqa, root)

    def asked(config: TaskConfig) -> int:
        counting.asked = 0
        evaluate(counting, [config], data_root=root, out=tmp_path / "out")
        return counting.asked

    assert asked(task("greedy")) == 21
    assert asked(task("greedy")) == 0
    assert asked(task("greedy", generate={"max_new_tokens": 4})) == 21
    PIL.Image.new("RGB", (64, 64), "red").save(root / "easy_vqa" / "test" / "images" / "22.png")
    assert asked(task("greedy")) == 3  # the questions about it
    counting.model.decoder.head.weight.data[5] += 1
    assert asked(task("greedy")) == 21


def test_a_cache_is_shared_by_evaluations_of_one_model(counting, easy_vqa, tmp_path):
    options = {"data_root": easy_vqa, "cache": tmp_path / "cache"}
    first = evaluate(counting, [task("greedy")], limit=9, **options)
    second = evaluate(counting, [task("greedy")], out=tmp_path / "b", **options)
    assert counting.asked == 21
    assert [row["prediction"] for row in second.samples["easy_vqa-0"][:9]] == [
        row["prediction"] for row in first.samples["easy_vqa-0"]
    ]
    lines = (tmp_path / "b" / "parts" / "easy_vqa-0-0.0.jsonl").read_text().splitlines()
    assert len(lines) == 21
    evaluate(counting, [task("greedy")], out=tmp_path / "b", data_root=easy_vqa)
    assert counting.asked == 21


def test_damaged_lines_are_left_out(tmp_path):
    kept = AnswerCache(tmp_path, None, "model", 0)
    kept.begin("a")
    kept.add("one", "key", Prediction("said \u00e9\ud83d\n", (-0.5, -1.0)))
    kept.close()
    with (tmp_path / "parts" / "a.0.jsonl").open("ab") as file:
        file.write(b'not json\n[1]\n{"digest": "two"}\n')
    assert AnswerCache(tmp_path, None, "model", 0).known == {"one": Prediction("said \u00e9\ud83d\n", (-0.5, -1.0))}


def test_a_prompt_is_known_by_what_its_media_hold(tmp_path):
    picture = PIL.Image.effect_noise((8, 8), 50).convert("RGB")
    picture.save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    other = PIL.Image.effect_noise((8, 8), 50).convert("RGB")

    def digest(*parts, **changes) -> str:
        item = TaskItem("key", (), "yes", ("yes",), ("yes", "no"))
        return digest_of("model", task(**{"kind": "choose"} | changes), 0, item, (Message.of("user", *parts),))

    path, copied = (Image(str(tmp_path / name)) for name in ("a.png", "b.png"))
    assert digest(path) == digest(copied) == digest(Image((tmp_path / "a.png").read_bytes()))
    assert digest(Image(picture)) == digest(Image(lambda: picture))
    tone = [0.0, 0.5, -0.5] * 100
    sounds = [digest(Audio(np.array(tone), rate=rate)) for rate in (8000, 16000)]
    made = [digest(path), digest(Image(picture)), digest(Image(other)), digest("a"), digest("b"), *sounds]
    made += [digest(path, "a"), digest("a", path), digest(path, length_normalise=True), digest(path, kind="greedy")]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_scores_and_exemplars_of_one(kind, answerer, easy_vqa, tmp_path):
    options = {"shots": [0, 2], "data_root": easy_vqa, "blind": True}
    alone = evaluate(answerer, [task(kind)], **options)
    second = evaluate(answerer, [task(kind)], out=tmp_path, place=(1, 2), **options)
    assert (second.results, second.samples) == ([], {})
    assert not (tmp_path / "results.json").exists()
    counting = Counting(answerer.bundle)
    first = evaluate(counting, [task(kind)], out=tmp_path, place=(0, 2), **options)
    assert 22 <= counting.asked <= 44
    assert told(first) == told(alone)
    for name, rows in alone.samples.items():
        assert [row["exemplars"] for row in first.samples[name]] == [row["exemplars"] for row in rows]
    assert json.loads((tmp_path / "results.json").read_text())["results"] == first.results


def test_a_process_that_does_not_answer_is_named(answerer, easy_vqa, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer, "PEER_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(scorer, "POLL_SECONDS", 0.01)
    evaluate(answerer, ["easy_vqa"], data_root=easy_vqa, out=tmp_path, place=(1, 3))
    with pytest.raises(TimeoutError, match="task easy_vqa: no answer from rank 2 of 3"):
        evaluate(answerer, ["easy_vqa"], data_root=easy_vqa, out=tmp_path, place=(0, 3))


RANK = """
import os, signal, torch
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
torch.set_num_threads(1)
from mmgpt.evaluation.run import evaluate

def on_progress(task, done, total):
    if done >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(model, ["easy_vqa"], shots=[1], data_root=root, out=out, batch_size=3, on_progress=on_progress)
"""


def test_processes_of_which_one_is_killed_go_on_to_the_scores_of_one(answerer, easy_vqa, tmp_path):
    write_folder(tmp_path / "model", lambda draft: save_bundle(answerer.bundle, draft, with_golden=False))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmgpt.cli.main", "mmgpt.applications.pipeline"])

    def start(rank: int, kill_after: int):
        names = {"model": tmp_path / "model", "root": easy_vqa, "out": tmp_path / "out", "rank": str(rank)}
        process = context.Process(target=exec, args=(RANK, {**names, "kill_after": kill_after}))
        process.start()
        return process

    first, killed = start(0, 99), start(1, 6)
    killed.join(60)
    assert killed.exitcode == -9
    part = tmp_path / "out" / "parts" / "easy_vqa-1-0.1.jsonl"
    assert len(part.read_text().splitlines()) == 6
    again = start(1, 99)  # while the first waits
    for process in (first, again):
        process.join(60)
        assert process.exitcode == 0
    assert len(part.read_text().splitlines()) == 10
    alone = evaluate(answerer, ["easy_vqa"], shots=[1], data_root=easy_vqa)
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {**row, "seconds": 0} == {**alone.results[0], "seconds": 0}
    samples = [json.loads(line) for line in (tmp_path / "out" / row["samples"]).read_text().splitlines()]
    assert samples == alone.samples["easy_vqa-1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_a_full_disk_is_told_with_the_file_of_the_answers(tmp_path):
    answers = AnswerCache(tmp_path, None, "model", 0)
    answers.begin("task-0")
    answers.close()
    with (
        Path("/dev/full").open("ab", buffering=0) as answers.part,
        pytest.raises(OSError, match=r"No space left on device: '/dev/full'"),
    ):
        answers.add("digest", "key", Prediction("a cat"))

"""Two processes on gloo against one. A process group that hangs fails by its timeout."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from resuming import train_until
from safetensors.torch import load_file

from mmgpt.applications import pipeline
from mmgpt.config import to_yaml
from mmgpt.datasets.readers.registry import open_source
from mmgpt.inputs.dataloader import StepDataset
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.locking import hold
from mmgpt.model.bundle import new_bundle
from mmgpt.run_log import read_log
from mmgpt.training.data_mix import order_of
from mmgpt.training.loop import train
from mmgpt.training.stage import dropout_seed
from mmgpt.training.train_state import checkpoint_steps

SECONDS = 180  # that a process group may take; it takes 45 on two slow cores alone
CONFORMER = {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2, "stem": 4, "kernel": 5}
SGD = {"optimizer": {"kind": "sgd"}, "learning_rate": 0.02, "schedule": {"kind": "constant", "warmup": 0}}
TIMES = {"tokens_per_second", "media_per_second", "seconds", "data_time"}
RANK = """
import os, sys
os.environ.update(environment)
for stream in (1, 2):
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
import torch
torch.set_num_threads(1)
exec(body)
"""
COMMAND = """
sys.argv = ["mmgpt", *arguments]
from mmgpt.cli.main import main
main()
"""
SUM_GRADIENTS = """
from torch import nn
from mmgpt import distributed
distributed.BUCKET_BYTES = 40
shapes = [(3,), (2, 2), (5,), (2,), (1,), (20,), (4,)]
parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
parameters.append(nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)))
parameters.append(nn.Parameter(torch.zeros(2), requires_grad=False))
with distributed.init_distributed("cpu") as joined:
    mine = [(0, 1, 2, 5, 7), (1, 3, 5, 7)][joined.rank]
    for place in mine:
        parameters[place].grad = torch.full_like(parameters[place], 1.0 + 10 * joined.rank + place)
    joined.all_reduce_gradients(parameters)
found = [None if p.grad is None else set(p.grad.flatten().tolist()) for p in parameters]
assert found == [{1.0}, {14.0}, {3.0}, {14.0}, None, {22.0}, None, {26.0}, None], found
"""


pytestmark = pytest.mark.usefixtures("one_thread")


class Group:
    """Two processes that know of each other as torchrun would have it; forked from one that has imported mmgpt."""

    def __init__(self, folder: Path, body: str, arguments: tuple[object, ...]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mmgpt.cli.main", "mmgpt.applications.pipeline"])
        self.files = [folder / f"rank{rank}.txt" for rank in range(2)]
        self.processes = []
        for rank, file in enumerate(self.files):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
            names = {
                "environment": {name: str(value) for name, value in {**environment, "MASTER_PORT": port}.items()},
                "told": str(file),
                "body": body,
                "arguments": [str(one) for one in arguments],
            }
            self.processes.append(context.Process(target=exec, args=(RANK, names), daemon=False))
            self.processes[-1].start()

    def end(self) -> list[int | None]:
        """Exit codes; None of a process that hung and was killed."""
        until = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def told(self) -> list[str]:
        return [file.read_text() for file in self.files]


@pytest.fixture
def start(tmp_path):
    return lambda body, *arguments: Group(tmp_path, body, arguments)


@pytest.fixture
def two_train(start, tmp_path):
    """Train a recipe in two processes by the command line."""

    def run(recipe, out: str) -> Group:
        (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
        options = ("--out", tmp_path / out, "--data-root", tmp_path, "--device", "cpu")
        return start(COMMAND, "train", tmp_path / "recipe.yaml", *options)

    return run


@pytest.fixture
def mixture(make_recipe, tmp_path):
    """A recipe whose draws alternate between pictures and sounds; `wrong` rows of the sounds are replaced by `row`."""

    def make(wrong: tuple[int, ...] = (), row: dict | None = None, tokenizer: dict | None = None, **stage):
        rng = np.random.default_rng(0)
        rows = []
        for number in range(10):
            seconds = 0.2 + 0.15 * number
            soundfile.write(tmp_path / f"{number}.wav", rng.normal(size=int(8000 * seconds)) * 0.1, 8000)
            question, answer = "<audio>How long is it?" + " Say." * number, "short" if number < 5 else "rather long"
            talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append(row if number in wrong else {"messages": talk, "audios": [f"{number}.wav"]})
        (tmp_path / "sounds.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = [{"reader": "world", "name": "scenes"}, {"reader": "messages", "path": "sounds.jsonl"}]
        model = make_recipe().model_dump(mode="json")["model"]
        model["decoder"]["zero_init"] = False  # at the identity, blocks learn nothing in their first step
        model["encoders"]["audio"], model["adapters"]["audio"] = CONFORMER, {"kind": "mlp", "stride": 2}
        options = {"data": data, "batch_size": 6, "steps": 4, "micro_batch_tokens": 400, **SGD, **stage}
        vocabulary = tokenizer or {"vocab_size": 300, "num_samples": 20}
        return make_recipe(options, model=model, tokenizer=vocabulary)

    return make


def weights_of(run: Path, folder: str = "final") -> dict[str, torch.Tensor]:
    return load_file(run / folder / "model.safetensors")


def assert_same_run(run: Path, other: Path) -> None:
    """Weights and losses to 1e-5, every count of the log."""
    torch.testing.assert_close(weights_of(run), weights_of(other), atol=1e-5, rtol=1e-5)
    logs = [read_log(folder / "log.jsonl") for folder in (run, other)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - TIMES:
            rounded = name == "grad_norm" or name.startswith("loss")
            assert ours[name] == (pytest.approx(theirs[name], rel=1e-5, abs=1e-5) if rounded else theirs[name]), name
        for name in ("tokens_per_second", "media_per_second"):
            amounts = [record["seconds"] * record[name] for record in (ours, theirs) if "loss" in record]
            assert amounts == pytest.approx(amounts[::-1], rel=0.2), name  # of all ranks; one rank's are half as many


def test_gradients_are_summed_where_any_rank_has_one_and_stay_absent_where_none_has(start):
    group = start(SUM_GRADIENTS)
    assert group.end() == [0, 0], group.told()


def test_ranks_draw_noise_of_their_own_and_the_first_that_of_one_process(make_recipe):
    recipe = make_recipe({}, {})
    seeds = [dropout_seed(recipe, stage, rank) for stage in recipe.stages for rank in range(4)]
    assert len(set(seeds)) == 8
    assert seeds[0] == dropout_seed(recipe, recipe.stages[0], 0)


@pytest.mark.train
def test_two_processes_of_disjoint_modalities_train_to_the_weights_of_one(mixture, two_train, tmp_path):
    recipe = mixture(save_every=1, keep_last=4)
    one, two = tmp_path / "one", tmp_path / "two"
    train(recipe, out=one, data_root=tmp_path, device="cpu")
    group = two_train(recipe, "two")
    assert group.end() == [0, 0], group.told()
    assert_same_run(two, one)
    first, last = weights_of(one, "stage0/checkpoint-1"), weights_of(one)
    for part in ("encoders.image.", "encoders.audio.", "decoder."):
        assert max(float((last[n] - first[n]).abs().max()) for n in last if n.startswith(part)) > 5e-4, part

    (stage,) = recipe.stages
    renderer = new_bundle(recipe.model, Tokenizer.load(two), recipe.template).renderer
    sources = [open_source(item, tmp_path) for item in stage.data]
    seen, passes = [], []
    for rank in range(2):
        options = {
            "objective": "respond",
            "batch_size": 6,
            "micro_batch_tokens": 400,
        }
        order = order_of(stage, sources, renderer, dropout_seed(recipe, stage, 0))
        share = list(islice(StepDataset(sources, order, renderer, **options, rank=rank, world_size=2), stage.steps))
        seen.append({kind for step in share for batch in step.batches for kind in batch.media})
        passes.append([len(step.batches) for step in share])
    assert seen == [{"image"}, {"audio"}]
    assert all(ours != theirs for ours, theirs in zip(*passes, strict=True)), passes


@pytest.mark.train
def test_two_processes_with_a_teacher_train_to_the_weights_of_one(make_recipe, two_train, tmp_path):
    teacher = train(make_recipe({"steps": 2}), out=tmp_path / "teacher", device="cpu").folder
    stage = {"teacher": str(teacher), "batch_size": 5, "micro_batch_tokens": 400, **SGD}
    recipe = make_recipe(stage, tokenizer={"path": str(teacher / "final")})
    group = two_train(recipe, "two")
    one = train(recipe, out=tmp_path / "one", device="cpu").folder
    assert group.end() == [0, 0], group.told()
    weights, expected = (load_file(run / "final" / "model.safetensors") for run in (tmp_path / "two", one))
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)
    losses = [
        [line["loss/distill"] for line in read_log(run / "log.jsonl") if "loss" in line]
        for run in (tmp_path / "two", one)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_only_the_first_process_writes_and_tells(mixture, two_train, tmp_path):
    group = two_train(mixture(steps=2), "two")
    assert group.end() == [0, 0], group.told()
    first, second = group.told()
    assert f"model:   {tmp_path / 'two' / 'final'}" in first
    assert second == ""
    steps = [record["step"] for record in read_log(tmp_path / "two" / "log.jsonl") if "loss" in record]
    assert steps == [1, 2]
    assert (tmp_path / "two" / "report.html").is_file()


@pytest.mark.train
def test_both_processes_are_refused_where_another_run_writes(mixture, two_train, tmp_path):
    with hold(tmp_path / "both" / ".lock"):
        group = two_train(mixture(), "both")
        assert group.end() == [2, 2], group.told()
    assert all("is writing there" in told for told in group.told())
    assert not (tmp_path / "both").exists()


@pytest.mark.train
def test_a_rank_whose_samples_are_all_skipped_takes_part_in_the_step(mixture, two_train, tmp_path):
    talk = [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "short"}]
    torn = {"messages": talk, "audios": ["absent.wav"]}
    recipe = mixture(wrong=tuple(range(9)), row=torn, max_skipped=1.0)
    train(recipe, out=tmp_path / "one", data_root=tmp_path, device="cpu")
    group = two_train(recipe, "two")
    assert group.end() == [0, 0], group.told()
    log = read_log(tmp_path / "two" / "log.jsonl")
    assert [record["skipped"] for record in log if "loss" in record][-1] >= 10
    assert "absent.wav" in next(record["reason"] for record in log if record.get("event") == "skipped")
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.train
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"wrong": (3, 4), "row": {"messages": [{"role": "user", "content": "?"}]}}, "no token is a target"),
        ({"wrong": (3, 4), "row": {"messages": [], "audios": []}, "max_skipped": 0.0}, "sounds/"),
        ({"batch_size": 1}, "batch_size=1 is less than the 2 processes that share each step"),
        ({"tokenizer": {"path": "absent.json"}}, "absent.json"),
    ],
    ids=["no-target", "no-message", "batch-size", "tokenizer"],
)
def test_a_fault_that_one_process_finds_ends_both_with_its_message(fault, told, mixture, two_train, tmp_path):
    group = two_train(mixture(**fault), "two")
    assert group.end() == [2, 2], group.told()
    assert all(told in output for output in group.told())
    assert not (tmp_path / "two" / "final").exists()


@pytest.mark.train
def test_too_many_skipped_samples_of_one_rank_stop_both(mixture, two_train, tmp_path):
    talk = [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "short"}]
    group = two_train(mixture(wrong=(1, 2, 3), row={"messages": talk, "audios": ["absent.wav"]}), "two")
    assert group.end() == [2, 2], group.told()
    ours, theirs = group.told()
    assert "samples could not be used, over max_skipped=0.01; first: sounds/" in ours
    assert theirs.splitlines()[-1] == ours.splitlines()[-1]


def wait_for_a_step(run: Path) -> None:
    until = time.monotonic() + SECONDS
    while not any("loss" in record for record in read_log(run / "log.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.train
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_one_process_goes_on(mixture, two_train, tmp_path):
    recipe = mixture(steps=100, learning_rate=0.002)
    group = two_train(recipe, "two")
    wait_for_a_step(tmp_path / "two")
    os.kill(group.processes[1].pid, signal.SIGTERM)
    assert group.end() == [130, 130], group.told()
    (step,) = checkpoint_steps(tmp_path / "two" / "stage0")
    assert 0 < step < 100
    assert f"stopped after step {step} of stage0, saved" in group.told()[0]
    train(recipe, out=tmp_path / "two", data_root=tmp_path, device="cpu")
    train(recipe, out=tmp_path / "one", data_root=tmp_path, device="cpu")
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.train
def test_a_process_that_is_killed_leaves_no_other_waiting_for_it(mixture, two_train, tmp_path):
    group = two_train(mixture(steps=1000), "two")
    wait_for_a_step(tmp_path / "two")
    os.kill(group.processes[1].pid, signal.SIGKILL)
    assert group.end() == [1, -signal.SIGKILL], group.told()


@pytest.mark.train
def test_two_processes_go_on_where_one_was_stopped(mixture, two_train, tmp_path):
    recipe = mixture(save_every=2)
    train(recipe, out=tmp_path / "one", data_root=tmp_path, device="cpu")
    train_until(3, recipe, out=tmp_path / "two", data_root=tmp_path)
    group = two_train(recipe, "two")
    assert group.end() == [0, 0], group.told()
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.train
def test_torchrun_stopped_by_a_signal_saves_and_goes_on(mixture, tmp_path):
    """As a cluster does it: SIGTERM to torchrun, which hands it to its processes and their data workers."""
    recipe = mixture(steps=100, learning_rate=0.002, workers=1)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmgpt"]
    command = [*launch, "train", "recipe.yaml", "--out", "two", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    wait_for_a_step(tmp_path / "two")
    process.terminate()
    trouble = process.communicate(timeout=SECONDS)[1]
    (step,) = checkpoint_steps(tmp_path / "two" / "stage0")
    assert f"stopped after step {step} of stage0, saved" in trouble
    assert 0 < step < 100
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    train(recipe, out=tmp_path / "one", data_root=tmp_path, device="cpu")
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_process_that_only_helped_neither_evaluates_nor_writes_a_report(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = make_recipe(tasks=["scene_questions"])
    monkeypatch.setattr(pipeline, "train", lambda recipe, **options: pipeline.Run(options["out"], recipe))
    finished = pipeline.run_recipe(recipe, out=tmp_path)
    assert (finished.folder, finished.evaluation, finished.examples) == (tmp_path, None, [])
    assert not finished.report.exists()

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resuming import assert_same_weights, train_in_two

from mmgpt.checkpoints.save_load import load_bundle
from mmgpt.config import UserError, to_yaml
from mmgpt.run_log import read_log
from mmgpt.training import train_state
from mmgpt.training.loop import train

KILL_SEED = 20261
OPTIMIZERS = [{"kind": "adamw"}, {"kind": "muon"}, {"kind": "muon", "muon_interval": 2}, {"kind": "sgd"}]
DRIVER = """
import sys, time, torch
from pathlib import Path
from torch.utils.data import get_worker_info
from mmgpt.datasets.worlds.world import WorldSource
from mmgpt.training.interrupt import Interrupted
from mmgpt.training.loop import train
torch.set_num_threads(1)
recipe, out, pause, ready = sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])
read = WorldSource.__getitem__
def read_slowly(self, index):
    time.sleep(pause if ready.exists() or get_worker_info() else 0)
    return read(self, index)
WorldSource.__getitem__ = read_slowly
def on_record(record):
    if record.get("event") == "tick":
        ready.write_text(f"{record['stage']} {record['step']}")
try:
    train(recipe, out=out, device="cpu", on_record=on_record)
except Interrupted as stop:
    print(stop)
    sys.exit(130)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def losses_by_step(run: Path) -> list[tuple[str, int, float]]:
    return [(r["stage"], r["step"], r["loss"]) for r in read_log(run / "log.jsonl") if "loss" in r]


def start(recipe: Path, run: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    """A training in a process group of its own, as a shell gives it one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", DRIVER, str(recipe), str(run), str(pause), str(run.with_suffix(".ready"))]
    run.with_suffix(".ready").unlink(missing_ok=True)
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_tick(run: Path, process: subprocess.Popen[str]) -> None:
    ready = run.with_suffix(".ready")
    while not ready.exists() or not ready.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.train
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("stop", [("first", 3), ("second", 2)], ids=["first-stage", "second-stage"])
def test_stopped_and_resumed_is_straight_bit_for_bit(optimizer, stop, make_recipe, tmp_path):
    stage = {"optimizer": {**optimizer, "weight_decay": 0.1}, "save_every": 1, "steps": 5, "learning_rate": 0.01}
    recipe = make_recipe(
        {"name": "first", **stage, "train": ["encoders.*", "adapters.*"]},
        {"name": "second", **stage, "data": [{"reader": "world", "name": n} for n in ("scenes", "stories")]},
    )
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(stop[1], recipe, stop[0], out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    assert losses_by_step(tmp_path / "straight") == losses_by_step(tmp_path / "broken")


@pytest.mark.train
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_resume_is_exact_where_a_part_has_seen_no_gradient_yet(optimizer, make_recipe, tmp_path):
    data = [{"reader": "world", "name": "stories", "weight": 5}, {"reader": "world", "name": "scenes", "weight": 1}]
    recipe = make_recipe({"data": data, "batch_size": 1, "steps": 7, "save_every": 1, "optimizer": optimizer})
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(2, recipe, out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.train
def test_dropout_draws_the_same_after_a_resume(make_recipe, tmp_path):
    tree = make_recipe().model_dump(mode="json")["model"]
    tree["decoder"] |= {"dropout": 0.3, "zero_init": False}
    recipe = make_recipe({"save_every": 1, "steps": 4}, model=tree)
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(3, recipe, out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.train
@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_sounds_are_the_same_after_a_resume(workers, make_bundle, make_recipe, tmp_path):
    augmented = {"speed": 0.1, "noise_snr": [10, 30], "time_masks": 2, "band_masks": 1}
    model = make_bundle(audio={"kind": "linear"}, conformer=augmented).model.config.model_dump(mode="json")
    data = [{"reader": "world", "name": "sounds", "size": 3}]  # each is shown again before and after the stop
    recipe = make_recipe({"data": data, "save_every": 1, "steps": 5, "workers": workers}, model=model)
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(3, recipe, out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.train
@pytest.mark.timeout(200)
def test_a_run_killed_three_times_at_random_ends_with_the_weights_of_an_unbroken_one(make_recipe, tmp_path):
    stage = {"steps": 24, "save_every": 3, "optimizer": {"kind": "muon"}}
    recipe = make_recipe({"name": "first", **stage, "train": ["encoders.*", "adapters.*"]}, {"name": "second", **stage})
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(recipe, out=straight, device="cpu")
    rng = random.Random(KILL_SEED)
    print("kill seed", KILL_SEED)
    for _ in range(3):
        process = start(tmp_path / "recipe.yaml", killed, pause=0.03)
        wait_for_tick(killed, process)
        seconds = rng.uniform(0.1, 1.2)
        time.sleep(seconds)
        at = killed.with_suffix(".ready").read_text()
        was_running = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"killed {seconds:.2f} s after its first step, near {at}")
        assert was_running, "the run ended before it could be killed; give it more steps"
        assert not (killed / "final").exists()
    last = start(tmp_path / "recipe.yaml", killed)
    trouble = last.communicate()[1]
    assert last.returncode == 0, trouble
    assert_same_weights(straight, killed)
    assert losses_by_step(straight) == losses_by_step(killed)
    assert len(losses_by_step(killed)) == 48
    load_bundle(killed, verify=True)


@pytest.mark.train
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_and_says_where_and_the_same_command_goes_on(workers, make_recipe, tmp_path):
    recipe = make_recipe({"steps": 12, "workers": workers})
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    train(recipe, out=tmp_path / "straight", device="cpu")
    run = tmp_path / "stopped"
    process = start(tmp_path / "recipe.yaml", run, pause=0.4)
    wait_for_tick(run, process)
    time.sleep(0.3)  # into the wait for the next step's data
    os.killpg(process.pid, signal.SIGINT)
    told, trouble = process.communicate(timeout=60)
    assert process.returncode == 130, trouble
    step = train_state.checkpoint_steps(run / "stage0")[-1]
    assert 0 < step < 12
    assert f"stopped after step {step} of stage0, saved {run / 'stage0' / f'checkpoint-{step}'}" in told
    again = start(tmp_path / "recipe.yaml", run)
    trouble = again.communicate(timeout=60)[1]
    assert again.returncode == 0, trouble
    assert_same_weights(tmp_path / "straight", run)
    assert losses_by_step(tmp_path / "straight") == losses_by_step(run)


@pytest.mark.train
def test_a_killed_writer_leaves_the_previous_checkpoint_loadable(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe({"save_every": 1, "steps": 4})
    train(recipe, out=tmp_path / "straight", device="cpu")
    real_save = train_state.save_bundle

    def die_in_the_third(bundle, draft, **options):
        if draft.name == ".checkpoint-3.draft":
            (draft / "model.safetensors").write_bytes(b"half a fi")
            raise KeyboardInterrupt
        real_save(bundle, draft, **options)

    monkeypatch.setattr(train_state, "save_bundle", die_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "broken", device="cpu")
    stage = tmp_path / "broken" / "stage0"
    assert {folder.name for folder in stage.iterdir()} == {"checkpoint-1", "checkpoint-2", ".checkpoint-3.draft"}
    load_bundle(tmp_path / "broken")
    monkeypatch.undo()
    train(recipe, out=tmp_path / "broken", device="cpu")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")
    assert not list(stage.glob(".*.draft"))


@pytest.mark.train
@pytest.mark.parametrize("file", ["config.yaml", "tokenizer.json"])
def test_a_run_killed_while_it_began_can_begin_again(file, make_recipe, tmp_path, monkeypatch):
    """The files of a run's first moment are there whole or not at all."""
    recipe = make_recipe({"steps": 1})
    train(recipe, out=tmp_path / "straight", device="cpu")
    real_replace = Path.replace

    def die_before_it_stands(self, target):
        if Path(target).name == file:
            raise KeyboardInterrupt
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", die_before_it_stands)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "broken", device="cpu")
    assert not (tmp_path / "broken" / file).exists()
    monkeypatch.undo()
    train(recipe, out=tmp_path / "broken", device="cpu")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.train
def test_only_the_last_checkpoints_are_kept_and_a_finished_run_is_not_trained_again(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe({"save_every": 1, "steps": 5, "keep_last": 2})
    train(recipe, out=tmp_path, device="cpu")
    assert train_state.checkpoint_steps(tmp_path / "stage0") == [4, 5]
    before = (tmp_path / "log.jsonl").read_bytes()
    monkeypatch.setattr("mmgpt.training.stage.train_step", lambda *args, **options: pytest.fail("trained again"))
    train(recipe, out=tmp_path, device="cpu")
    assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.train
def test_another_recipe_in_the_same_folder_is_refused_with_the_line_that_differs(make_recipe, tmp_path):
    train(make_recipe({"steps": 1}), out=tmp_path, device="cpu")
    with pytest.raises(UserError, match=r"there 'learning_rate: 0.003', now 'learning_rate: 0.5'"):
        train(make_recipe({"steps": 1, "learning_rate": 0.5}), out=tmp_path, device="cpu")


def test_a_half_written_last_line_of_the_log_is_passed_over(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"stage": "a", "step": 1, "loss": 2.0}\n{"stage": "a", "st')
    assert read_log(tmp_path / "log.jsonl") == [{"stage": "a", "step": 1, "loss": 2.0}]


@pytest.mark.train
def test_the_log_names_its_figures_as_the_hugging_face_trainer_does(make_recipe, tmp_path):
    data = [{"reader": "world", "name": name} for name in ("scenes", "stories")]
    train(make_recipe({"steps": 2, "data": data}), out=tmp_path, device="cpu")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    wanted = {"loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second", "data_time", "mfu"}
    assert wanted | {"loss/scenes", "loss/stories"} <= last.keys()

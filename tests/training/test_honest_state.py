"""A run's state is honest: changed data, a second writer, half a copy and a full disk are told, and nothing is lost."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from resuming import train_until
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmgpt.checkpoints import convert
from mmgpt.checkpoints.save_load import load_bundle
from mmgpt.cli.main import main
from mmgpt.config import UserError, to_yaml
from mmgpt.locking import hold
from mmgpt.run_log import RunLog, read_log
from mmgpt.training import loop, train_state
from mmgpt.training.loop import train
from mmgpt.training.recipe import Recipe
from mmgpt.training.train_state import checkpoint_steps

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.train]


def write_rows(root: Path, answers: list[str]) -> None:
    rows = [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}] for answer in answers]
    (root / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def recipe(make_recipe) -> Recipe:
    return make_recipe({"data": [{"reader": "messages", "path": "rows.jsonl"}], "save_every": 1})


@pytest.fixture(scope="module")
def begun(recipe, tmp_path_factory) -> Path:
    """A root with rows.jsonl, a run `straight` that ended, a run `broken` that stopped after two of four steps."""
    root, threads = tmp_path_factory.mktemp("begun"), torch.get_num_threads()
    torch.set_num_threads(1)
    write_rows(root, ["red", "blue", "green", "pink"])
    train(recipe, out=root / "straight", data_root=root, device="cpu")
    train_until(3, recipe, out=root / "broken", data_root=root)
    (root / "recipe.yaml").write_text(to_yaml(recipe))
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def root(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def go_on(root, recipe) -> Callable[..., None]:
    def run(**options) -> None:
        train(recipe, out=root / "broken", data_root=root, device="cpu", **options)

    return run


@pytest.fixture
def command(root, mmgpt_says) -> Callable[[], tuple[int, str]]:
    """The command line that goes on with the stopped run: its exit code, and its errors."""

    def run() -> tuple[int, str]:
        options = ("--out", root / "broken", "--data-root", root, "--device", "cpu")
        code, _, told = mmgpt_says("train", root / "recipe.yaml", *options)
        return code, told

    return run


def assert_as_straight(root: Path) -> None:
    straight, broken = (load_file(root / run / "final" / "model.safetensors") for run in ("straight", "broken"))
    assert [name for name in straight if not torch.equal(straight[name], broken[name])] == []
    hidden = [file for file in root.rglob(".*") if file.name != ".metadata"]
    assert hidden == []


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["red", "blue", "green", "pink", "gold"], "4 samples then, 5 now"),
        (["red", "blue", "green"], "4 samples then, 3 now"),
        (["red", "blue", "green", "pinks"], "bytes then"),
        (["red", "blue", "green", "gold"], "of other content"),
        (["blue", "red", "green", "pink"], "of other content"),
    ],
)
def test_data_that_changed_since_the_stop_are_an_error_and_put_back_the_run_goes_on(answers, told, root, go_on):
    write_rows(root, answers)
    with pytest.raises(UserError, match=rf"checkpoint-2: the data have changed since, those of rows .*{told}.*; put"):
        go_on()
    write_rows(root, ["red", "blue", "green", "pink"])
    go_on()
    assert_as_straight(root)


def test_a_checkpoint_that_tells_nothing_of_its_data_is_gone_on_from(root, go_on):
    file = root / "broken" / "stage0" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["data"]
    file.write_text(json.dumps(state))
    go_on()
    assert_as_straight(root)


def test_the_data_of_a_stage_that_is_done_may_go(make_recipe, tmp_path):
    rows = {"reader": "messages", "path": "rows.jsonl"}
    stages = ({"name": "one", "data": [rows], "steps": 1}, {"name": "two", "steps": 2, "save_every": 1})
    write_rows(tmp_path, ["red", "blue"])
    train_until(2, make_recipe(*stages), out=tmp_path / "run", data_root=tmp_path)
    write_rows(tmp_path, ["red", "blue", "green"])
    train(make_recipe(*stages), out=tmp_path / "run", data_root=tmp_path, device="cpu")
    assert checkpoint_steps(tmp_path / "run" / "two") == [1, 2]


def test_a_second_training_in_a_folder_is_refused_and_the_first_is_not_disturbed(root, command, go_on):
    before = {file: file.read_bytes() for file in (root / "broken").rglob("*") if file.is_file()}
    with hold(root / "broken" / ".lock"):
        code, told = command()
    assert code == 2
    assert f"process {os.getpid()}" in told
    assert "is writing there" in told
    assert {file: file.read_bytes() for file in (root / "broken").rglob("*") if file.is_file()} == before
    go_on()
    assert_as_straight(root)


def test_the_lock_is_held_while_it_trains(root, go_on):
    seen = []
    go_on(on_record=lambda record: seen.append((root / "broken" / ".lock").read_text()))
    assert f"process {os.getpid()} on " in seen[0]
    assert_as_straight(root)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Disk quota exceeded"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "model.safetensors"), "Input/output error"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
    ],
)
@pytest.mark.parametrize("place", ["checkpoint", "final"])
def test_what_a_disk_refuses_is_one_line_and_checkpoints_stand(place, fault, words, root, command, go_on, monkeypatch):
    def refuse(bundle, draft, **options):
        (draft / "model.safetensors").write_bytes(b"half")
        raise fault

    monkeypatch.setattr(train_state if place == "checkpoint" else loop, "save_bundle", refuse)
    code, told = command()
    assert code == 1
    line = [one for one in told.splitlines() if "failed" in one]
    name = "stage0/checkpoint-3" if place == "checkpoint" else "final"
    assert line == [f"failed: [Errno {line[0].split()[2][:-1]}] {words}: '{root / 'broken' / name}'"]
    assert "Traceback" not in told
    assert checkpoint_steps(root / "broken" / "stage0") == ([1, 2] if place == "checkpoint" else [3, 4])
    load_bundle(root / "broken")
    monkeypatch.undo()
    go_on()
    assert_as_straight(root)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of at most so many bytes can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("noted", "name"), [(19_900, "log.jsonl"), (0, "checkpoint-3")])
def test_a_write_that_the_system_cuts_short_names_its_file_and_leaves_the_run_whole(noted, name, root, go_on):
    """Of torch's, safetensors' and Python's own writers."""
    (root / "broken" / "log.jsonl").write_text(json.dumps({"note": "x" * noted}) + "\n")
    with largest_file(20_000), pytest.raises(OSError, match=rf"File too large: '.*{name}'"):
        go_on()
    assert checkpoint_steps(root / "broken" / "stage0") == [1, 2]
    assert not list((root / "broken").rglob(".*.draft"))
    go_on()
    assert_as_straight(root)


def test_torch_words_a_full_disk_anew_and_it_is_still_told(root, recipe, tmp_path):
    bundle = load_bundle(root / "straight")
    weight = next(bundle.model.parameters())
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight] = {"exp_avg": torch.zeros(9_000)}
    with largest_file(20_000), pytest.raises(OSError, match=r"File too large: '.*one'"):
        train_state.save_checkpoint(bundle, [optimizer], tmp_path / "one", {})
    assert not list(tmp_path.glob("*one*"))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", place]).returncode:
        pytest.skip("a disk of its own needs root and the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_keeps_the_last_checkpoint_and_goes_on_when_there_is_room(root, recipe, small_disk):
    size = sum(file.stat().st_size for file in (root / "broken" / "stage0" / "checkpoint-2").rglob("*"))
    subprocess.run(["mount", "-o", f"remount,size={2 * size + size // 2 + 60_000}", small_disk], check=True)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint-3'"):
        train(recipe, out=small_disk / "run", data_root=root, device="cpu")
    assert checkpoint_steps(small_disk / "run" / "stage0") == [1, 2]
    subprocess.run(["mount", "-o", f"remount,size={6 * size}", small_disk], check=True)
    train(recipe, out=small_disk / "run", data_root=root, device="cpu")
    shutil.rmtree(root / "broken")
    shutil.copytree(small_disk / "run", root / "broken")
    assert_as_straight(root)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda at: (at / "trainer_state.json").unlink(),
            r"trainer_state\.json: no such file; the folder",
        ),
        (lambda at: (at / "model.safetensors").unlink(), "no such file; the checkpoint is incomplete"),
        (lambda at: shutil.rmtree(at / "state"), r"its state is absent or damaged .* the one before it"),
        (lambda at: (at / "state" / ".metadata").write_bytes(b""), "its state is absent or damaged"),
        (lambda at: next((at / "state").glob("*.distcp")).write_bytes(b"half"), "its state is absent or damaged"),
        (lambda at: (at / "trainer_state.json").write_text('{"stage'), "not valid JSON"),
        (lambda at: (at / "model.safetensors").write_bytes(b"half"), "damaged or truncated"),
    ],
)
def test_a_checkpoint_that_was_copied_in_part_is_named_and_the_one_before_it_serves(damage, told, root, command, go_on):
    at = root / "broken" / "stage0" / "checkpoint-2"
    damage(at)
    with pytest.raises(UserError, match=told):
        go_on()
    code, shown = command()
    assert (code, "Traceback" in shown) == (2, False)
    shutil.rmtree(at)
    go_on()
    assert_as_straight(root)


def test_a_run_without_its_recipe_is_not_gone_on_with(root, go_on):
    (root / "broken" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml, which says whose run .*checkpoint-1 is of"):
        go_on()


CHANGES = [lambda text: text.replace("seed: 0", "seed: 1"), lambda text: "\0\xff", lambda text: ""]


@pytest.mark.parametrize("change", CHANGES)
def test_a_recipe_that_was_changed_by_hand_is_another_one(change, root, command):
    file = root / "broken" / "config.yaml"
    file.write_bytes(change(file.read_text()).encode("latin-1"))
    code, told = command()
    assert code == 2
    assert "holds a run of another recipe" in told


def test_a_file_in_the_place_of_the_run_is_an_error_of_the_user(root, command):
    shutil.rmtree(root / "broken")
    (root / "broken").write_text("mine")
    code, told = command()
    assert code == 2
    assert "is a file" in told


def test_a_final_model_without_its_last_stage_is_told(make_recipe, tmp_path):
    recipe = make_recipe({"name": "one", "steps": 1}, {"name": "two", "steps": 1})
    train(recipe, out=tmp_path, device="cpu")
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(UserError, match=r"final: is there, but .*one/checkpoint-1 and stage two has none; remove"):
        train(recipe, out=tmp_path, device="cpu")
    shutil.rmtree(tmp_path / "one")  # all checkpoints removed to save room: it is finished
    train(recipe, out=tmp_path, device="cpu")


def test_a_final_model_that_was_copied_in_part_is_made_again(root, go_on):
    (root / "broken" / "final").mkdir()
    (root / "broken" / "final" / "config.json").write_text("{}")
    go_on()
    assert_as_straight(root)


def test_a_log_is_cut_at_the_checkpoint_and_lines_of_others_stay(tmp_path):
    log = RunLog(tmp_path)
    lines = [{"stage": "a", "step": 1, "loss": 2}, {"note": "mine"}, {"stage": "other", "step": 9}, 3, "x"]
    lines += [{"stage": "a", "step": 2, "loss": 1}, {"stage": "b", "step": 1, "loss": 1}]
    log.file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "a", "st')
    log.cut(["a", "b"], 0, 1)
    assert read_log(log.file) == [lines[0], lines[1], lines[2]]


def test_a_full_disk_while_converting_is_one_line_and_the_model_that_was_there_stands(root, monkeypatch, capsys):
    convert.convert(str(root / "straight"), root / "out", to="mmgpt")
    before = {file.name: file.read_bytes() for file in (root / "out").iterdir()}

    def refuse(bundle, draft, **options):
        (draft / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(convert, "save_bundle", refuse)
    monkeypatch.setattr("sys.argv", ["mmgpt", "convert", str(root / "straight"), str(root / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert (stopped.value.code, told) == (1, f"failed: [Errno 28] No space left on device: '{root / 'out'}'\n")
    assert {file.name: file.read_bytes() for file in (root / "out").iterdir()} == before
    assert not list(root.glob(".out*"))

"""One writer: a second one is refused with the name of the first, and a lock never outlives its process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmgpt import locking
from mmgpt.config import UserError
from mmgpt.datasets.shard_writer import Job, write_shards
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.files import write_folder
from mmgpt.locking import hold

HOLD = """
import os, sys, time
from pathlib import Path
from mmgpt.locking import hold
with hold(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else 1
    print(os.getpid() if child else "child", flush=True)
    time.sleep(60)
"""


def holder(file: Path, *options: str) -> subprocess.Popen[str]:
    """A process that holds a file and has said so."""
    command = [sys.executable, "-P", "-c", HOLD, str(file), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    said = {process.stdout.readline() for _ in range(2 if "fork" in options else 1)}
    assert said - {""}
    return process


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path):
    process = holder(tmp_path / ".lock")
    try:
        told = rf"process {process.pid} on {socket.gethostname()}, since .* is writing"
        with pytest.raises(UserError, match=told), hold(tmp_path / ".lock"):
            pytest.fail("held by two")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with hold(tmp_path / ".lock"):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_process(tmp_path):
    process = holder(tmp_path / ".lock", "fork")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        with hold(tmp_path / ".lock"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_ends_does_not_give_the_lock_of_its_parent_away(tmp_path):
    with hold(tmp_path / ".lock"):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        probe = [sys.executable, "-P", "-c", HOLD.replace("60", "0"), str(tmp_path / ".lock")]
        assert "is writing there" in subprocess.run(probe, capture_output=True, text=True).stderr


def test_one_process_does_not_hold_a_file_twice_by_whatever_path(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    own = hold(tmp_path / "run" / ".lock")
    with own, pytest.raises(UserError, match="which is this one"), hold(tmp_path / "link" / ".lock"):
        pass
    with hold(tmp_path / "link" / ".lock"), hold(tmp_path / "link" / ".other"):
        pass


def test_a_lock_file_that_was_left_behind_locks_nobody_out(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere\n")
    with hold(tmp_path / ".lock"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_an_empty_folder_that_was_made_for_a_lock_goes_with_it(tmp_path):
    with pytest.raises(UserError, match="wrong"), hold(tmp_path / "run" / ".lock"):
        raise UserError("wrong")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["file/.lock", "file/run/.lock"])
def test_a_file_in_the_place_of_the_folder_is_an_error_of_the_user(path, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file, or leads through one"), hold(tmp_path / path):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", locking.WITHOUT_LOCKS)
def test_a_file_system_without_locks_refuses_nobody(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locking.fcntl, "lockf", refuse)
    with hold(tmp_path / ".lock"):
        pass


def test_a_lock_file_that_is_removed_by_hand_is_not_shared_by_two(tmp_path):
    """Whoever opened it before it was removed finds that out, and does not hold what nobody else sees."""
    real, seen = locking.fcntl.lockf, []

    def remove_once(handle, flags):
        if not seen:
            seen.append((tmp_path / ".lock").unlink())
        return real(handle, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locking.fcntl, "lockf", remove_once)
        with hold(tmp_path / ".lock"):
            assert (tmp_path / ".lock").exists()


def test_two_writers_of_one_folder_do_not_mix_their_drafts(tmp_path):
    process = holder(tmp_path / ".model.lock")
    try:
        with pytest.raises(UserError, match="is writing there"):
            write_folder(tmp_path / "model", lambda draft: (draft / "a").touch())
        assert not (tmp_path / "model").exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    write_folder(tmp_path / "model", lambda draft: (draft / "a").touch())
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_one_part_of_the_shards_has_one_writer_and_other_parts_have_theirs(tmp_path):
    job = Job(WorldConfig(reader="world", name="stories", size=4), tmp_path, tmp_path / "out", max_bytes=10_000)
    with hold(tmp_path / "out" / ".part-1-of-2.lock"):
        with pytest.raises(UserError, match="is writing there"):
            write_shards(job, part=(1, 2))
        write_shards(job, part=(2, 2))
    write_shards(job, part=(1, 2))
    assert not list((tmp_path / "out").glob(".*"))


def test_a_lock_is_fast(tmp_path):
    started = time.process_time()
    for _ in range(100):
        with hold(tmp_path / ".lock"):
            pass
    assert time.process_time() - started < 1

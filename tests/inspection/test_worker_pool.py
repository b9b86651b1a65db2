import os

import pytest

from mmgpt.inspection.worker_pool import WorkerDied, map_in_workers

KILLED, ENDED = "__import__('os').kill(__import__('os').getpid(), 9)", "__import__('os')._exit(7)"


def unknown_to_workers(task: int) -> int:
    """They cannot import a module of tests."""
    return task


def test_a_worker_that_dies_costs_its_own_task_alone():
    found = list(map_in_workers(eval, ["0", "1", KILLED, "3", ENDED, "5", "6"], 2))
    assert found == [0, 1, WorkerDied(-9), 3, WorkerDied(7), 5, 6]
    assert [str(found[at]) for at in (2, 4)] == ["by signal 9", "exit code 7"]


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(map_in_workers(eval, ["1 / 0", "1"], 1))


def test_workers_that_cannot_begin_are_an_error_and_not_a_death_a_task():
    with pytest.raises(ChildProcessError, match="ended before it began"):
        list(map_in_workers(unknown_to_workers, [1], 1))


def test_without_workers_the_map_runs_in_this_process():
    assert list(map_in_workers(os.path.basename, ["a/b", "c"], 0)) == ["b", "c"]

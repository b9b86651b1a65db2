"""A map over processes that outlives them: a worker that is killed or crashes costs its task, not the whole."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
MAX_TASKS_AHEAD = 64  # tasks a worker that may be done before the first one that is not


@dataclass(frozen=True)
class WorkerDied:
    """What stands for the result of a task on which a worker died."""

    exit_code: int | None

    def __str__(self) -> str:
        code = self.exit_code or 0
        return f"by signal {-code}" if code < 0 else f"exit code {code}"


def map_in_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result | WorkerDied]:
    """Results in the order of the tasks; with 0 workers, in this process.

    Function and tasks are pickled: processes are spawned, for a forked one inherits torch's threads in pieces.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    pool = _Pool(function, min(workers, len(tasks)))
    try:
        yield from pool.run(tasks)
    finally:
        pool.stop()


class _Worker(Generic[Task, Result]):
    def __init__(self, function: Callable[[Task], Result]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(function, other), daemon=True)
        self.process.start()
        other.close()  # the worker's end: with its last holder gone, reading ends instead of waiting
        self.number: int | None = None  # of its task
        self.has_begun = False

    def give(self, number: int, task: Task) -> None:
        self.number = number
        with contextlib.suppress(BrokenPipeError):  # of a worker that died: reading from it will tell
            self.pipe.send(task)

    def take(self) -> Result | WorkerDied | Exception:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return WorkerDied(self.process.exitcode)


class _Pool(Generic[Task, Result]):
    def __init__(self, function: Callable[[Task], Result], count: int) -> None:
        self.function = function
        self.workers = [_Worker[Task, Result](function) for _ in range(count)]

    def run(self, tasks: Sequence[Task]) -> Iterator[Result | WorkerDied]:
        done: dict[int, Result | WorkerDied] = {}
        given = yielded = 0
        while yielded < len(tasks):
            for worker in self.workers:
                if worker.number is None and given < min(len(tasks), yielded + MAX_TASKS_AHEAD * len(self.workers)):
                    worker.give(given, tasks[given])
                    given += 1
            self._collect(done)
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1

    def _collect(self, done: dict[int, Result | WorkerDied]) -> None:
        """Wait for workers that have a task to be done with it."""
        busy = {worker.pipe: at for at, worker in enumerate(self.workers) if worker.number is not None}
        for pipe in wait(list(busy)):
            at = busy[pipe]  # type: ignore[index]
            worker = self.workers[at]
            result = worker.take()
            if not worker.has_begun:
                if isinstance(result, WorkerDied):  # the next would too
                    raise ChildProcessError(f"a worker ended before it began ({result}); use 0 workers")
                worker.has_begun = True
                continue
            if isinstance(result, Exception):
                raise result
            assert worker.number is not None
            done[worker.number], worker.number = result, None
            if isinstance(result, WorkerDied):
                self.workers[at] = _Worker(self.function)

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
            worker.process.join()


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C goes to all; the main process ends its workers
    torch.set_num_threads(1)
    pipe.send(None)
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # the main process is gone
            return
        try:
            pipe.send(function(task))
        except Exception as error:  # raised again in the main process
            pipe.send(error)

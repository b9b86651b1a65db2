"""One thread for what is made of media, so that the same medium gives the same bits on any number of cores.

With another number of threads torch takes other kernels and adds in another order: a sound at another speed differed by
1e-6 between a data worker, which has one thread, and a main process with two.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Made = TypeVar("Made")

_lock = threading.Lock()  # while it is held, torch's number of threads is what the process set
if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def in_one_thread(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """Let a function compute in one of torch's threads, whatever their number, which is left as it was.

    The number belongs to a Python thread, but each takes that which any other set last when it first uses torch. So it
    is changed, in a microsecond, only where there is no other Python thread; else a thread that keeps it at one works.
    """

    @wraps(make)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with _lock:
            threads = torch.get_num_threads()
        if threads == 1:
            return make(*args, **kwargs)
        if threading.active_count() > 1:
            return _single(os.getpid()).submit(make, *args, **kwargs).result()
        torch.set_num_threads(1)
        try:
            return make(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return made


def _single(process: int) -> ThreadPoolExecutor:
    """The Python thread of a process that keeps torch at one; a fork leaves it behind."""
    with _lock:
        return _opened(process)


@lru_cache(maxsize=1)
def _opened(process: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "media")
    pool.submit(_keep_to_one).result()
    torch.set_num_threads(threads)  # which the next Python thread begins with
    return pool


def _keep_to_one() -> None:
    torch.get_num_threads()  # at this a thread takes the process's number, once: later it would undo the next line
    torch.set_num_threads(1)

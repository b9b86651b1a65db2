"""One writer at a time: a lock that a process holds on a file, and that goes with the process however it ends.

The locks are those of `fcntl`: a forked worker does not inherit them, so that none outlives its main process, and they
hold between the machines of a network file system that has locks (NFS 4, Lustre with `flock`, GPFS). Where a file
system or a platform has none, nobody is refused.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mmgpt.config import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EACCES, errno.EAGAIN)  # POSIX allows either
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[str] = set()  # by this process, which its own locks would not stop


@contextlib.contextmanager
def hold(file: Path) -> Iterator[None]:
    """Be the only one to hold a file, which is made for it and removed after it, with folders that stay empty.

    Raises:
        UserError: if somebody else holds it, or its folder is a file.
        OSError: if it cannot be made.
    """
    folder = file.parent
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: is a file, or leads through one; choose another folder to write to") from None
    key, process = os.path.realpath(file), os.getpid()
    if key in _held:
        raise UserError(_taken(file, f"process {process} on {socket.gethostname()}, which is this one,"))
    handle = _lock(file)
    _held.add(key)
    try:
        yield
    finally:
        if os.getpid() == process:
            _held.discard(key)
            with contextlib.suppress(OSError):
                file.unlink()  # while it is held: whoever opened it meanwhile sees that it is gone, and makes it anew
            if handle is not None:
                os.close(handle)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _lock(file: Path) -> int | None:
    """A descriptor that holds a file; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(handle, file):
                break
            os.close(handle)
        except OSError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in TAKEN:
                raise UserError(_taken(file, holder or "another process")) from None
            if error.errno in WITHOUT_LOCKS:
                return None
            raise
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()},\n".encode(), 0)
    return handle


def _is_same(handle: int, file: Path) -> bool:
    """False if the file was removed, or made anew, between its opening and its locking."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _taken(file: Path, holder: str) -> str:
    return f"{file.parent}: {holder} is writing there; wait for it to end or stop it, or write to another folder"

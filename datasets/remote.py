"""Files here and elsewhere: a local path, or an address (https://, s3://, any that fsspec knows), read by ranges.

A read that fails on the way is tried again; one that fails for good is a MediaError, so that a training can count it.
"""

import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError

ATTEMPTS = 6
FIRST_WAIT = 0.05  # seconds before the second attempt; twice as long before each further one
TIMEOUT = 60.0  # seconds for one request over HTTP
CHUNK = 2**20  # bytes of a download at a time

Result = TypeVar("Result")


class RemoteFileNotFound(MediaError):
    """A file that is not there, or may not be read."""


def is_remote(path: str) -> bool:
    """True for an address rather than a path."""
    return "://" in path


def size_of(path: str) -> int:
    """Bytes of a file.

    Raises:
        MediaError: if it is not there, or cannot be reached after several attempts.
    """

    def look() -> int:
        if not is_remote(path):
            return os.stat(path).st_size
        try:
            return int(_filesystem(path).info(path)["size"])
        except FileNotFoundError as error:  # over HTTP fsspec says so of a server that fails, too
            raise ConnectionError(f"not there, or not now: {error}") from None

    return with_retries(path, look)


def read_range(path: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on; fewer only where it ends before.

    Raises:
        MediaError: if it is not there, cannot be reached after several attempts, or is served without ranges.
    """

    def read() -> bytes:
        if not is_remote(path):
            with open(path, "rb") as file:
                return os.pread(file.fileno(), count, start)
        payload: bytes = _filesystem(path).cat_file(path, start=start, end=start + count)
        return payload

    payload = with_retries(path, read)
    if len(payload) > count:
        raise MediaError(f"{path}: the server sends whole files, not ranges of bytes; download it, or use another one")
    return payload


def download(address: str, most: int) -> bytes:
    """A whole file of at most so many bytes, read as it comes, for its server may not tell how large it is.

    Raises:
        MediaError: if it is not there, larger, empty, or cannot be reached after two attempts.
        UserError: if what fetches it is not installed.
    """

    def read() -> bytes:
        payload = bytearray()
        with _filesystem(address).open(address, block_size=0, size=1) as file:  # a stream, without asking for a size
            while block := file.read(CHUNK):
                payload += block
                if len(payload) > most:
                    raise MediaError(f"{address}: over {most:,} bytes; cut or compress it, or raise limits.bytes")
        return bytes(payload)

    payload = with_retries(address, read, attempts=2)
    if not payload:
        raise MediaError(f"{address}: the file is empty; replace or remove it")
    return payload


def read_text(path: str) -> str:
    """A whole text file."""
    if not is_remote(path):
        return with_retries(path, lambda: Path(path).read_text(encoding="utf-8"))
    return with_retries(path, lambda: _filesystem(path).cat_file(path).decode())


def with_retries(path: str, read: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """What `read` gives, tried again where that may help; every failure in words."""
    for attempt in range(attempts):
        try:
            return read()
        except UserError:
            raise
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise RemoteFileNotFound(f"{path}: {_words(error)}; check the path and who may read it") from None
        except Exception as error:  # each filesystem has its own; a dropped connection is worth another attempt
            if attempt + 1 == attempts or not is_remote(path):
                tried = f" after {attempts} attempts" if is_remote(path) else ""
                raise MediaError(f"{path}: cannot be read{tried} ({_words(error)})") from None
            time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError


def _words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _filesystem(path: str) -> Any:
    return _open_filesystem(path.partition("://")[0], os.getpid())


@lru_cache(maxsize=8)
def _open_filesystem(protocol: str, process: int) -> Any:
    """A filesystem of this process: one that was open before a fork would wait for threads that are not there."""
    try:
        import fsspec

        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=TIMEOUT)}
        return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol}:// cannot be read here ({error}); install what reads it with pip install 'mmgpt[data]'"
        ) from None

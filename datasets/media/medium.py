"""A medium as it came (path, bytes, open file, base64, array, object, function), read late and within limits."""

import base64
import io
import lzma
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from numbers import Number, Real
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from mmgpt.config import Config, UserError
from mmgpt.datasets.file_names import find_member, split_zip
from mmgpt.datasets.media.formats import kind_of
from mmgpt.datasets.media.media_paths import (
    is_address,
    is_base64,
    is_data_url,
    local_path,
    path_hint,
    read_base64,
    read_data_url,
)


class MediaError(UserError):
    """A picture, sound or video that cannot be used, with the reason."""


class Limits(Config):
    """The largest media that are decoded; larger ones are refused by their headers, before the work is done."""

    bytes: PositiveInt = 2**30  # of a file, of a zip's member unpacked, and of what a sound or video is decoded to
    pixels: PositiveInt = Field(default=64_000_000, le=178_956_970)  # of a picture or frame; Pillow refuses more
    seconds: PositiveFloat = 3600.0  # of a sound or video
    frames: PositiveInt = 250_000  # of a video, with those that are passed over: an hour at 60 a second is 216,000


LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Media:
    """A medium, not decoded yet.

    Its source is a path (also into a zip: `a.zip/b.png`) or a file:// URL, bytes, an open binary file, a data URL,
    base64, an array, an object, or a function without arguments that makes one of the last two, the same at every call.
    `label` is what an error calls it, `group` the class of things that it shows, where that is known.

    Raises:
        MediaError: if the source is nothing, a number, or an empty string.
    """

    source: Any
    label: str | None = field(default=None, kw_only=True)
    group: str | None = field(default=None, kw_only=True)
    modality: ClassVar[str] = "media"

    def __post_init__(self) -> None:
        source = self.source
        if source is None or isinstance(source, Number | np.bool_) or (isinstance(source, str) and not source.strip()):
            raise MediaError(
                f"{source!r} is no {self.modality}; give a path, bytes, an open file, a data URL or an array"
            )

    @cached_property
    def value(self) -> Any:
        """The source, or what it makes where it is a function: made once, for eight questions may be asked about it."""
        return self.source() if callable(self.source) else self.source

    def name(self) -> str:
        """What to call it in an error: its label, its path, or its kind."""
        if self.label is not None:
            return self.label
        if self.path is not None:
            return _shown(self.path)
        if callable(self.source):
            return f"{self.modality} made by a function"
        kind = "base64" if isinstance(self.source, str) else type(self.source).__name__
        return f"{self.modality} given as {kind}"

    @cached_property
    def path(self) -> str | None:
        """The path that it was given as, or its address; None if it came in another form."""
        if not isinstance(self.source, str | os.PathLike):
            return None
        source = os.fsdecode(self.source)
        return None if is_data_url(source) or is_base64(source) else local_path(source)

    @property
    def is_encoded(self) -> bool:
        """Whether it came as a file's place or content, and not as an array or an object."""
        return isinstance(self.source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(
            self.source, "read"
        )

    def read(self, limits: Limits = LIMITS) -> bytes | None:
        """The encoded bytes, or None where the source is an array or an object already decoded.

        Raises:
            MediaError: if there is no such file, it is empty, no regular file, or larger than `limits.bytes`.
        """
        if not self.is_encoded:
            return None
        if isinstance(self.source, bytes | bytearray | memoryview):
            payload = bytes(self.source)
        elif self.path is not None:
            payload = _read_path(self.path, self.modality, limits)
        elif isinstance(self.source, str):
            try:
                payload = (read_data_url if is_data_url(self.source) else read_base64)(self.source)
            except ValueError as error:
                kind = f"data URL {self.source[:40]}..." if is_data_url(self.source) else f"{self.name()}:"
                raise MediaError(f"{kind} {error}") from None
        else:
            payload = self._file
        _check_size(self.name(), len(payload), limits)
        return payload

    @cached_property
    def _file(self) -> bytes:
        """What an open file holds, from its start where it can be wound back; read once, for it may be a stream."""
        if isinstance(self.source, io.TextIOBase):
            raise MediaError(f"{self.name()}: gives str; open the file in binary mode, 'rb'")
        try:
            if getattr(self.source, "seekable", bool)():
                self.source.seek(0)
            payload = self.source.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise MediaError(f"{self.name()}: cannot be read ({error}); open it again, or give its path") from None
        if not isinstance(payload, bytes):
            raise MediaError(f"{self.name()}: gives {type(payload).__name__}; open the file in binary mode, 'rb'")
        return payload

    def array(self) -> np.ndarray:
        """The source as an array of numpy, where it is one of any library, on any device and with any gradient.

        Raises:
            MediaError: if it is none, or holds an encoded file.
        """
        made = self.value
        try:
            if hasattr(made, "detach"):
                made = made.detach().cpu()
                made = made.float() if made.is_floating_point() else made  # numpy has no bfloat16
            if np.ma.is_masked(made):
                raise ValueError("some of it is masked, which numpy would drop; fill it")
            array = np.asarray(made)
            if array.dtype.name.startswith(("bfloat16", "float8")):  # of ml_dtypes, as JAX gives them
                array = array.astype(np.float32)
        except (
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:  # rows of several lengths, a tensor of no device
            raise MediaError(
                f"{self.name()}: cannot be read as an array ({str(error).splitlines()[0][:80]}); "
                "give an array of numbers, a path or bytes"
            ) from None
        if array.dtype == np.uint8 and array.ndim == 1:
            kind = kind_of(array[:1024].tobytes())[0]
            if kind and not kind.startswith(("a text", "nothing")):
                raise MediaError(f"{self.name()}: the bytes of {kind} in an array; give array.tobytes()")
        return array

    def to_part(self) -> dict[str, Any]:
        """The part as Hugging Face chat spells it: a path where there is one, else a data URL."""
        if self.path is not None:
            return {"type": self.modality, "path": self.path}
        if isinstance(self.source, str) and is_data_url(self.source):
            return {"type": self.modality, "url": self.source}
        mime, payload = self.encoded()
        return {"type": self.modality, "url": f"data:{mime};base64,{base64.b64encode(payload).decode()}"}

    def encoded(self) -> tuple[str, bytes]:
        """MIME type and bytes, for a page or a data URL."""
        return "application/octet-stream", self.read() or b""


def to_number(value: Any) -> float | None:
    """A number, of Python or a scalar of numpy or torch; None for a bool and anything else."""
    number: Any = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    told: float | None = number if is_number else None
    return told


def _shown(path: str) -> str:
    """A path in one line of an error."""
    return path if path.isprintable() else repr(path)


def _read_path(path: str, modality: str, limits: Limits) -> bytes:
    name = _shown(path)
    if path[:7].lower() == "file://":
        raise MediaError(f"{name}: names another machine; write file:///path of the {modality}")
    if is_address(path):
        raise MediaError(
            f"{name}: mmgpt does not fetch media from the network; download the {modality} and give its path"
        )
    try:
        archive, inner = split_zip(path)
        on_disk = os.stat(archive)
        if not stat.S_ISREG(on_disk.st_mode):  # a named pipe would be waited for, /dev/zero read without end
            kind = " but a folder" if stat.S_ISDIR(on_disk.st_mode) else ""
            raise MediaError(
                f"{name}: cannot be read, for it is no regular file{kind}; give the path of the {modality}'s file"
            )
        if inner:
            return _read_member(open_zip(archive), inner, name, limits)
        _check_size(name, on_disk.st_size, limits)
        with open(path, "rb") as file:
            payload = file.read(limits.bytes + 1)  # some files of /proc state another size than they have
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file{path_hint(path)}; check the {modality}'s path") from None
    except MediaError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:  # ValueError: a NUL in the path
        raise MediaError(f"{name}: cannot be read ({error}); replace or remove it") from None
    if not payload:
        raise MediaError(f"{name}: the file is empty; replace or remove it")
    return payload


def _read_member(archive: zipfile.ZipFile, inner: str, path: str, limits: Limits) -> bytes:
    """A member's bytes; names are looked up in the archive's directory only, so that none climbs out of it."""
    info = find_member(archive, inner)
    if info is None:
        raise MediaError(f"{path}: the zip holds no such member; check its name")
    if not info.file_size:
        raise MediaError(f"{path}: the zip's member is empty; replace or remove it")
    _check_size(path, info.file_size, limits)
    try:
        return archive.read(info)  # which unpacks as many bytes as its header states, and no more
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        reason = f"{error}" or type(error).__name__
        raise MediaError(f"{path}: the zip's member cannot be unpacked ({reason}); replace or remove it") from None


def _check_size(name: str, size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise MediaError(f"{name}: {size:,} bytes, limit {limits.bytes:,}; cut or compress it, or raise limits.bytes")


def open_zip(path: str) -> zipfile.ZipFile:
    """An open archive, kept open: reading its directory is the slow part. Forked workers open their own."""
    state = os.stat(path)  # one that is packed again is another
    return _open_zip(path, state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=8)
def _open_zip(path: str, changed: int, size: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)

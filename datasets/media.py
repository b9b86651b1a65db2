"""Pictures, sounds and videos: held as they came (path, bytes, data URL, array, object, function), decoded late."""

import base64
import binascii
import io
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
import PIL.Image
import PIL.ImageOps
import soundfile

from mmgpt.config import UserError


class MediaError(UserError):
    """A picture or sound that cannot be used, with the reason."""


@dataclass(frozen=True, eq=False)
class Media:
    """A medium, not decoded yet.

    Its source is a path (also into a zip: `a.zip/b.png`), bytes, a data URL, an array, an object, or a function without
    arguments that makes one of the last two, the same at every call.
    """

    source: Any
    modality: ClassVar[str] = "media"

    @cached_property
    def made(self) -> Any:
        """The source, or what it makes where it is a function: made once, for eight questions may be asked about it."""
        return self.source() if callable(self.source) else self.source

    def name(self) -> str:
        """What to call it in an error: its path, or its kind."""
        if isinstance(self.source, str | Path) and not str(self.source).startswith("data:"):
            return str(self.source)
        if callable(self.source):
            return f"{self.modality} made by a function"
        return f"{self.modality} given as {type(self.source).__name__}"

    def read(self) -> bytes | None:
        """The encoded bytes, or None where the source is an array or an object already decoded."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, str) and self.source.startswith("data:"):
            return _read_data_url(self.source)
        if isinstance(self.source, str | Path):
            return _read_path(str(self.source), self.modality)
        return None

    def to_part(self) -> dict[str, Any]:
        """The part as Hugging Face chat spells it: a path where there is one, else a data URL."""
        if isinstance(self.source, str | Path) and not str(self.source).startswith("data:"):
            return {"type": self.modality, "path": str(self.source)}
        if isinstance(self.source, str):
            return {"type": self.modality, "url": self.source}
        mime, payload = self.encoded()
        return {"type": self.modality, "url": f"data:{mime};base64,{base64.b64encode(payload).decode()}"}

    def encoded(self) -> tuple[str, bytes]:
        """MIME type and bytes, for a page or a data URL."""
        return "application/octet-stream", self.read() or b""


@dataclass(frozen=True, eq=False)
class Image(Media):
    """A picture: path, bytes, data URL, PIL image, or array (H, W), (H, W, 3) or (H, W, 4) in 0-255."""

    modality: ClassVar[str] = "image"
    max_pixels: ClassVar[int] = 64_000_000  # refuses decompression bombs before a pixel is decoded

    def load(self) -> PIL.Image.Image:
        """Decode to an RGB picture, upright, transparency laid on white.

        Raises:
            MediaError: if there is no such file, it is no picture, it is truncated or larger than `max_pixels`.
        """
        picture = self._open()
        if picture.width * picture.height > self.max_pixels:
            raise MediaError(
                f"{self.name()}: {picture.width}x{picture.height} pixels, limit {self.max_pixels:,}; shrink it"
            )
        try:
            picture = PIL.ImageOps.exif_transpose(picture)
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = PIL.Image.new("RGBA", picture.size, "white")
                picture = PIL.Image.alpha_composite(white, picture)
            return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise MediaError(f"{self.name()}: the picture is damaged ({error}); replace or remove it") from None

    def _open(self) -> PIL.Image.Image:
        made = self.made
        if isinstance(made, PIL.Image.Image):
            return made
        payload = self.read()
        try:
            if payload is not None:
                return PIL.Image.open(io.BytesIO(payload))
            return PIL.Image.fromarray(np.asarray(made).astype(np.uint8))
        except PIL.Image.DecompressionBombError as error:
            raise MediaError(f"{self.name()}: {error}; shrink it") from None
        except (OSError, ValueError, TypeError, SyntaxError):
            raise MediaError(f"{self.name()}: not a picture that can be read; give a PNG, JPEG or WebP file") from None

    def encoded(self) -> tuple[str, bytes]:
        """A PNG of the decoded picture where it came as an object, else the bytes as they are."""
        payload = self.read()
        if payload is None:
            buffer = io.BytesIO()
            self.load().save(buffer, format="PNG")
            return "image/png", buffer.getvalue()
        kind = PIL.Image.open(io.BytesIO(payload)).format or "PNG"
        return f"image/{kind.lower()}", payload


LOUDEST = 1e12  # a sample beyond it is damage, and its square would overflow float32
UNKNOWN_BYTES = 0x7FFF0000  # a WAV written to a pipe states this size of its data or more, not knowing better


class Sound(NamedTuple):
    """A decoded sound: mono float32 samples (S,), and how many of them make a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, eq=False)
class Audio(Media):
    """A sound: path, bytes, data URL, or an array with its `rate` in Hz.

    An array holds floats or integers, one channel (samples,) or several; its longer axis is time.
    """

    rate: int | None = None
    modality: ClassVar[str] = "audio"
    max_seconds: ClassVar[float] = 3600.0  # refuses a day of sound before a sample is decoded

    def load(self) -> Sound:
        """Decode to mono, the mean of the channels, at the rate it came with.

        Raises:
            MediaError: if there is no such file, or it is no sound, truncated, empty, not finite or over `max_seconds`.
        """
        samples_SC, rate = self._decode()
        if not len(samples_SC):
            raise MediaError(f"{self.name()}: the sound is empty; remove it")
        if not np.abs(samples_SC).max() <= LOUDEST:  # NaN is not below anything
            strange = int((~(np.abs(samples_SC) <= LOUDEST)).sum())
            raise MediaError(
                f"{self.name()}: {strange} of {samples_SC.size} samples are not finite or over {LOUDEST:g}; "
                "replace or remove it"
            )
        channels = samples_SC.shape[1]
        return Sound(samples_SC.mean(axis=1, dtype=np.float32) if channels > 1 else samples_SC[:, 0], rate)

    def _decode(self) -> tuple[np.ndarray, int]:
        payload = self.read()
        if payload is None:
            return self._from_array()
        stated, held = _wav_bytes(payload)
        if held < stated < UNKNOWN_BYTES:
            raise MediaError(f"{self.name()}: truncated, {held:,} of {stated:,} bytes of samples; replace or remove it")
        try:
            with soundfile.SoundFile(io.BytesIO(payload)) as file:
                self._check_length(file.frames, file.samplerate)
                samples_SC = file.read(dtype="float32", always_2d=True)
                if len(samples_SC) < file.frames:
                    raise MediaError(
                        f"{self.name()}: truncated, {len(samples_SC)} of {file.frames} samples; replace or remove it"
                    )
                return samples_SC, file.samplerate
        except MediaError:
            raise
        except (soundfile.SoundFileError, OSError, ValueError):
            raise MediaError(
                f"{self.name()}: not a sound that can be read; give a WAV, FLAC, OGG or MP3 file"
            ) from None

    def _from_array(self) -> tuple[np.ndarray, int]:
        given = np.asarray(self.made)
        if given.ndim not in (1, 2) or given.dtype.kind not in "fiu":
            raise MediaError(
                f"{self.name()}: shape {given.shape} of {given.dtype} is no sound; give (samples,) of floats"
            )
        if not self.rate or self.rate < 1:
            raise MediaError(f"{self.name()}: an array does not tell its rate; write Audio(samples, rate=16000)")
        self._check_length(max(given.shape), self.rate)
        samples_SC = given.astype(np.float32)
        if given.dtype.kind in "iu":
            limits = np.iinfo(given.dtype)
            middle = (int(limits.max) + int(limits.min) + 1) // 2
            samples_SC = (samples_SC - np.float32(middle)) / np.float32(int(limits.max) + 1 - middle)
        if given.ndim == 1:
            return samples_SC[:, None], self.rate
        return (samples_SC if given.shape[0] >= given.shape[1] else samples_SC.T), self.rate

    def _check_length(self, samples: int, rate: int) -> None:
        if samples > self.max_seconds * rate:
            raise MediaError(
                f"{self.name()}: {samples / rate:,.0f} s of sound, limit {self.max_seconds:,.0f} s; cut it into pieces"
            )

    def encoded(self) -> tuple[str, bytes]:
        """A 16-bit WAV of the mono sound where it came as an array, else the bytes as they are."""
        payload = self.read()
        if payload is None:
            sound, buffer = self.load(), io.BytesIO()
            soundfile.write(buffer, sound.samples, sound.rate, format="WAV", subtype="PCM_16")
            return "audio/wav", buffer.getvalue()
        try:
            kind = soundfile.info(io.BytesIO(payload)).format.lower()
        except soundfile.SoundFileError:
            return super().encoded()
        return f"audio/{'mpeg' if kind == 'mp3' else kind}", payload


@dataclass(frozen=True, eq=False)
class Video(Media):
    """A video file: path, bytes or data URL."""

    modality: ClassVar[str] = "video"


MEDIA: dict[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}


def _wav_bytes(payload: bytes) -> tuple[int, int]:
    """Bytes of samples that a WAV's header states, and those that follow it; zeros for any other file."""
    at = 12 if payload[:4] == b"RIFF" and payload[8:12] == b"WAVE" else len(payload)
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at + 4 : at + 8], "little")
        if payload[at : at + 4] == b"data":
            return size, len(payload) - at - 8
        at += 8 + size + size % 2
    return 0, 0


def _read_data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise MediaError(f"data URL {url[:40]}... has no comma; write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True) if header.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise MediaError(f"data URL {url[:40]}... is not valid base64 ({error})") from None


def _read_path(path: str, modality: str) -> bytes:
    if path.startswith(("http://", "https://")):
        raise MediaError(
            f"{path}: mmgpt does not fetch media from the network; download the {modality} and give its path"
        )
    try:
        if ".zip/" in path:
            archive, inner = path.split(".zip/", 1)
            return open_zip(f"{archive}.zip").read(inner)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; check the {modality}'s path") from None
    except KeyError:
        raise MediaError(f"{path}: the zip holds no such member") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise MediaError(f"{path}: cannot be read ({error})") from None


def open_zip(path: str) -> zipfile.ZipFile:
    """An open archive, kept open: reading its directory is the slow part. Forked workers open their own."""
    return _open_zip(path, os.getpid())


@lru_cache(maxsize=8)
def _open_zip(path: str, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)

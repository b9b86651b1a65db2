"""What a sample is: messages made of parts, one of them perhaps a picture or a sound.

Media are held as they came (path, bytes, data URL, array, PIL object) and decoded late, in the process that needs
them. Outside spellings of messages (Hugging Face chat, OpenAI content parts) become these types in `parse_messages`.
"""

import base64
import binascii
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from urllib.parse import unquote_to_bytes

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmgpt.config import UserError, did_you_mean

Role = Literal["system", "user", "assistant", "tool"]


class MediaError(UserError):
    """A picture or sound that cannot be used, with the reason."""


@dataclass(frozen=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, eq=False)
class Media:
    """A medium, not decoded yet: a path (also into a zip: `a.zip/b.png`), bytes, a data URL, an array or an object."""

    source: Any
    modality: ClassVar[str] = "media"

    def name(self) -> str:
        """What to call it in an error: its path, or its kind."""
        if isinstance(self.source, str | Path) and not str(self.source).startswith("data:"):
            return str(self.source)
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
        if isinstance(self.source, PIL.Image.Image):
            return self.source
        payload = self.read()
        try:
            if payload is not None:
                return PIL.Image.open(io.BytesIO(payload))
            return PIL.Image.fromarray(np.asarray(self.source).astype(np.uint8))
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


@dataclass(frozen=True, eq=False)
class Audio(Media):
    """A sound: path, bytes, data URL, or a float array (samples,) with its `rate` in Hz."""

    rate: int | None = None
    modality: ClassVar[str] = "audio"


@dataclass(frozen=True, eq=False)
class Video(Media):
    """A video file: path, bytes or data URL."""

    modality: ClassVar[str] = "video"


Part = Text | Image | Audio | Video
MEDIA: dict[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *parts: Part | str) -> "Message":
        """A message of parts; strings become Text."""
        return cls(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str:
        """The text of the turn, media left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def to_dict(self) -> dict[str, Any]:
        """The message as Hugging Face chat spells it."""
        content = [{"type": "text", "text": p.text} if isinstance(p, Text) else p.to_part() for p in self.parts]
        return {"role": self.role, "content": content}


@dataclass(frozen=True)
class Sample:
    """A conversation to learn from or to be scored on.

    Attributes:
        messages: the conversation, or with branches the context that they share.
        source: the name under which its loss is logged.
        key: names the sample in errors and results.
        branches: several continuations of `messages`. A branch whose first message has the role of the last context
            message goes on with that turn: a picture in the context, a question about it in each branch. Only
            the branches are supervised then.
    """

    messages: tuple[Message, ...]
    source: str = ""
    key: str = ""
    branches: tuple[tuple[Message, ...], ...] = ()

    def unbranched(self) -> list["Sample"]:
        """The separate samples that the branches stand for."""
        if not self.branches:
            return [self]
        return [
            replace(self, messages=join_turns(self.messages, branch), branches=(), key=f"{self.key}#{number}")
            for number, branch in enumerate(self.branches)
        ]


def join_turns(context: tuple[Message, ...], branch: tuple[Message, ...]) -> tuple[Message, ...]:
    """Context and branch as one conversation; a turn that the branch goes on with is one turn."""
    if context and branch and context[-1].role == branch[0].role:
        turn = Message(branch[0].role, context[-1].parts + branch[0].parts)
        return (*context[:-1], turn, *branch[1:])
    return context + branch


def parse_messages(raw: Sequence[Any]) -> tuple[Message, ...]:
    """Messages from plain dicts in Hugging Face chat or OpenAI spelling; Message objects pass through.

    Raises:
        UserError: on an unknown role, content type or key, naming the known ones.
    """
    if isinstance(raw, str | Mapping) or not isinstance(raw, Sequence):
        raise UserError(
            f"messages must be a list of messages, not {type(raw).__name__}; write [{{'role': 'user', ...}}]"
        )
    return tuple(item if isinstance(item, Message) else _parse_message(item) for item in raw)


def _parse_message(raw: Any) -> Message:
    if not isinstance(raw, Mapping) or "role" not in raw or "content" not in raw:
        raise UserError(f"{_short(raw)} is not a message; it needs the keys role and content")
    role = raw["role"]
    if role not in get_args(Role):
        raise UserError(f"role {role!r} is not known; {did_you_mean(str(role), get_args(Role))}")
    content = raw["content"]
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, Sequence):
        raise UserError(f"content {_short(content)} is neither a string nor a list of parts")
    return Message(role, tuple(_parse_part(part) for part in content))


def _parse_part(raw: Any) -> Part:
    if isinstance(raw, Text | Media):
        return raw  # type: ignore[return-value]
    if isinstance(raw, str):
        return Text(raw)
    if not isinstance(raw, Mapping):
        raise UserError(f"{_short(raw)} is not a content part; write {{'type': 'text', 'text': ...}}")
    kind = str(raw.get("type", "text"))
    if kind == "text" and isinstance(raw.get("text"), str):
        return Text(raw["text"])
    modality = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}.get(
        kind, kind
    )
    if modality not in MEDIA:
        raise UserError(f"content part of type {kind!r} is not known; {did_you_mean(kind, ['text', *MEDIA])}")
    for key in ("path", "url", modality, f"{modality}_url", f"input_{modality}"):
        if raw.get(key) is not None:
            value = raw[key]
            break
    else:
        raise UserError(f"the {modality} part {_short(raw)} holds no {modality}; give it a path, url or {modality}")
    if isinstance(value, Mapping):  # OpenAI: {"url": ...} or {"data": base64, "format": ...}
        value = (
            value["url"]
            if "url" in value
            else f"data:{modality}/{value.get('format', 'wav')};base64,{value.get('data', '')}"
        )
    if modality == "audio":
        return Audio(value, rate=raw.get("sampling_rate"))
    return MEDIA[modality](value)  # type: ignore[return-value]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise MediaError(f"data URL {_short(url)} has no comma; write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True) if header.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise MediaError(f"data URL {_short(url)} is not valid base64 ({error})") from None


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

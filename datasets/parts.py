"""Content parts: pieces of text and media, and the spellings of them that Hugging Face, OpenAI and Qwen use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.cells import check_keys, is_missing, well_formed
from mmgpt.datasets.media import MEDIA, Audio, Image, Media, Video
from mmgpt.datasets.media.media_paths import is_data_url

SPELLINGS = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
OPTIONS = {"image": ("detail",), "audio": ("sampling_rate",), "video": ("fps",)}  # keys of a part beside its medium
STRUCT = ("bytes", "array", "data", "url", "path")  # what holds a medium that is given as a struct, first come first


@dataclass(frozen=True)
class Text:
    """A piece of text, which holds no lone surrogates."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", well_formed(self.text))


Part = Text | Image | Audio | Video


def is_absent(value: Any) -> bool:
    """True for what says nothing: a missing value, an empty list, a struct whose every field is absent.

    Rows of Hugging Face `datasets` fill every key of a struct that a row does not have with null.
    """
    if isinstance(value, Mapping):
        return all(map(is_absent, value.values()))
    if isinstance(value, list | tuple):
        return not value
    return (value is None or isinstance(value, str | bytes | Real)) and is_missing(value)


def present(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say something."""
    return {str(key): value for key, value in raw.items() if not is_absent(value)}


def parse_part(raw: Any, ignore: Sequence[str] | None = None) -> Part:
    """A part from a string or a struct; parts themselves pass through.

    Args:
        raw: a string, `{"type": "text", "text": ...}`, or a medium of any spelling.
        ignore: globs of keys that are left out; None where the caller has no such option.
    Raises:
        UserError: on a kind or key that nothing reads, and where there is no medium, or more than one.
    """
    if isinstance(raw, Text | Media):
        return raw  # type: ignore[return-value]
    if isinstance(raw, str):
        return Text(raw)
    if not isinstance(raw, Mapping):
        raise UserError(f"{short(raw)} is not a content part; write {{'type': 'text', 'text': ...}}")
    given = present(raw)
    kind = str(given.get("type") or _kind_of(raw, given))
    if kind == "text":
        check_keys(given, ("type", "text"), ignore, f"the text part {short(raw)}")
        if not isinstance(raw.get("text"), str):
            raise UserError(f"the text part {short(raw)} holds no text; give it one, or leave it out")
        return Text(raw["text"])
    modality = SPELLINGS.get(kind, kind)
    if modality not in MEDIA:
        raise UserError(f"content part of type {kind!r} is not known; {did_you_mean(kind, ['text', *MEDIA])}")
    return _parse_medium(modality, given, ignore)


def sources_of(modality: str) -> tuple[str, ...]:
    """The keys under which a part may hold its medium."""
    return "path", "url", modality, f"{modality}_url", f"input_{modality}", "base64"


def short(value: object) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind_of(raw: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The kind of a part that does not tell its type, as Qwen-VL writes them: `{"image": "a.png"}`."""
    media = [kind for kind in (*MEDIA, *SPELLINGS) if kind in given]
    return media[0] if media and not isinstance(raw.get("text"), str) else "text"


def _parse_medium(modality: str, given: Mapping[str, Any], ignore: Sequence[str] | None) -> Part:
    where, sources, options = f"the {modality} part {short(given)}", sources_of(modality), OPTIONS[modality]
    check_keys(given, ("type", *sources, *options), ignore, where)
    held = [key for key in sources if key in given]
    if not held:
        raise UserError(f"{where} holds no {modality}; give it a path, url or {modality}")
    if len(held) > 1:
        raise UserError(f"{where} holds a {modality} under {' and '.join(held)}; give it once")
    value, told = given[held[0]], {key: given[key] for key in options if key in given}
    if isinstance(value, Mapping):
        value, inner = _from_struct(modality, present(value), where, ignore)
        clash = next((key for key in inner if told.get(key, inner[key]) != inner[key]), None)
        if clash:
            raise UserError(f"{where} gives two values of {clash}; give one")
        told |= inner
    elif held[0] == "base64" and isinstance(value, str) and not is_data_url(value):
        value = f"data:{modality}/*;base64,{value}"
    return _medium(modality, value, told, where)


def _from_struct(
    modality: str, given: Mapping[str, Any], where: str, ignore: Sequence[str] | None
) -> tuple[Any, dict[str, Any]]:
    """What a struct holds, and its options: {"url"}, OpenAI's {"data", "format"}, or one of `datasets`."""
    found = next((key for key in STRUCT if key in given), None)
    if found is None:
        raise UserError(f"{where} holds no {modality}; give it a url, path or data")
    beside = {"bytes": ("path",), "array": ("path",), "data": ("format",)}.get(found, ())  # the path is its name there
    check_keys(given, (found, *beside, *OPTIONS[modality]), ignore, where)
    value = given[found]
    if found == "data" and isinstance(value, str) and not is_data_url(value):
        value = f"data:{modality}/{given.get('format', 'wav')};base64,{value}"
    elif found == "array":
        value = np.asarray(value)  # in the type that it has: a scale is not told without it
    return value, {key: given[key] for key in OPTIONS[modality] if key in given}


def _medium(modality: str, value: Any, told: Mapping[str, Any], where: str) -> Part:
    if told.get("detail", "auto") != "auto":
        raise UserError(
            f"{where} asks for detail={told['detail']!r}; the model sees what its encoder takes: leave it out"
        )
    rate = next((told[key] for key in ("sampling_rate", "fps") if key in told), None)
    if rate is not None and (isinstance(value, str | bytes | bytearray | Path | Media) or hasattr(value, "read")):
        key = next(key for key in ("sampling_rate", "fps") if key in told)
        raise UserError(f"{where} gives {key} with a file, which tells its own; it is for arrays: leave it out")
    if isinstance(value, Media):
        if value.modality != modality:
            raise UserError(
                f"a part of type {modality} holds {value.name()}, of kind {value.modality}; change its type"
            )
        return value  # type: ignore[return-value]
    if modality == "image":
        return Image(value)
    return Audio(value, rate=rate) if modality == "audio" else Video(value, rate=rate)

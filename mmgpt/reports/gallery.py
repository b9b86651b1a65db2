"""Scored samples as cards with their pictures and sounds, for the page of a run."""

import io
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mmgpt.datasets.media import Audio, Image, Media, MediaError, Video
from mmgpt.datasets.sample import Message, Part, Text, parse_messages
from mmgpt.evaluation.metrics import metric_named
from mmgpt.reports.html import Markup, data_url, tag
from mmgpt.reports.sound_figure import sound_figure
from mmgpt.run_log import read_log

MAX_CARDS = 12  # of a task; half of them are wrong ones where there are as many
LONG_TEXT = 40  # letters; with longer references the cards are wider
LARGE_BYTES = 200_000  # a picture above that is shrunk
LARGE_SIDE = 640  # pixels, to that
SMALL_SIDE = 128  # pixels; a picture up to that is shown with its pixels sharp
MAX_MEDIUM_BYTES = 4_000_000  # of a sound or video
SHOWN = {"image/png", "image/jpeg", "image/webp", "image/gif"}  # by every browser
MAGIC = {  # first bytes of what browsers play
    b"RIFF": "audio/wav",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\x1a\x45\xdf\xa3": "video/webm",
}

MARKS = {True: ("✓", "right", "good"), False: ("✗", "wrong", "bad"), None: ("·", "not judged", "soft")}

Record = dict[str, Any]


def gallery(file: Path, title: str, most: int = MAX_CARDS) -> Markup:
    """A heading and at most so many cards of a samples file: wrong ones first, then right ones."""
    samples = read_log(file)
    if not samples:
        return tag("div", tag("h3", title), tag("p", f"{file} is missing or empty.", cls="note"))
    wrong, right = [s for s in samples if is_right(s) is False], [s for s in samples if is_right(s) is not False]
    chosen = every_nth(wrong, max((most + 1) // 2, most - len(right)))
    chosen += every_nth(right, most - len(chosen))
    judged = sum(is_right(sample) is not None for sample in samples)
    counted = f"{len(wrong):,} of {judged:,} wrong" if judged else f"{len(samples):,} samples"
    heading = tag("h3", title, tag("small", counted))
    is_long = sum(len(str(sample["reference"])) for sample in chosen) > LONG_TEXT * len(chosen)
    cards = (_card(sample, file.parent) for sample in chosen)
    return tag("div", heading, tag("div", *cards, cls="cards long" if is_long else "cards"))


def every_nth(items: Sequence[Record], count: int) -> list[Record]:
    """At most `count` items, at even distances, in order: neighbours are often about the same picture."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def is_right(sample: Record) -> bool | None:
    """What the first of a sample's metrics that judges a single answer says; None if none does."""
    verdicts = (metric_named(name).is_right(score) for name, score in sample["scores"].items())
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _card(sample: Record, folder: Path) -> Markup:
    messages, reference = parse_messages(sample["messages"]), str(sample["reference"])
    turn = next((m for m in reversed(messages) if m.role == "user"), Message("user", ()))
    before = [message for message in messages if message is not turn]
    media = [medium_figure(part, folder) for part in turn.parts if isinstance(part, Media)]
    earlier = None
    if before:
        lines = [tag("p", tag("b", f"{message.role}: "), _in_words(message.parts)) for message in before]
        earlier = tag("details", tag("summary", f"{len(lines)} turns before it"), *lines)
    verdict = is_right(sample)
    shown = MARKS[verdict] if sample["scores"] else ("·", "not scored", "soft")
    answers = tag(
        "dl",
        tag("dt", "predicted", tag("span", shown[0], cls="mark", role="img", aria_label=shown[1])),
        tag("dd", *_said(sample["prediction"], reference if verdict is False else None)),
        tag("dt", "reference"),
        tag("dd", reference),
    )
    choices = " / ".join(sample.get("choices", []))
    hint = tag("small", f"\none of: {choices}") if choices else None
    prompt = tag("p", turn.text.strip(), hint, cls="prompt")
    return tag(
        "article",
        tag("div", *media, cls="media") if media else None,
        tag("div", earlier, prompt, answers, cls="words"),
        cls=f"card {shown[2]}",
        title=str(sample.get("key", "")),
    )


def _in_words(parts: Sequence[Part]) -> str:
    return "".join(part.text if isinstance(part, Text) else f"[{part.modality}] " for part in parts)


def _said(prediction: str, reference: str | None) -> list[str]:
    """A prediction, with the words that a reference does not have at that place marked."""
    if not prediction.strip():
        return [tag("em", "(empty)")]
    if reference is None:
        return [prediction]
    words, wanted = re.findall(r"\s*\S+", prediction), re.findall(r"\s*\S+", reference)
    said = []
    for kind, start, end, _, _ in SequenceMatcher(None, words, wanted, autojunk=False).get_opcodes():
        piece = "".join(words[start:end])
        said.append(piece if kind == "equal" else tag("b", piece))
    return said


def medium_figure(part: Media, folder: Path = Path()) -> Markup:
    """A picture, sound or video as an element that holds its data, or a placeholder that says why not."""
    source = part.source
    if isinstance(source, str) and not source.startswith("data:") and (folder / source).is_file():
        part = type(part)(str(folder / source))
    try:
        return _picture(part) if isinstance(part, Image) else _player(part)
    except MediaError as error:
        return tag("p", tag("b", f"{part.modality} not shown"), tag("span", str(error)), cls="missing")


def _picture(image: Image) -> Markup:
    picture = image.load()
    mime, payload = image.encoded()
    if mime not in SHOWN or len(payload) > LARGE_BYTES:
        kind = "JPEG" if max(picture.size) > SMALL_SIDE else "PNG"
        picture.thumbnail((LARGE_SIDE, LARGE_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, quality=85)
        mime, payload = f"image/{kind.lower()}", buffer.getvalue()
    is_small = max(picture.size) <= SMALL_SIDE
    return tag("img", src=data_url(mime, payload), alt="", cls="pixels" if is_small else None)


def _player(medium: Media) -> Markup:
    payload = medium.encoded()[1]
    mime = next((mime for magic, mime in MAGIC.items() if payload.startswith(magic)), None)
    if payload[4:8] == b"ftyp":
        mime = "video/mp4" if isinstance(medium, Video) else "audio/mp4"
    if mime is None:
        raise MediaError(f"{medium.name()}: no format that a browser plays")
    if len(payload) > MAX_MEDIUM_BYTES:
        raise MediaError(f"{medium.name()}: {size(len(payload))}, too large to put into a page")
    name = "audio" if isinstance(medium, Audio) else "video"
    player = tag(name, controls="", preload="metadata", src=data_url(mime, payload))
    return tag("div", sound_figure(medium.load()), player, cls="heard") if isinstance(medium, Audio) else player


def size(count: int) -> str:
    """Bytes in words."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} bytes"

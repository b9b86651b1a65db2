"""Where the things that a row lists stand in its turns: media at their tags, names and boxes at ms-swift's markup."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from mmgpt.config import UserError
from mmgpt.datasets.calls import loaded
from mmgpt.datasets.cells import cell_text, check_keys
from mmgpt.datasets.media import MEDIA, Media
from mmgpt.datasets.parts import Part, Text, present, short, sources_of
from mmgpt.datasets.sample import Message

SOUND = "<sound>"  # audio's second tag
REF, BOX = "<ref-object>", "<bbox>"


@dataclass
class Listed:
    """The media of one kind that a row lists: taken one after the other, or by number."""

    kind: str
    items: list[Media]
    taken: list[int] = field(default_factory=list)
    is_numbered: bool = False

    @property
    def left(self) -> list[Media]:
        """Those that were not taken."""
        return [one for at, one in enumerate(self.items) if at not in self.taken]

    def next(self) -> Media:
        """The first that was not taken."""
        if self.is_numbered:
            raise UserError(f"some {self.kind}s are named by index and some are not; name all of them, or none")
        if len(self.taken) == len(self.items):
            raise UserError(f"more <{self.kind}> tags than {self.kind}s; give each tag its file")
        self.taken.append(len(self.taken))
        return self.items[self.taken[-1]]

    def at(self, index: Any) -> Media:
        """The one of a number, from 0."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.items):
            last = len(self.items) - 1
            raise UserError(f"index={index!r} is no number of one of the row's {self.kind}s, which are 0 to {last}")
        if self.taken and not self.is_numbered:
            raise UserError(f"some {self.kind}s are named by index and some are not; name all of them, or none")
        self.is_numbered = True
        self.taken.append(index)
        return self.items[index]


def held(part: Any, listed: Mapping[str, Listed]) -> Any:
    """A content part; one that holds no medium itself (`{"type": "image"}`) has the row's next or that of its index."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in listed:
        return part
    given = present(part)
    if any(key in given for key in sources_of(kind)):
        return part
    own = listed[kind].at(given.pop("index")) if "index" in given else listed[kind].next()
    return {**given, kind: own}


# How other projects write them: <img>, <image_1>, <image 1>, <|image|>, <|image_pad|>, <ImageHere>, <video_token>.
FOREIGN = re.compile(
    r"<\|?(?P<kind>image|img|audio|sound|video)(?:[_ ]?\d{1,3}|_?pad|_?placeholder|_?token|here)?\|?>", re.IGNORECASE
)
KIND_OF = {**dict.fromkeys(("image", "img"), "image"), **dict.fromkeys(("audio", "sound"), "audio"), "video": "video"}


class Placeholders:
    """The tags of media in a source's texts.

    Args:
        placeholders: tags of kinds that have others than `<image>`, `<audio>` (or `<sound>`) and `<video>`.
        words: tags that are words like any other in a row that lists no such thing.
    """

    def __init__(self, placeholders: Mapping[str, str], words: Sequence[str]) -> None:
        self.kinds = [(placeholders.get(kind, f"<{kind}>"), kind) for kind in MEDIA]
        if "audio" not in placeholders:
            self.kinds.append((SOUND, "audio"))
        known = [*(tag for tag, _ in self.kinds), REF, BOX]
        wrong = next((word for word in words if word not in known and not FOREIGN.fullmatch(word)), None)
        if wrong is not None:
            raise UserError(f"text_tags: {wrong!r} is no placeholder of this source, which are {', '.join(known)}")
        self.words = words

    def place(self, message: Message, listed: Mapping[str, Listed], names: Iterable[str]) -> Message:
        """A turn with the row's media at their tags.

        Raises:
            UserError: if there are too few, or none at all where the tag is no word; `names` are the row's keys.
        """
        own = {tag: kind for tag, kind in self.kinds if kind in listed}
        if len(set(own.values())) < len(listed):
            raise UserError("media of two kinds share a placeholder; give them different ones")
        stray = self.stray(message, own)
        if stray:
            raise UserError(_without_medium(*stray, names))
        parts: list[Part] = []
        for part in message.parts:
            parts += _split(part.text, own, listed) if isinstance(part, Text) else [part]
        return replace(message, parts=tuple(parts))

    def stray(self, message: Message, own: Mapping[str, str]) -> tuple[str, str] | None:
        """A tag in a turn's texts that is no word and stands for none of its media: the tag and its kind.

        Args:
            own: the tags that the row's media are shown at, with their kinds.
        """
        shown = {part.modality for part in message.parts if isinstance(part, Media)} | set(own.values())
        for text in (part.text for part in message.parts if isinstance(part, Text)):
            tags = [(tag, kind) for tag, kind in self.kinds if tag not in own and tag in text]
            foreign = (found for found in FOREIGN.finditer(text) if found[0] not in own)
            tags += [(found[0], KIND_OF[found["kind"].lower()]) for found in foreign]
            for tag, kind in tags:
                if kind not in shown and tag not in self.words:
                    return tag, kind
        return None


def _split(text: str, own: Mapping[str, str], listed: Mapping[str, Listed]) -> Iterator[Part]:
    pieces = re.split(f"({'|'.join(map(re.escape, own))})", text) if own else [text]
    for piece in pieces:
        if piece in own:
            yield listed[own[piece]].next()  # type: ignore[misc]
        elif piece or len(pieces) == 1:
            yield Text(piece)


def _without_medium(tag: str, kind: str, names: Iterable[str]) -> str:
    keys = list(names)
    alike = [key for key in keys if kind in key.lower()] or difflib.get_close_matches(kind, keys, n=1)
    near = next(iter(alike), "KEY")
    return (
        f"a turn says {tag}, but the row holds no {kind}; its keys are {', '.join(keys)}. If one of them holds it, "
        f"write columns: {{{kind}s: {near}}}; if the tag is just words, write text_tags: ['{tag}']"
    )


def grounded(messages: Sequence[Message], objects: Any, words: Sequence[str], ignore: Sequence[str]) -> list[Message]:
    """Turns with the names and boxes of ms-swift's `objects` in place of `<ref-object>` and `<bbox>`, in order.

    A box is written as [(x1,y1),(x2,y2)] with the numbers as they are; models differ in what they scale them to.

    Raises:
        UserError: if there are more or fewer than the turns name, or a box is none.
    """
    given = loaded(objects, "objects") if isinstance(objects, str) else objects
    if not isinstance(given, Mapping | None):
        raise UserError(
            f"objects {short(given)} are none; write {{'ref': [NAME, ...], 'bbox': [[x1, y1, x2, y2], ...]}}"
        )
    given = present(given or {})
    if given.pop("bbox_type", "real") != "real":
        raise UserError(
            "objects: bbox_type is not 'real'; write the numbers as the model is to say them, and leave it out"
        )
    check_keys(given, ("ref", "bbox", "bbox_type"), ignore, "objects")
    written = {REF: [_name(one) for one in given.get("ref", ())], BOX: [_box(one) for one in given.get("bbox", ())]}
    for tag, key in ((REF, "ref"), (BOX, "bbox")):
        count = sum(part.text.count(tag) for turn in messages for part in turn.parts if isinstance(part, Text))
        if not written[tag] and tag in words:
            del written[tag]
        elif count != len(written[tag]):
            raise UserError(f"the turns say {tag} {count} times, objects lists {len(written[tag])} under {key}")
    return [replace(turn, parts=tuple(_filled(part, written) for part in turn.parts)) for turn in messages]


def _filled(part: Part, written: Mapping[str, list[str]]) -> Part:
    if not isinstance(part, Text) or not any(tag in part.text for tag in written):
        return part
    pieces = re.split(f"({'|'.join(map(re.escape, written))})", part.text)
    return Text("".join(written[piece].pop(0) if piece in written else piece for piece in pieces))


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise UserError(f"objects: ref holds {short(raw)}; a name is a text")
    return raw


def _box(raw: Any) -> str:
    is_box = isinstance(raw, list | tuple) and len(raw) in (2, 4)
    if not is_box or any(isinstance(one, bool) or not isinstance(one, Real) for one in raw):
        raise UserError(f"objects: bbox holds {short(raw)}; a box is [x1, y1, x2, y2], a point [x, y]")
    try:
        numbers = [cell_text(one) for one in raw]
    except ValueError as error:
        raise UserError(f"objects: bbox holds {short(raw)} ({error}); a box is [x1, y1, x2, y2]") from None
    points = [f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    return f"[{','.join(points)}]"

"""Readers of text and of message files, and the one list of all readers.

A new reader is a config class, a source class, and a line in `SOURCES`.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from mmgpt.config import UserError
from mmgpt.datasets.composed import ComposedConfig, ComposedSource
from mmgpt.datasets.media import MEDIA, Media
from mmgpt.datasets.sample import Message, Part, Sample, Text, parse_messages
from mmgpt.datasets.shards import ShardsConfig, ShardSource
from mmgpt.datasets.source import Source, SourceConfig, resolve
from mmgpt.datasets.table import TableConfig, TableSource
from mmgpt.datasets.worlds.world import WorldConfig, WorldSource


class TextConfig(SourceConfig):
    """Plain text. Each piece is a document: a window of characters, a line, or a paragraph."""

    reader: Literal["text"]
    path: str
    unit: Literal["window", "line", "paragraph"] = "window"
    window: PositiveInt = 1024  # characters
    stride: PositiveInt | None = None  # characters from one window's start to the next; a quarter window if not given
    span: tuple[float, float] = (0.0, 1.0)  # the part of the file to read, as shares of its characters


class TextSource(Source):
    """Documents of a text file: each sample is one assistant message, which is rendered without a template."""

    def __init__(self, config: TextConfig, data_root: Path) -> None:
        path = resolve(data_root, config.path)
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise UserError(f"{path}: not a UTF-8 text file ({error}); convert it first") from None
        start, stop = (round(share * len(text)) for share in config.span)
        self.text = text[start:stop]
        self.name = config.label or Path(config.path).stem
        self.pieces = _windows(self.text, config) if config.unit == "window" else _pieces(self.text, config.unit)
        super().__init__(config, len(self.pieces), path)

    def __getitem__(self, index: int) -> Sample:
        start, stop = self.pieces[index]
        return Sample((Message.of("assistant", self.text[start:stop]),), self.name, f"{self.name}/{index}")


def _windows(text: str, config: TextConfig) -> list[tuple[int, int]]:
    last = max(0, len(text) - config.window)
    starts = [*range(0, last, config.stride or max(1, config.window // 4)), last] if text else []
    return [(at, at + config.window) for at in starts]


def _pieces(text: str, unit: str) -> list[tuple[int, int]]:
    pattern = r"[^\n]+" if unit == "line" else r"(?:[^\n]+\n?)+"
    return [match.span() for match in re.finditer(pattern, text) if match.group().strip()]


class MessagesConfig(SourceConfig):
    """JSON lines, each `{"messages": [...]}`; `<image>`-style tags take the row's `images`, `audios`, `videos`."""

    reader: Literal["messages"]
    path: str
    media_root: str | None = None  # folder of relative media paths; the file's own folder if not given


class MessagesSource(Source):
    """Conversations of a messages-jsonl file (ms-swift and LLaMA-Factory rows included)."""

    def __init__(self, config: MessagesConfig, data_root: Path) -> None:
        self.path = resolve(data_root, config.path)
        self.folder = resolve(data_root, config.media_root) if config.media_root else self.path.parent
        self.name = config.label or Path(config.path).stem
        self.offsets, at = [], 0
        with self.path.open("rb") as file:  # offsets, not rows: a file of many GB costs eight bytes a row
            for line in file:
                if line.strip():
                    self.offsets.append(at)
                at += len(line)
        super().__init__(config, len(self.offsets), self.path)

    def __getitem__(self, index: int) -> Sample:
        key = f"{self.name}/{index}"
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self.path}: row {index} is not JSON ({error}); write one object a line") from None
        if not isinstance(row, dict) or "messages" not in row:
            raise UserError(f"{self.path}: row {index} has no messages; write {{'messages': [...]}}")
        queues = {kind: list(row[f"{kind}s"]) for kind in MEDIA if row.get(f"{kind}s")}
        messages = tuple(self._place_media(message, queues, key) for message in parse_messages(row["messages"]))
        left = [f"{len(queue)} {kind}s" for kind, queue in queues.items() if queue]
        if left:
            raise UserError(f"{key}: {' and '.join(left)} have no placeholder; write one <image>-like tag for each")
        return Sample(messages, self.name, key)

    def _place_media(self, message: Message, queues: dict[str, list[str]], key: str) -> Message:
        """Tags become media where the row lists media of that kind; elsewhere `<image>` is just text."""
        parts: list[Part] = []
        for part in message.parts:
            if not isinstance(part, Text):
                parts.append(self._rooted(part))
                continue
            for piece in (
                re.split(f"({'|'.join(f'<{kind}>' for kind in queues)})", part.text) if queues else [part.text]
            ):
                kind = piece[1:-1]
                if piece != f"<{kind}>" or kind not in queues:
                    parts += [Text(piece)] if piece else []
                elif queues[kind]:
                    parts.append(self._rooted(MEDIA[kind](queues[kind].pop(0))))  # type: ignore[arg-type]
                else:
                    raise UserError(f"{key}: more <{kind}> tags than {kind}s; give each tag its file")
        return Message(message.role, tuple(parts))

    def _rooted(self, part: Part) -> Part:
        """The part with a relative path made absolute; it may not climb out of the media folder."""
        source = part.source if isinstance(part, Media) else None
        if not isinstance(source, str) or source.startswith("data:") or Path(source).is_absolute():
            return part
        if not (self.folder / source).resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{source}: leads out of the media folder {self.folder}; move the file below it")
        return type(part)(str(self.folder / source))


AnySource = Annotated[
    TextConfig | MessagesConfig | TableConfig | ComposedConfig | WorldConfig | ShardsConfig,
    Field(discriminator="reader"),
]
SOURCES: dict[type[SourceConfig], Any] = {
    TextConfig: TextSource,
    MessagesConfig: MessagesSource,
    TableConfig: TableSource,
    ComposedConfig: ComposedSource,
    WorldConfig: WorldSource,
    ShardsConfig: ShardSource,
}


def open_source(config: SourceConfig, data_root: Path | str = ".") -> Source:
    """Open the source that a config describes.

    Raises:
        UserError: if its files are absent, of another kind, or hold no samples.
    """
    source: Source = SOURCES[type(config)](config, Path(data_root))
    return source

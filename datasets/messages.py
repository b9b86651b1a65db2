"""Conversations: rows of Hugging Face, ms-swift, LLaMA-Factory, LLaVA and The Cauldron, from json or parquet.

A row holds its turns under `messages`, `conversations` or `texts`, each `{"role", "content"}`, `{"from", "value"}` or
`{"user", "assistant"}`, or it is an older ms-swift row of `query`, `response` and `history`. Tags such as `<image>`
take the media that the row lists of that kind, in order; in a row without such media a tag is just text.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmgpt.config import Config, UserError
from mmgpt.datasets.media import MEDIA, Media
from mmgpt.datasets.rows import FOLDER_OF, Row, open_rows
from mmgpt.datasets.sample import Message, Part, Sample, Text, parse_messages
from mmgpt.datasets.source import Source, SourceConfig, media_of, resolve, resolve_all

TURNS = ("messages", "conversations", "conversation", "texts")
NAMES = {"image": ("images", "image"), "audio": ("audios", "audio", "sound", "sounds"), "video": ("videos", "video")}
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}


class Columns(Config):
    """LLaMA-Factory's `columns`: which column of a row holds what; found by the usual names if not given."""

    messages: str | None = None
    system: str = "system"
    images: str | None = None
    audios: str | None = None
    videos: str | None = None


class Tags(Config):
    """LLaMA-Factory's `tags`: the keys of a turn and the names of its roles; the usual ones if not given."""

    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str = "user"
    assistant_tag: str = "assistant"
    system_tag: str = "system"
    observation_tag: str = "observation"
    function_tag: str = "function_call"


class MessagesConfig(SourceConfig):
    """Conversations; see the module's docstring."""

    reader: Literal["messages", "llava"]  # two names of one reader
    path: str  # json, json lines or parquet; of the last two also a folder, or a pattern with *
    media_root: str | None = None  # folder of relative media paths; the first file's own folder if not given
    columns: Columns = Columns()
    tags: Tags = Tags()
    placeholders: dict[Literal["image", "audio", "video"], str] = {}  # tags other than <image>, <audio>, <video>
    untagged: Literal["error", "first"] = "error"  # media without a tag: refused, or put before the first user turn


class MessagesSource(Source):
    """Conversations of a file, one a row."""

    def __init__(self, config: MessagesConfig, data_root: Path) -> None:
        self.config, self.root = config, data_root
        paths = resolve_all(data_root, config.path, FOLDER_OF)
        self.path, self.files = paths[0], paths
        self.folder = resolve(data_root, config.media_root) if config.media_root else self.path.parent
        self.name = config.label or Path(config.path).stem
        self.rows = open_rows(paths)
        given = config.columns
        self.turns = (given.messages,) if given.messages else TURNS
        lists = {"image": given.images, "audio": given.audios, "video": given.videos}
        self.media = {kind: (name,) if (name := lists[kind]) else NAMES[kind] for kind in MEDIA}
        media = [name for names in self.media.values() for name in names]
        self.rows.keep([*self.turns, *media, given.system, "query", "response", "history"])
        super().__init__(config, len(self.rows), self.path)

    def __getitem__(self, index: int) -> Sample:
        key, row = f"{self.name}/{index}", self.rows[index]
        queues = {}
        for kind, names in self.media.items():
            cells = [cell for name in names if (cell := row.get(name)) is not None]
            if media := media_of(kind, cells, self.folder, self.root):
                queues[kind] = media
        turns = self._turns(row, index)
        counts = {kind: len(queue) for kind, queue in queues.items()}
        messages = [self._place(message, queues, key) for message in self._parse(turns, queues, key)]
        if self.config.untagged == "first":
            messages = _show_first(messages, queues, counts, key)
        left = [f"{len(queue)} {kind}s" for kind, queue in queues.items() if queue]
        if left:
            raise UserError(f"{key}: {' and '.join(left)} have no placeholder; write one <image>-like tag for each")
        return Sample(tuple(messages), self.name, key)

    def _turns(self, row: Row, index: int) -> list[Any]:
        """The turns as {role, content}."""
        found = next((row[name] for name in self.turns if row.get(name) is not None), None)
        if found is None and row.get("response") is not None:
            pairs = [*(row.get("history") or []), (row.get("query"), row["response"])]
            found = [{"user": query, "assistant": response} for query, response in pairs]
        if found is None:
            raise UserError(f"{self.path}: row {index} has no messages; write {{'messages': [...]}}")
        turns = [turn for one in found for turn in self._roles(one)] if isinstance(found, list) else found
        system = row.get(self.config.columns.system)
        return [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system else turns

    def _roles(self, turn: Any) -> list[Any]:
        tags = self.config.tags
        if not isinstance(turn, Mapping):
            return [turn]
        if "assistant" in turn and tags.role_tag is None and "role" not in turn:
            return [{"role": role, "content": turn[role]} for role in ("user", "assistant") if turn.get(role)]
        role_tag = tags.role_tag or ("from" if "from" in turn else "role")
        content_tag = tags.content_tag or ("value" if "value" in turn else "content")
        if role_tag not in turn or content_tag not in turn:
            return [turn]
        own = {
            tags.user_tag: "user",
            tags.assistant_tag: "assistant",
            tags.system_tag: "system",
            tags.observation_tag: "tool",
            tags.function_tag: "assistant",
        }
        role = turn[role_tag]
        return [{"role": own.get(role, ROLES.get(role, role)), "content": turn[content_tag]}]

    def _parse(self, turns: Any, queues: dict[str, list[Media]], key: str) -> tuple[Message, ...]:
        """Messages; a content part that holds no medium (`{"type": "image"}`) takes the row's next one."""
        if not isinstance(turns, list):
            return parse_messages(turns)
        filled = []
        for turn in turns:
            content = turn.get("content") if isinstance(turn, dict) else None
            if isinstance(content, list):
                turn = {**turn, "content": [self._held(part, queues, key) for part in content]}
            filled.append(turn)
        return parse_messages(filled)

    def _held(self, part: Any, queues: dict[str, list[Media]], key: str) -> Any:
        if not isinstance(part, Mapping) or part.get("type") not in MEDIA:
            return part
        kind = part["type"]
        if any(part.get(name) is not None for name in ("path", "url", kind, f"{kind}_url", f"input_{kind}", "base64")):
            return part
        return _next(queues, kind, key) if kind in queues else part

    def _place(self, message: Message, queues: dict[str, list[Media]], key: str) -> Message:
        """Tags become media where the row lists media of that kind; elsewhere `<image>` is just text."""
        kinds = {self.config.placeholders.get(kind, f"<{kind}>"): kind for kind in MEDIA if kind in queues}  # type: ignore[call-overload]
        if "audio" in queues and "audio" not in self.config.placeholders:
            kinds["<sound>"] = "audio"
        if len(set(kinds.values())) < len(queues):
            raise UserError(f"{key}: media of two kinds share a placeholder; give them different ones")
        pattern = f"({'|'.join(map(re.escape, kinds))})"
        parts: list[Part] = []
        for part in message.parts:
            if not isinstance(part, Text):
                parts += self._rooted(part)
                continue
            for piece in re.split(pattern, part.text) if kinds else [part.text]:
                if piece in kinds:
                    parts.append(_next(queues, kinds[piece], key))  # type: ignore[arg-type]
                elif piece:
                    parts.append(Text(piece))
        return Message(message.role, tuple(parts))

    def _rooted(self, part: Media) -> list[Any]:
        """A content part's own medium, its path below the media folder."""
        if isinstance(part.source, str):
            return media_of(part.modality, part.source, self.folder, self.root)
        return [part]


def _next(queues: dict[str, list[Media]], kind: str, key: str) -> Media:
    if not queues[kind]:
        raise UserError(f"{key}: more <{kind}> tags than {kind}s; give each tag its file")
    return queues[kind].pop(0)


def _show_first(
    messages: list[Message], queues: dict[str, list[Media]], counts: dict[str, int], key: str
) -> list[Message]:
    """Media of a kind that no tag names, before the words of the first user turn."""
    shown: list[Part] = []
    for kind, queue in queues.items():
        if len(queue) == counts[kind]:  # a row whose tags are only too few stays an error
            shown += queue  # type: ignore[arg-type]
            queue.clear()
    at = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if shown and at is None:
        raise UserError(f"{key}: its media have no user turn to stand in; add one")
    if shown and at is not None:
        messages[at] = Message("user", (*shown, *messages[at].parts))
    return messages

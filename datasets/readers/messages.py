"""Conversations: rows of Hugging Face, ms-swift, LLaMA-Factory, LLaVA and The Cauldron, from json or parquet.

A row holds its turns under `messages`, `conversations` or `texts`, each `{"role", "content"}`, `{"from", "value"}` or
`{"user", "assistant"}`, or it is an older ms-swift row of `query`, `response` and `history`. Tags such as `<image>`
take the media that the row lists of that kind, in order; in a row without such media a tag is an error, unless
`text_tags` names it. Every key of a row, turn and part is read, in `ignore`, or an error; null is as absent.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.cells import check_keys, is_ignored
from mmgpt.datasets.media import MEDIA, Media
from mmgpt.datasets.parts import is_absent, present, short
from mmgpt.datasets.readers.placing import Listed, Placeholders, grounded, held
from mmgpt.datasets.readers.rows import FOLDER_OF, Row, open_rows
from mmgpt.datasets.sample import Message, Part, Reasoning, Sample, parse_messages, role_name
from mmgpt.datasets.source import Source, SourceConfig, media_from_cell, resolve, resolve_all

TURNS = ("messages", "conversations", "conversation", "texts")
NAMES = {"image": ("images", "image"), "audio": ("audios", "audio", "sound", "sounds"), "video": ("videos", "video")}
QUERY = ("query", "response", "history")
# Keys that by the definition of the formats tell where a row or pair is from, and hold nothing to be learned.
ORIGIN = ("id", "source", "model")
PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "label", "kto_tag")
LOOKED_AT = 1000  # rows, in one of which a column that the config names must occur


class Columns(Config):
    """LLaMA-Factory's `columns`: which column of a row holds what; found by the usual names if not given."""

    messages: str | None = None
    system: str = "system"
    tools: str = "tools"
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
    text_tags: list[str] = []  # tags that are just words in rows without such media, as <video> is in HTML
    untagged: Literal["error", "first"] = "error"  # media without a tag: refused, or put before the first user turn
    reasoning: Reasoning | None = None  # reasoning_content: drop it, or think: <think>...</think> before the answer


class MessagesSource(Source):
    """Conversations of a file, one a row."""

    def __init__(self, config: MessagesConfig, data_root: Path) -> None:
        self.config, self.root = config, data_root
        path = config.path.replace("{split}", config.split)
        folder = config.media_root and config.media_root.replace("{split}", config.split)
        paths = resolve_all(data_root, path, FOLDER_OF)
        self.path, self.files = paths[0] if len(paths) == 1 else data_root / path, paths
        self.folder = resolve(data_root, folder) if folder else paths[0].parent
        self.name = config.label or Path(path).stem
        self.rows = open_rows(paths)
        given = config.columns
        self.turns = (given.messages,) if given.messages else TURNS
        lists = {"image": given.images, "audio": given.audios, "video": given.videos}
        self.media = {kind: (name,) if (name := lists[kind]) else NAMES[kind] for kind in MEDIA}
        self.known = {*self.turns, *QUERY, given.system, given.tools, "objects"}
        self.known |= {name for names in self.media.values() for name in names}
        named = {str(kind): tag for kind, tag in config.placeholders.items()}
        self.placeholders = Placeholders(named, config.text_tags)
        self._check_columns()
        self.rows.select_columns([name for name in self._names() if name in self.known or not self._is_left_out(name)])
        super().__init__(config, len(self.rows), self.path)

    def __getitem__(self, index: int) -> Sample:
        key, row = f"{self.name}/{index}", self.rows[index]
        try:
            return Sample(tuple(self._conversation(row, index)), self.name, key)
        except UserError as error:
            raise type(error)(f"{self.path}: {key}: {error}") from None

    def _names(self) -> list[str]:
        """The columns of the first row; none where it is faulty, which whoever reads it is told."""
        try:
            return self.rows.names()
        except UserError:
            return []

    def _check_columns(self) -> None:
        """The columns that the config names occur."""
        columns = self.config.columns
        given = {field: name for field, name in columns if name != type(columns).model_fields[field].default}
        named = {field: str(name) for field, name in given.items()}
        seen = set(self._names())
        if not seen.issuperset(named.values()):
            with contextlib.suppress(UserError):  # a faulty row; those before it do
                seen |= {name for row in islice(self.rows.iterate(list(seen)), LOOKED_AT) for name in row}
        for field, name in named.items():
            if seen and name not in seen:
                raise UserError(
                    f"{self.path}: columns.{field}={name}, but no row of the first {LOOKED_AT} has such a key; "
                    f"{did_you_mean(name, seen)}"
                )

    def _is_left_out(self, name: str) -> bool:
        return name in ORIGIN or is_ignored(name, self.config.ignore)

    def _conversation(self, row: Row, index: int) -> list[Message]:
        given = {name: cell for name, cell in present(row).items() if not is_ignored(name, self.config.ignore)}
        _refuse_preferences(given)
        turns, used = self._turns(row, given, index)
        columns, listed = self.config.columns, self._listed(given)
        turns = _with_system(turns, given.get(columns.system), given.get(columns.tools))
        messages = self._parse(turns, listed)
        messages = [self.placeholders.place(self._rooted(message), listed, row) for message in messages]
        if self.config.untagged == "first":
            messages = _show_first(messages, [one for one in listed.values() if not one.taken])
        unplaced = [f"{len(one.left)} {kind}s" for kind, one in listed.items() if one.left]
        if unplaced:
            raise UserError(f"{' and '.join(unplaced)} have no placeholder; write one <image>-like tag for each")
        messages = grounded(messages, given.get("objects"), self.config.text_tags, self.config.ignore)
        used += [name for names in self.media.values() for name in names]
        used += [columns.system, columns.tools, "objects", *ORIGIN]
        left = [name for name in given if name not in used]
        check_keys(left, self.known.difference(left), self.config.ignore, "the row")
        _refuse_blank_answers(messages)
        return messages

    def _listed(self, given: Mapping[str, Any]) -> dict[str, Listed]:
        """The media that a row lists, by kind."""
        listed: dict[str, Listed] = {}
        for kind, names in self.media.items():
            media: list[Media] = []
            for name in names:
                try:
                    media += media_from_cell(kind, given.get(name), self.folder, self.root)
                except UserError as error:
                    raise type(error)(f"{name}: {error}") from None
            if media:
                listed[kind] = Listed(kind, media)
        return listed

    def _turns(self, row: Row, given: Mapping[str, Any], index: int) -> tuple[list[Any], list[str]]:
        """The turns as {role, content}, and the keys that they were found under."""
        names = [name for name in self.turns if name in given]
        if not names:  # an empty conversation is one
            names = [name for name in self.turns if row.get(name) is not None][:1]
        if len(names) > 1:
            raise UserError(
                f"turns stand under {' and '.join(names)}; ignore one, or name the other in columns.messages"
            )
        if names:
            found = _decoded(row[names[0]])
        elif "response" in given:
            names = [name for name in QUERY if name in given]
            found = [_exchange(pair) for pair in given.get("history", [])]
            found.append(_exchange([given.get("query"), given["response"]]))
        else:
            keys = ", ".join(row) or "none"
            raise UserError(
                f"row {index} has no messages, its keys are {keys}; write {{'messages': [...]}}, or name the key in "
                "columns.messages"
            )
        turns = [turn for one in found for turn in self._roles(one)] if isinstance(found, list) else found
        return turns, names

    def _roles(self, turn: Any) -> list[Any]:
        tags = self.config.tags
        if not isinstance(turn, Mapping):
            return [turn]
        if tags.role_tag is None and turn.get("assistant") is not None and is_absent(turn.get("role")):
            return self._pair(turn)
        role_tag = tags.role_tag or ("role" if is_absent(turn.get("from")) else "from")
        content_tag = tags.content_tag or ("content" if turn.get("value") is None else "value")
        for name, option in ((role_tag, tags.role_tag), (content_tag, tags.content_tag)):
            if option and name not in turn:
                raise UserError(
                    f"the turn {short(turn)} has no key {name!r}, which tags names; {did_you_mean(name, turn)}"
                )
        if role_tag not in turn:
            return [turn]
        rest = {name: cell for name, cell in turn.items() if name not in (role_tag, content_tag)}
        check_keys(
            [name for name in present(rest) if name in ("role", "content")],
            (role_tag, content_tag),
            self.config.ignore,
            f"the turn {short(turn)}",
        )
        own = {
            tags.user_tag: "user",
            tags.assistant_tag: "assistant",
            tags.system_tag: "system",
            tags.observation_tag: "tool",
            tags.function_tag: "function_call",
        }
        role = turn[role_tag]
        named = own.get(role, role) if isinstance(role, str) else role
        return [{**rest, "role": named, "content": turn.get(content_tag)}]

    def _pair(self, turn: Mapping[str, Any]) -> list[Any]:
        """A pair of The Cauldron's or ms-swift's as two turns; it may have no question."""
        given = present(turn)
        asked = [name for name in ("user", "human") if name in given]
        check_keys(given, (*asked[:1], "assistant", *ORIGIN), self.config.ignore, f"the turn {short(turn)}")
        question = [{"role": "user", "content": given[asked[0]]}] if asked else []
        return [*question, {"role": "assistant", "content": turn["assistant"]}]

    def _parse(self, turns: Any, listed: dict[str, Listed]) -> Sequence[Message]:
        """Messages; a content part that holds no medium (`{"type": "image"}`) takes the row's."""
        filled = []
        for turn in turns if isinstance(turns, list) else []:
            content = turn.get("content") if isinstance(turn, dict) else None
            if isinstance(content, list):
                turn = {**turn, "content": [held(part, listed) for part in content]}
            filled.append(turn)
        return parse_messages(filled if isinstance(turns, list) else turns, self.config.ignore, self.config.reasoning)

    def _rooted(self, message: Message) -> Message:
        """A turn whose own media have their paths below the media folder."""
        parts: list[Part] = []
        for part in message.parts:
            is_own = isinstance(part, Media) and isinstance(part.source, str)
            parts += media_from_cell(part.modality, part.source, self.folder, self.root) if is_own else [part]  # type: ignore
        return replace(message, parts=tuple(parts))


def _refuse_preferences(given: Mapping[str, Any]) -> None:
    found = [name for name in PREFERENCES if name in given]
    if found:
        raise UserError(
            f"{' and '.join(map(repr, found))} mark good and bad answers, which preference training is what reads; "
            "here a bad one would be learned like a good one. To learn the turns all the same, write "
            f"ignore: [{', '.join(found)}]"
        )


def _refuse_blank_answers(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        is_said = message.text.strip() or message.calls or any(isinstance(part, Media) for part in message.parts)
        if message.role == "assistant" and message.is_learned and not is_said:
            raise UserError(f"message {number}: the answer is blank and would be learned; give it a text, or weight: 0")


def _decoded(turns: Any) -> Any:
    """Turns that a table holds as the text of their JSON."""
    if not isinstance(turns, str) or not turns.lstrip().startswith("["):
        return turns
    try:
        return json.loads(turns)
    except ValueError as error:
        raise UserError(f"messages {short(turns)} are not JSON ({error}); write a list") from None


def _exchange(pair: Any) -> dict[str, Any]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or is_absent(pair[1]):
        raise UserError(f"{short(pair)} is no exchange; history is a list of [query, response]")
    return {"user": pair[0], "assistant": pair[1]}


def _with_system(turns: Any, system: Any, tools: Any) -> Any:
    """Turns after the system text and the tools that their row gives apart."""
    if not isinstance(turns, list) or (system is None and tools is None):
        return turns
    opens = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    first = opens if role_name(opens.get("role")) == "system" else None
    opened = dict(first or {"role": "system", "content": None})
    if system is not None:
        if not isinstance(system, str):
            raise UserError(f"the system text is {short(system)}; write a string")
        own = opened.get("content")
        if not is_absent(own) and own != system:
            raise UserError(f"two system texts, {short(system)} beside the turn {short(own)}; give one")
        opened["content"] = system
    if tools is not None:
        if not is_absent(opened.get("tools")):
            raise UserError("the row and its system turn both list tools; list them once")
        opened["tools"] = tools
    return [opened, *(turns[1:] if first else turns)]


def _show_first(messages: list[Message], listed: Sequence[Listed]) -> list[Message]:
    """Media of a kind that no tag names, before the words of the first user turn."""
    shown = [one.next() for one in listed for _ in one.items]
    at = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if shown and at is None:
        raise UserError("its media have no user turn to stand in; add one")
    if shown and at is not None:
        messages[at] = replace(messages[at], parts=(*shown, *messages[at].parts))  # type: ignore[arg-type]
    return messages

"""The generic reader: the columns of a table, and media in a folder or zip, become messages by a template.

Rows come from a json list (of objects, or of lists named by `columns`), json lines, csv or tsv, or from file names
(`files: "train/{label}/{name}.jpg"` in a folder or zip). `prompt` and `answer` are templates over the columns, in
which {image}, {audio} and {video} stand for the media. Rows that share `group_by` become the branches of one sample.
"""

import csv
import json
import re
import zlib
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import PositiveInt

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.media import MEDIA, open_zip
from mmgpt.datasets.sample import Message, Part, Sample, Text
from mmgpt.datasets.source import Source, SourceConfig, resolve

Row = dict[str, Any]


class Derived(Config):
    """A column made from another one: lower-cased, then with pieces replaced in order."""

    column: str
    lower: bool = False
    replace: dict[str, str] = {}


class Holdout(Config):
    """A fixed test split by hash, for data without an official one: crc32(key) % modulo == 0 is test."""

    key: str
    modulo: PositiveInt = 10


class TableConfig(SourceConfig):
    """A table with media; see the module's docstring."""

    reader: Literal["table"]
    path: str
    columns: list[str] | None = None
    files: str | None = None
    derive: dict[str, Derived] = {}
    where: dict[str, str | list[str]] = {}
    splits: dict[str, dict[str, str | list[str]]] = {}  # what columns hold in each split; train has the other rows
    holdout: Holdout | None = None
    image: str | None = None
    audio: str | None = None
    video: str | None = None
    missing_media: Literal["error", "skip"] = "error"
    prompt: str = ""
    answer: str
    group_by: str | None = None


class TableSource(Source):
    """Samples of a table."""

    def __init__(self, config: TableConfig, data_root: Path) -> None:
        self.config, self.root = config, data_root
        if config.splits and config.split not in (*config.splits, "train"):
            known = did_you_mean(config.split, (*config.splits, "train"))
            raise UserError(f"split {config.split!r} of {config.label or config.path} does not exist; {known}")
        path = resolve(data_root, self._fill(config.path, {}))
        self.name = config.label or path.stem
        rows = _read_files(path, self._fill(config.files, {})) if config.files else _read_rows(path, config.columns)
        if rows:
            self._check_columns(rows[0], path)
        rows = [row for row in map(self._derive, rows) if self._is_wanted(row)]
        if config.missing_media == "skip":
            rows = [row for row in rows if all(_exists(data_root / p) for p in self._media_paths(row).values())]
        self.groups: list[list[Row]] = [[row] for row in rows]
        if config.group_by:
            grouped: dict[Any, list[Row]] = {}
            for row in rows:
                grouped.setdefault(row[config.group_by], []).append(row)
            self.groups = list(grouped.values())
        super().__init__(config, len(self.groups), path)

    def __getitem__(self, index: int) -> Sample:
        rows = self.groups[index]
        media = {kind: MEDIA[kind](str(self._inside(path))) for kind, path in self._media_paths(rows[0]).items()}
        turns = [self._turns(row, media) for row in rows]
        name = rows[0][self.config.group_by] if self.config.group_by else index
        key = f"{self.name}/{self.config.split}/{name}"
        if not self.config.group_by:
            return Sample(turns[0], self.name, key)
        parts = turns[0][0].parts
        shared = max((i + 1 for i, part in enumerate(parts) if not isinstance(part, Text)), default=0)
        branches = tuple((Message("user", question.parts[shared:]), answer) for question, answer in turns)
        return Sample((Message("user", parts[:shared]),), self.name, key, branches)

    def _turns(self, row: Row, media: dict[str, Any]) -> tuple[Message, ...]:
        answer = Message.of("assistant", self._fill(self.config.answer, row))
        if not self.config.prompt:
            return (answer,)
        parts: list[Part] = []
        for literal, field, _, _ in Formatter().parse(self.config.prompt):
            if literal:
                parts.append(Text(literal))
            if field is not None:
                parts.append(media[field] if field in media else Text(str(row[field])))
        return Message("user", tuple(parts)), answer

    def _fill(self, template: str | None, row: Row) -> str:
        template = (template or "").replace("{split}", self.config.split)
        return template.format_map({key: str(value) for key, value in row.items()}) if row else template

    def _derive(self, row: Row) -> Row:
        new = {}
        for name, rule in self.config.derive.items():
            value = str(row[rule.column])
            value = value.lower() if rule.lower else value
            for old, replacement in rule.replace.items():
                value = value.replace(old, replacement)
            new[name] = value
        return {**row, **new}

    def _is_wanted(self, row: Row) -> bool:
        if not _fits(row, self.config.where):
            return False
        own = next((name for name, where in self.config.splits.items() if _fits(row, where)), "train")
        if self.config.splits and own != self.config.split:
            return False
        if self.config.holdout is None:
            return True
        bucket = zlib.crc32(self._fill(self.config.holdout.key, row).encode()) % self.config.holdout.modulo
        return (bucket == 0) == (self.config.split == "test")

    def _media_paths(self, row: Row) -> dict[str, str]:
        return {kind: self._fill(path, row) for kind in MEDIA if (path := getattr(self.config, kind))}

    def _inside(self, path: str) -> Path:
        full = self.root / path
        if not full.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{path}: leads out of the data root {self.root}; a table may only name files below it")
        return full

    def _check_columns(self, row: Row, path: Path) -> None:
        config = self.config
        media = [kind for kind in MEDIA if getattr(config, kind)]
        known = [*row, *config.derive, "split"]
        used = [(rule.column, list(row)) for rule in config.derive.values()]
        used += [(column, known) for where in (config.where, *config.splits.values()) for column in where]
        used += [(config.group_by, known)] if config.group_by else []
        templates = [
            config.answer,
            config.image,
            config.audio,
            config.video,
            config.holdout.key if config.holdout else None,
        ]
        used += [(field, known) for template in templates for field in fields_of(template)]
        used += [(field, known + media) for field in fields_of(config.prompt)]
        for field, options in used:
            if field not in options:
                raise UserError(
                    f"{path}: the template names {{{field}}}, the rows do not; {did_you_mean(field, options)}"
                )
        for kind in media:
            if kind not in fields_of(config.prompt):
                raise UserError(
                    f"{path}: {kind} is given but the prompt {config.prompt!r} has no {{{kind}}} to show it"
                )


def fields_of(template: str | None) -> list[str]:
    """The names in braces of a template."""
    return [field for _, field, _, _ in Formatter().parse(template or "") if field is not None]


def _fits(row: Row, where: dict[str, str | list[str]]) -> bool:
    return all(str(row[name]) in ([values] if isinstance(values, str) else values) for name, values in where.items())


def _exists(path: Path) -> bool:
    archive, inside_zip, inner = str(path).partition(".zip/")
    return inner in open_zip(archive + ".zip").NameToInfo if inside_zip else path.is_file()


def _read_rows(path: Path, columns: list[str] | None) -> list[Row]:
    readers = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv, ".tsv": _read_csv}
    if path.suffix not in readers:
        raise UserError(f"{path}: a table is a file of {', '.join(readers)}; for a folder of media give files: PATTERN")
    try:
        rows = readers[path.suffix](path)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a readable {path.suffix[1:]} table ({error})") from None
    named = []
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            named.append(row)
        elif isinstance(row, list) and columns and len(row) == len(columns):
            named.append(dict(zip(columns, row, strict=True)))
        else:
            raise UserError(
                f"{path}: row {number} is {str(row)[:60]}; give objects, or lists and as many names in columns"
            )
    return named


def _read_json(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"it holds a {type(rows).__name__}, not a list of rows")
    return rows


def _read_json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def _read_files(path: Path, pattern: str) -> list[Row]:
    """One row a file: the pattern's names as columns, and `file`, its path inside the folder or zip."""
    expression = "".join(
        re.escape(literal) + (f"(?P<{field}>[^/]+)" if field else "")
        for literal, field, _, _ in Formatter().parse(pattern)
    )
    if path.suffix == ".zip":
        names = open_zip(str(path)).namelist()
    else:
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    matches = [(name, match) for name in sorted(names) if (match := re.fullmatch(expression, name))]
    return [{**match.groupdict(), "file": name} for name, match in matches]

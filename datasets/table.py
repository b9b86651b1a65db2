"""The generic reader: the columns of a table, and media in a folder, a zip or the table, become messages by a template.

Rows come from json (a list of objects, of lists named by `columns`, or objects under a key), json lines, csv, tsv, txt
(lines, whose fields a tab parts), parquet, or from file names (`files: "train/{label}/{name}.jpg"` in a folder or
zip). A name in braces in `path` is a column, as in "mmlu/{split}/{subject}_test.csv". `prompt` and `answer` are
templates over the columns, in which {image}, {audio} and {video} stand for the media.
Rows that share `group_by`, and the answers of a list of templates, become the branches of one sample.
"""

import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.derived import Derived
from mmgpt.datasets.media import MEDIA, Media, MediaError, open_zip
from mmgpt.datasets.rows import (
    FOLDER_OF,
    ListRows,
    NamedRows,
    Row,
    Rows,
    names_in_path,
    open_rows,
    read_file_names,
    read_lines,
)
from mmgpt.datasets.sample import Message, Part, Sample, Text, Truth
from mmgpt.datasets.source import Source, SourceConfig, media_of, resolve, resolve_all


class Beside(Config):
    """A column from a file of its own, row by row: the lines of a text file, or the arrays of a .npy file."""

    path: str
    is_bgr: bool = False  # the pictures of an array have their channels in the order blue, green, red


class Holdout(Config):
    """A fixed test split by hash, for data without an official one: crc32(key) % modulo == 0 is test."""

    key: str
    modulo: PositiveInt = 10


class TableConfig(SourceConfig):
    """A table with media; see the module's docstring."""

    reader: Literal["table", "parquet"]
    path: str  # a file, or a pattern with * or {column}; of json lines and parquet also a folder of such files
    columns: list[str] | None = None
    rows: str | None = None  # the key of a json file under which its rows stand
    is_quoted: bool = True  # false for a csv or tsv in which a double quote is a character like any other
    files: str | None = None
    beside: dict[str, Beside] = {}
    derive: dict[str, Derived] = {}
    where: dict[str, str | list[str]] = {}  # what columns hold in the rows to keep
    listed: dict[str, str] = {}  # column: a text file with the values to keep, one a line
    splits: dict[str, dict[str, str | list[str]]] = {}  # what columns hold in each split; train has the other rows
    holdout: Holdout | None = None
    image: str | list[str] | None = None  # several: each may be empty, all stand at {image} ...
    image_tag: str | None = None  # ... but for those that the words place: "<image {number}>", numbered from 1
    audio: str | None = None
    video: str | None = None
    missing_media: Literal["error", "skip", "optional"] = "error"  # optional: a row with an empty cell has none
    prompt: str = ""
    answer: str | list[str]
    answers: str | None = None  # the column with a list of all right answers, for scoring
    choices: str | list[str] | None = None  # what the answer is chosen from: a column with a list, or templates
    tags: list[str] = []  # columns whose values are groups that scores are reported of
    group_by: str | None = None
    key: str | None = None  # template that names a sample; its group or number if not given

    @model_validator(mode="after")
    def branches_share_a_prompt(self) -> Self:
        if not self.prompt and (self.group_by or isinstance(self.answer, list)):
            raise ValueError("group_by and a list of answers make branches of one prompt; give a prompt")
        return self

    @model_validator(mode="after")
    def templates_are_whole(self) -> Self:
        for name in ("path", "prompt", "answer", "key", *MEDIA):
            for template in _many(getattr(self, name) or []):
                try:
                    fields_of(template)
                except ValueError as error:
                    raise ValueError(f"{name}={template!r}: {error}; write {{{{ or }}}} for a brace") from None
        return self


class TableSource(Source):
    """Samples of a table. A reader whose files need joining first hands in its own rows."""

    def __init__(self, config: TableConfig, data_root: Path, rows: Rows | None = None) -> None:
        self.config, self.root = config, data_root
        if config.splits and config.split not in (*config.splits, "train"):
            known = did_you_mean(config.split, (*config.splits, "train"))
            raise UserError(f"split {config.split!r} of {config.label or config.path} does not exist; {known}")
        self.path = data_root / self._split(config.path)
        self.name = config.label or self.path.stem
        self.media = {kind: [self._split(p) for p in _many(path)] for kind in MEDIA if (path := getattr(config, kind))}
        self.targets = [self._split(answer) for answer in _many(config.answer)]
        self.where = {name: [self._split(value) for value in _many(values)] for name, values in config.where.items()}
        self.has_truths = bool(config.answers or config.choices or config.tags)
        self.prompt = list(Formatter().parse(self._split(config.prompt)))
        self.rows = rows if rows is not None else self._open_rows()
        if len(self.rows):
            self.rows.keep(self._check_columns(self.rows.names()))
        self.groups = self._group()
        super().__init__(config, len(self.groups), self.path)

    def __getitem__(self, index: int) -> Sample:
        group = self.groups[index]
        rows = [self._derive(self.rows[n]) for n in (group if isinstance(group, array) else [group])]
        media = self._media_of(rows[0])
        turns = [turn for row in rows for turn in self._turns(row, media)]
        truths = tuple(self._truth(row) for row in rows for _ in self.targets) if self.has_truths else ()
        name: Any = rows[0][self.config.group_by] if self.config.group_by else index
        key = f"{self.name}/{self.config.split}/{self._fill(self.config.key, rows[0]) if self.config.key else name}"
        if not self.config.group_by and len(turns) == 1:
            return Sample(turns[0], self.name, key, truths=truths)
        return replace(_branched(turns, self.name, key), truths=truths)

    def _open_rows(self) -> Rows:
        config, path = self.config, self._split(self.config.path)
        if config.files:
            origin = resolve(self.root, path)
            self.files = [origin] if origin.is_file() else []
            rows: Rows = read_file_names(origin, self._split(config.files))
        else:
            names = fields_of(path)
            files = resolve_all(self.root, re.sub(r"(\{[^}]*\}\*?)+", "*", path), FOLDER_OF)
            self.files = files
            parts = [[file] for file in files] if names else [files]
            opened = [open_rows(part, config.columns, config.rows, is_quoted=config.is_quoted) for part in parts]
            named = [names_in_path(file, self.root, path) for file in files] if names else []
            rows = NamedRows(list(zip(opened, named, strict=True))) if names else opened[0]
        for name, beside in config.beside.items():
            rows = self._join(rows, name, beside)
        return rows

    def _join(self, rows: Rows, name: str, beside: Beside) -> Rows:
        path = resolve(self.root, self._split(beside.path))
        self.files = [*self.files, path]
        if path.suffix == ".npy":
            try:
                cells: Sequence[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise UserError(f"{path}: not an array that can be read ({error}); save it with numpy.save") from None
            cells = cells[..., ::-1] if beside.is_bgr else cells  # type: ignore[call-overload]
        else:
            cells = read_lines(path)
        if len(cells) != len(rows):
            raise UserError(f"{path}: holds {len(cells)} rows, {self.path} holds {len(rows)}; they must match")
        return ListRows({**rows[n], name: cells[n]} for n in range(len(rows)))

    def _deciding_columns(self) -> list[str]:
        """The columns that say which rows are read and which belong together."""
        config = self.config
        names = [*config.where, *config.listed, *(name for where in config.splits.values() for name in where)]
        names += fields_of(config.holdout.key) if config.holdout else []
        return [*names, config.group_by] if config.group_by else names

    def _group(self) -> Sequence[Any]:
        """Of each sample the number of its row, or an array of the numbers of its rows."""
        config = self.config
        wanted = self._deciding_columns()
        if config.missing_media == "skip":
            wanted += [name for paths in self.media.values() for path in paths for name in fields_of(path)]
        if not wanted:
            return range(len(self.rows))
        wanted += [name for rule in config.derive.values() for name in (rule.column, rule.item) if name]
        lists = {name: set(read_lines(resolve(self.root, self._split(p)))) for name, p in config.listed.items()}
        kept = array("q")
        groups: dict[Any, array[int]] = {}
        columns = list(dict.fromkeys(name for name in wanted if name in self.rows.names()))
        plain = {name: kept for name, kept in self.where.items() if name not in config.derive}
        for number, raw in enumerate(self.rows.scan(columns)):
            if not _fits(raw, plain):  # before anything is derived: rows of another kind may not bear it
                continue
            row = self._derive(raw)
            if not self._is_wanted(row, lists):
                continue
            if config.group_by:
                self._fill(f"{{{config.group_by}}}", row)  # which refuses an empty cell
                groups.setdefault(row[config.group_by], array("q")).append(number)
            else:
                kept.append(number)
        return list(groups.values()) if config.group_by else kept

    def _media_of(self, row: Row) -> dict[str, list[Media]]:
        found = {
            kind: [one for path in paths for one in media_of(kind, self._cell(path, row), self.root, self.root)]
            for kind, paths in self.media.items()
        }
        for kind, media in found.items():
            if not media and self.config.missing_media != "optional":
                raise MediaError(
                    f"{self.path}: a row has no {kind}, {_short(row)}; say missing_media: skip or optional"
                )
        return found

    def _cell(self, template: str, row: Row) -> Any:
        """What the template of a medium holds in a row: the cell itself, or a path; None where a cell is empty."""
        names = fields_of(template)
        if template == f"{{{names[0] if names else ''}}}":
            return row.get(names[0])
        is_empty = any(row.get(name) is None or row[name] == "" for name in names)
        return None if is_empty else self._fill(template, row)

    def _turns(self, row: Row, media: dict[str, list[Media]]) -> Iterator[tuple[Message, ...]]:
        parts: list[Part] = []
        for literal, field, spec, _ in self.prompt:
            parts += [Text(literal)] if literal else []
            if field in media:
                parts += media[field]  # type: ignore[arg-type]
            elif field is not None:
                parts.append(Text(self._fill(f"{{{field}:{spec}}}", row)))
        if self.config.image_tag:
            parts = _placed(parts, self.config.image_tag)
        for template in self.targets:
            answer = Message.of("assistant", self._fill(template, row))
            yield (Message("user", tuple(parts)), answer) if self.config.prompt else (answer,)

    def _truth(self, row: Row) -> Truth:
        config = self.config
        answers = self._listed(config.answers, row) if config.answers else ()
        choices: tuple[str, ...] = ()
        if isinstance(config.choices, list):
            choices = tuple(self._fill(template, row) for template in config.choices)
        elif config.choices:
            choices = self._listed(config.choices, row)
        return Truth(answers, choices, {name: str(row[name]) for name in config.tags})

    def _listed(self, column: str, row: Row) -> tuple[str, ...]:
        cell = row[column]
        if not isinstance(cell, list | tuple) or not cell:
            raise UserError(f"{self.path}: {column} is {str(cell)[:60]!r} in a row, not a list; name a column of lists")
        return tuple(map(str, cell))

    def _split(self, template: str) -> str:
        return template.replace("{split}", self.config.split)

    def _fill(self, template: str, row: Row) -> str:
        template = self._split(template)
        empty = [name for name in fields_of(template) if row.get(name) is None]
        if empty:
            raise UserError(f"{self.path}: {empty[0]} is empty in the row {_short(row)}; leave such rows out")
        try:
            return template.format_map(row)
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path}: {template!r} cannot be filled with {_short(row)} ({error})") from None

    def _derive(self, row: Row) -> Row:
        for name, rule in self.config.derive.items():
            row = {**row, name: rule.of(row)} if rule.column in row else row
        return row

    def _is_wanted(self, row: Row, lists: dict[str, set[str]]) -> bool:
        if not _fits(row, self.where) or any(str(row.get(name)) not in kept for name, kept in lists.items()):
            return False
        own = next((name for name, where in self.config.splits.items() if _fits(row, where)), "train")
        if self.config.splits and own != self.config.split:
            return False
        if self.config.holdout is not None:
            bucket = zlib.crc32(self._fill(self.config.holdout.key, row).encode()) % self.config.holdout.modulo
            if (bucket == 0) != (self.config.split == "test"):
                return False
        return self.config.missing_media != "skip" or all(
            self._exists(path, row) for paths in self.media.values() for path in paths
        )

    def _exists(self, template: str, row: Row) -> bool:
        cell = self._cell(template, row)
        if not isinstance(cell, str) or cell.startswith("data:"):
            return bool(media_of("image", cell, self.root, self.root))
        archive, inside_zip, inner = str(self.root / cell).partition(".zip/")
        return inner in open_zip(archive + ".zip").NameToInfo if inside_zip else (self.root / cell).is_file()

    def _check_columns(self, names: list[str]) -> list[str]:
        """The columns that the config names, all of which there are."""
        config = self.config
        known = [*names, *config.derive, "split"]
        used: list[tuple[str, list[str]]] = []
        for number, rule in enumerate(config.derive.values()):
            before = [*names, *list(config.derive)[:number]]
            used += [(name, before) for name in (rule.column, rule.item) if name]
        used += [(column, known) for column in self._deciding_columns()]
        templates = [*self.targets, *(path for paths in self.media.values() for path in paths), config.key]
        templates += config.choices if isinstance(config.choices, list) else []
        lists = [config.answers, config.choices if isinstance(config.choices, str) else None, *config.tags]
        used += [(name, known) for name in lists if name]
        used += [(field, known) for template in templates for field in fields_of(template)]
        used += [(field, [*known, *self.media]) for field in fields_of(config.prompt)]
        for field, options in used:
            if field not in options:
                raise UserError(
                    f"{self.path}: the template names {{{field}}}, the rows do not; {did_you_mean(field, options)}"
                )
        for kind in self.media:
            if kind not in fields_of(config.prompt):
                raise UserError(
                    f"{self.path}: {kind} is given but the prompt {config.prompt!r} has no {{{kind}}} to show it"
                )
        return [field for field, _ in used]


def fields_of(template: str | None) -> list[str]:
    """The names in braces of a template."""
    return [field for _, field, _, _ in Formatter().parse(template or "") if field is not None]


def _many(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _placed(parts: list[Part], tag: str) -> list[Part]:
    """Pictures in place of the first tag of their number; those without a tag stay."""
    pictures = [part for part in parts if not isinstance(part, Text)]
    tags = {tag.format(number=number): picture for number, picture in enumerate(pictures, start=1)}
    pattern, words = f"({'|'.join(map(re.escape, tags))})", "".join(p.text for p in parts if isinstance(p, Text))
    left = [picture for spelt, picture in tags.items() if spelt not in words]
    found: list[Part] = []
    for part in parts:
        if not isinstance(part, Text):
            found += [part] if any(part is one for one in left) else []
            continue
        for piece in re.split(pattern, part.text) if tags else [part.text]:
            shown = tags.pop(piece, None)
            if shown is not None or piece:
                found.append(shown or Text(piece))
    return found


def _fits(row: Row, where: Mapping[str, str | list[str]]) -> bool:
    return all(str(row.get(name)) in _many(values) for name, values in where.items())


def _short(row: Row) -> str:
    return str({name: cell if isinstance(cell, str | int | None) else "..." for name, cell in row.items()})[:120]


def _branched(turns: Sequence[tuple[Message, ...]], name: str, key: str) -> Sample:
    """Prompts and answers that show the same media as one sample: what they share is the context."""
    parts = turns[0][0].parts
    if len(turns) > 1 and all(prompt.parts == parts for prompt, _ in turns):
        return Sample(turns[0][:1], name, key, tuple((answer,) for _, answer in turns))
    shared = max((i + 1 for i, part in enumerate(parts) if not isinstance(part, Text)), default=0)
    branches = tuple((Message("user", prompt.parts[shared:]), answer) for prompt, answer in turns)
    return Sample((Message("user", parts[:shared]),), name, key, branches)

"""The generic reader: the columns of a table, and media in a folder, a zip or the table, become messages by a template.

Rows come from json (a list of objects, of lists named by `columns`, or objects under a key), json lines, csv, tsv, txt
(lines, whose fields a tab parts), parquet, or from file names (`files: "train/{label}/{name}.jpg"` in a folder or
zip). A name in braces in `path` is a column, as in "mmlu/{split}/{subject}_test.csv". `prompt` and `answer` are
templates over the columns, in which {image}, {audio} and {video} stand for the media.
Rows that share `group_by`, and the answers of a list of templates, become the branches of one sample.

Every column is read by a key of the config, or stands in `ignore`, or is an error: when the source opens for the
columns of a header, a schema, a json file or the first of json lines, and else at the row that has it. A missing cell
(cells.py) is an error of its row wherever it is read, but for media, tags and the columns in `optional`.
"""

import re
import zipfile
import zlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.cells import check_keys, is_missing, matches
from mmgpt.datasets.file_names import as_on_disk, find_member, names_in_path, split_zip
from mmgpt.datasets.media import MEDIA, Media, MediaError, open_zip
from mmgpt.datasets.plain_text import read_lines
from mmgpt.datasets.readers.rows import FOLDER_OF, ListRows, NamedRows, Row, Rows, open_rows, read_file_names
from mmgpt.datasets.readers.table_config import SideFile, TableConfig, check_columns, several
from mmgpt.datasets.sample import GroundTruth, Message, Part, Sample, Text
from mmgpt.datasets.source import Source, media_from_cell, resolve, resolve_all
from mmgpt.datasets.template import EmptyCell, Piece, fields_of, fill, parse


class TableSource(Source):
    """Samples of a table. A reader whose files need joining first hands in its own rows."""

    def __init__(self, config: TableConfig, data_root: Path, rows: Rows | None = None) -> None:
        self.config, self.root = config, data_root
        splits = {"train", "test"} if config.holdout else {*config.splits, "train"}
        if (config.splits or config.holdout) and config.split not in splits:
            known = did_you_mean(config.split, splits)
            raise UserError(f"split {config.split!r} of {config.label or config.path} does not exist; {known}")
        self.path = data_root / self._split(config.path)
        self.name = config.label or self.path.stem
        self.media = {
            kind: [self._split(p) for p in paths] for kind in MEDIA if (paths := several(getattr(config, kind)))
        }
        self.where = {name: [self._split(value) for value in several(values)] for name, values in config.where.items()}
        self.prompt = parse(self._split(config.prompt))
        self.rows = rows if rows is not None else self._open_rows()
        self.columns = frozenset[str]()  # of the rows, those that have been checked
        if len(self.rows):
            names = self.rows.names()
            used = check_columns(config, names, self.rows.made, str(self.path))
            self.columns = frozenset(names)
            self.rows.select_columns(used)
        self.groups = self._group()
        super().__init__(config, len(self.groups), self.path)

    def __getitem__(self, index: int) -> Sample:
        config, group = self.config, self.groups[index]
        numbers = group if isinstance(group, array) else [group]
        turns: list[tuple[Message, ...]] = []
        truths: list[GroundTruth] = []
        media: dict[str, list[Media]] = {}
        name = str(index)
        for number in numbers:
            raw = self.rows[number]
            try:
                row = self._derived(raw)
                if number == numbers[0]:
                    media = self._media_of(row)
                    name = self._cell(config.group_by, row) if config.group_by else name
                    name = self._fill(config.key, row) if config.key else name
                turns += self._turns(row, media)
                if config.answers or config.choices or config.tags:
                    truths += [self._truth(row)] * len(several(config.answer))
            except ValueError as error:
                raise self._at(number, error) from None
        key = f"{self.name}/{config.split}/{name}"
        if not config.group_by and len(turns) == 1:
            return Sample(turns[0], self.name, key, truths=tuple(truths))
        return replace(_branched(turns, self.name, key), truths=tuple(truths))

    def _at(self, number: int, error: ValueError) -> UserError:
        """An error with the place of its row."""
        kind = MediaError if isinstance(error, MediaError) else UserError
        told = str(error) if isinstance(error, UserError) else f"{self.path}: {error}"
        return kind(f"{told} ({self.rows.place(number)})")

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
            named = [names_in_path(file.relative_to(self.root).as_posix(), path) for file in files] if names else []
            rows = NamedRows(list(zip(opened, named, strict=True))) if names else opened[0]
        for name, beside in config.beside.items():
            rows = self._join(rows, name, beside)
        return rows

    def _join(self, rows: Rows, name: str, beside: SideFile) -> Rows:
        path = resolve(self.root, self._split(beside.path))
        self.files = [*self.files, path]
        if name in rows.names():
            raise UserError(f"{path}: {self.path} has a column {name!r} of its own; call the one beside it otherwise")
        if path.suffix.lower() == ".npy":
            try:
                cells: Sequence[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise UserError(f"{path}: not an array that can be read ({error}); save it with numpy.save") from None
            cells = cells[..., ::-1] if beside.is_bgr else cells  # type: ignore[call-overload]
        else:
            cells = lines = read_lines(path)
            while len(lines) > len(rows) and not lines[-1].strip():
                lines.pop()
        if len(cells) != len(rows):
            raise UserError(f"{path}: holds {len(cells)} rows, {self.path} holds {len(rows)}; they must match")
        return ListRows(({**rows[n], name: cells[n]} for n in range(len(rows))), rows.made, rows)

    def _group(self) -> Sequence[Any]:
        """Of each sample the number of its row, or an array of the numbers of its rows."""
        config = self.config
        wanted = config.deciding_columns()
        if config.missing_media == "skip":
            wanted += [name for paths in self.media.values() for path in paths for name in fields_of(path)]
        if not wanted:
            return range(len(self.rows))
        wanted += [name for rule in config.derive.values() for name in (rule.column, rule.item) if name]
        lists = {name: set(read_lines(resolve(self.root, self._split(p)))) for name, p in config.listed.items()}
        kept = array("q")
        groups: dict[str, array[int]] = {}
        columns = list(dict.fromkeys(name for name in wanted if name in self.columns))
        plain = {name: values for name, values in self.where.items() if name not in config.derive}
        for number, raw in enumerate(self.rows.iterate(columns)):
            try:
                if not _fits(raw, plain):  # before anything is derived: rows of another kind may not bear it
                    continue
                row = self._derived(raw)
                if not self._is_wanted(row, lists):
                    continue
                if config.group_by:
                    groups.setdefault(self._cell(config.group_by, row), array("q")).append(number)
                else:
                    kept.append(number)
            except ValueError as error:
                raise self._at(number, error) from None
        return list(groups.values()) if config.group_by else kept

    def _media_of(self, row: Row) -> dict[str, list[Media]]:
        found = {
            kind: [
                one for path in paths for one in media_from_cell(kind, self._medium(path, row), self.root, self.root)
            ]
            for kind, paths in self.media.items()
        }
        for kind, media in found.items():
            if not media and self.config.missing_media != "optional":
                raise MediaError(
                    f"{self.path}: a row has no {kind}, {_short(row)}; say missing_media: skip or optional"
                )
        return found

    def _medium(self, template: str, row: Row) -> Any:
        """What the template of a medium holds in a row: the cell itself, or a path; None where a cell is empty."""
        names = fields_of(template)
        if template == f"{{{names[0] if names else ''}}}":
            return row.get(names[0])
        is_empty = any(is_missing(row.get(name)) for name in names)
        return None if is_empty else self._fill(template, row)

    def _turns(self, row: Row, media: dict[str, list[Media]]) -> Iterator[tuple[Message, ...]]:
        parts: list[Part] = []
        for piece in self.prompt:
            literal, field = piece[:2]
            parts += [Text(literal)] if literal else []
            if field in media:
                parts += media[field]  # type: ignore[arg-type]
            elif field is not None and (text := self._fill([("", *piece[1:])], row, self.config.optional)):
                parts.append(Text(text))
        if self.config.image_tag:
            parts = _placed(parts, self.config.image_tag)
        for template in several(self.config.answer):
            answer = self._fill(template, row)
            if is_missing(answer):
                raise UserError(f"{self.path}: the answer is empty in the row {_short(row)}; leave such rows out")
            message = Message.of("assistant", answer)
            yield (Message("user", tuple(parts)), message) if self.config.prompt else (message,)

    def _truth(self, row: Row) -> GroundTruth:
        config = self.config
        answers, choices = tuple[str, ...](), tuple[str, ...]()
        if config.answers:
            answers = self._list(config.answers, row, can_lack=True)
        if isinstance(config.choices, list):
            choices = tuple(self._fill(template, row) for template in config.choices)
        elif config.choices:
            choices = self._list(config.choices, row)
        tags = {name: self._cell(name, row) for name in config.tags if not is_missing(row.get(name))}
        return GroundTruth(answers, choices, tags)

    def _list(self, column: str, row: Row, can_lack: bool = False) -> tuple[str, ...]:
        """The items of a cell that is a list; of several right answers, one that is missing is none."""
        cell = row.get(column)
        items = [one for one in cell if not (can_lack and is_missing(one))] if isinstance(cell, list | tuple) else []
        if not items:
            raise UserError(
                f"{self.path}: {column} is {str(cell)[:60]!r} in a row, not a list of values; name a column of lists"
            )
        return tuple(self._cell(column, {column: one}) for one in items)

    def _split(self, template: str) -> str:
        return template.replace("{split}", self.config.split)

    def _cell(self, name: str, row: Row) -> str:
        """A cell as text."""
        return self._fill([("", name, "", None)], row)

    def _fill(self, template: str | Sequence[Piece], row: Row, optional: Collection[str] = ()) -> str:
        template = self._split(template) if isinstance(template, str) else template
        try:
            return fill(template, row, optional)
        except EmptyCell as error:
            raise UserError(f"{self.path}: {error} in the row {_short(row)}; leave such rows out") from None
        except ValueError as error:
            shown = template if isinstance(template, str) else "".join(f"{{{p[1]}:{p[2]}}}" for p in template)
            shown = shown.replace(":}", "}")
            raise UserError(f"{self.path}: {shown!r} cannot be filled with {_short(row)} ({error})") from None

    def _derived(self, row: Row) -> Row:
        """A row with its derived columns, its own being known."""
        if not row.keys() <= self.columns:
            check_keys(row, self.columns, self.config.ignore, str(self.path))
        for name, rule in self.config.derive.items():
            row = {**row, name: rule.value(row)}
        return row

    def _is_wanted(self, row: Row, lists: dict[str, set[str]]) -> bool:
        if not _fits(row, self.where) or not _fits(row, lists):
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
        cell = self._medium(template, row)
        if not isinstance(cell, str) or cell.startswith("data:"):
            return bool(media_from_cell("image", cell, self.root, self.root))
        archive, inner = split_zip(str(self.root / cell))
        if not inner:
            return as_on_disk(self.root / cell).is_file()
        try:
            return find_member(open_zip(archive), inner) is not None
        except (OSError, zipfile.BadZipFile) as error:
            raise MediaError(f"{archive}: not a zip that can be read ({error}); download it again") from None


def _placed(parts: list[Part], tag: str) -> list[Part]:
    """Pictures in place of the first tag of their number; those without a tag stay."""
    pictures = [part for part in parts if not isinstance(part, Text)]
    tags = {tag.replace("{number}", str(number)): picture for number, picture in enumerate(pictures, start=1)}
    if len(tags) < len(pictures):
        raise UserError(f"image_tag={tag!r} names {len(pictures)} pictures alike; write {{number}} in it")
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


def _fits(row: Row, where: Mapping[str, str | list[str] | set[str]]) -> bool:
    return all(matches(row.get(name), [v] if isinstance(v, str) else v) for name, v in where.items())


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

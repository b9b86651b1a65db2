"""What the table reader is told, and whether that fits the columns of a table.

One rule for columns: each is read by a key of the config, or stands in `ignore`, or is an error. Names that the config
itself gives (in `path` and `files`) need not be read; columns named in `columns`, `beside` and `derive` must.
"""

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.cells import check_keys
from mmgpt.datasets.media import MEDIA
from mmgpt.datasets.readers.derived_columns import DerivedColumn
from mmgpt.datasets.source import SourceConfig
from mmgpt.datasets.template import fields_of


class SideFile(Config):
    """A column from a file of its own, row by row: the lines of a text file, or the arrays of a .npy file."""

    path: str
    is_bgr: bool = False  # the pictures of an array have their channels in the order blue, green, red


class Holdout(Config):
    """A fixed test split by hash, for data without an official one: crc32(key) % modulo == 0 is test."""

    key: str
    modulo: PositiveInt = 10


class TableConfig(SourceConfig):
    """A table with media; see the docstring of table.py."""

    reader: Literal["table", "parquet"]
    path: str  # a file, or a pattern with * or {column}; of json lines and parquet also a folder of such files
    columns: list[str] | None = None
    rows: str | None = None  # the key of a json file under which its rows stand
    is_quoted: bool | None = None  # whether a double quote opens a field: by default in a csv, not in a tsv
    files: str | None = None
    beside: dict[str, SideFile] = {}
    derive: dict[str, DerivedColumn] = {}
    where: dict[str, str | list[str]] = {}  # what columns hold in the rows to keep; "" stands for an empty cell
    listed: dict[str, str] = {}  # column: a text file with the values to keep, one a line
    splits: dict[str, dict[str, str | list[str]]] = {}  # what columns hold in each split; train has the other rows
    holdout: Holdout | None = None
    image: str | list[str] | None = None  # several: each may be empty, all stand at {image} ...
    image_tag: str | None = None  # ... but for those that the words place: "<image {number}>", numbered from 1
    audio: str | None = None
    video: str | None = None
    missing_media: Literal["error", "skip", "optional"] = "error"  # optional: a row with an empty cell has none
    prompt: str = ""
    optional: list[str] = []  # columns of the prompt that may be empty; nothing is written for them then
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
            for template in several(getattr(self, name)):
                try:
                    fields_of(template)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return self

    @model_validator(mode="after")
    def every_key_matters(self) -> Self:
        if self.image_tag is not None and not self.image:
            raise ValueError("image_tag places pictures, and image names none; give image, or leave image_tag out")
        if self.missing_media != "error" and not any(getattr(self, kind) for kind in MEDIA):
            raise ValueError(f"missing_media={self.missing_media}, but no image, audio or video is named; leave it out")
        for name in ("columns", "rows", "is_quoted"):
            if self.files and getattr(self, name) is not None:
                raise ValueError(
                    f"files makes rows of file names, to which {name} means nothing; leave one of them out"
                )
        if self.splits and self.holdout:
            raise ValueError("splits and holdout both say which rows are the test; leave one of them out")
        shown = fields_of(self.prompt)
        if idle := [name for name in self.optional if name not in shown]:
            raise ValueError(f"optional names {idle[0]}, the prompt does not; {did_you_mean(idle[0], shown)}")
        return self

    def templates(self) -> list[str]:
        """Those over the columns, but for the prompt, in which media have names of their own."""
        media = [path for kind in MEDIA for path in several(getattr(self, kind))]
        choices = self.choices if isinstance(self.choices, list) else []
        key, holdout = several(self.key), [self.holdout.key] if self.holdout else []
        return [*several(self.answer), *media, *key, *choices, *holdout]

    def deciding_columns(self) -> list[str]:
        """The columns that say which rows are read and which belong together."""
        splits = [name for where in self.splits.values() for name in where]
        holdout = fields_of(self.holdout.key) if self.holdout else []
        names = [*self.where, *self.listed, *splits, *several(self.group_by), *holdout]
        return [name for name in names if name != "split" or name not in holdout]


def several(value: str | list[str] | None) -> list[str]:
    """A value that may be one, a list or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def check_columns(config: TableConfig, names: list[str], made: Iterable[str], where: str) -> list[str]:
    """The columns that a config names, all of which there are, and there is no other one that it does not ignore.

    Args:
        names: the columns of the rows.
        made: those among them that come from the names of files and objects.
        where: what errors begin with.
    Raises:
        UserError: names the column and the nearest one that there is.
    """
    derived = list(config.derive)
    known = [*names, *derived]
    used: list[tuple[str, list[str]]] = []
    raw = set[str]()  # columns of the rows themselves that are read; a derived one hides that of its name
    for number, rule in enumerate(config.derive.values()):
        read = [name for name in (rule.column, rule.item) if name]
        used += [(name, [*names, *derived[:number]]) for name in read]
        raw |= set(read) - set(derived[:number])
    singles = [name for name in (config.answers, config.group_by) if name]
    singles += [config.choices] if isinstance(config.choices, str) else []
    singles += [*config.tags, *config.where, *config.listed]
    singles += [name for split in config.splits.values() for name in split]
    used += [(name, known) for name in singles]
    fields = [field for template in config.templates() for field in fields_of(template)]
    used += [(field, known) for field in fields if field != "split"]
    shown = fields_of(config.prompt)
    media = [kind for kind in MEDIA if getattr(config, kind)]
    used += [(field, [*known, *media]) for field in shown if field != "split" and field not in media]
    for kind in MEDIA:
        if kind in shown and kind not in media:
            raise UserError(
                f"{where}: {{{kind}}} in the prompt is the {kind} itself, and none is given; "
                f'say where it stands, as in {kind}: "{{{kind}}}"'
            )
    for field, options in used:
        if field not in options:
            raise UserError(f"{where}: the template names {{{field}}}, the rows do not; {did_you_mean(field, options)}")
    for kind in media:
        if kind not in shown:
            raise UserError(f"{where}: {kind} is given but the prompt {config.prompt!r} has no {{{kind}}} to show it")
    columns = [field for field, _ in used]
    raw |= set(columns) - set(derived)
    check_keys([name for name in names if name not in made], raw, config.ignore, where)
    return columns

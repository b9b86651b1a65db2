"""Tasks are YAML: data, the pool of exemplars, how to answer, which metrics.

The data is a source under `data`, or is told by keys of the task itself: `reader: {kind: jsonl, path: ...}`, `prompt`,
`answer`, `split`, `exemplar_split` and so on. These keys also lay over a source that is included, so that one data
config serves several tasks. They are translated before they are checked; `data` and `exemplars` are what remains.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from mmgpt.config import Config, UserError, build, did_you_mean, find_config, read_yaml
from mmgpt.datasets.media import MEDIA
from mmgpt.datasets.readers.registry import SOURCES, AnySource, open_source
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.source import DataNotFound, Source, SourceConfig
from mmgpt.datasets.template import fields_of
from mmgpt.evaluation.metrics import METRICS
from mmgpt.evaluation.metrics.letters import place_of
from mmgpt.evaluation.tasks.few_shot import ShotConfig
from mmgpt.evaluation.tasks.item import TaskItem, items_of, merged_items_of
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.choices import checked_choices

READERS = {str(kind) for config in SOURCES for kind in get_args(config.model_fields["reader"].annotation)}
TABLES = ("jsonl", "json", "csv", "tsv")  # kinds of reader that are files of the table reader
LAID_OVER = ("prompt", "answer", "answers", "choices", "tags", *MEDIA)  # keys of a task that are its data's
SHORT = ("reader", "split", "exemplar_split", *LAID_OVER)
Kind = Literal["generate", "choose", "classify", "rank", "score"]


class TaskConfig(Config):
    """A benchmark."""

    renamed: ClassVar[Mapping[str, str]] = {"raw": "plain_text", "normalise": "length_normalise"}
    name: str
    data: AnySource
    exemplars: AnySource | None = None  # where shots and the text-only guess come from: never the test split
    kind: Kind = "generate"
    references: Literal["answer", "branches"] = "answer"  # branches: all answers to one question, as captions are
    choices: list[str] | None = Field(default=None, min_length=2)  # for choose, classify, rank: those of every item
    distractors: PositiveInt | None = None  # for choose: so many answers of other items beside the right one
    candidates: int | None = Field(default=None, ge=2)  # for rank: so many of the task's references, not all
    length_normalise: bool = False  # for choose, classify and rank: log-probability a token; of raw text, a letter
    plain_text: bool = False  # the same as plain text, without template and end token, as lm-evaluation-harness asks
    generate: GenerateConfig = GenerateConfig(max_new_tokens=32)
    shots: ShotConfig = ShotConfig()
    metrics: list[str] = Field(["exact_match"], min_length=1)
    version: int = 1  # raise it when a change moves the scores
    download: str | None = None  # where its data comes from and goes to, told when it is absent

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, tree: Any) -> Any:
        return _translated(cls.with_present_names(tree)) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        kind = self.kind
        if self.choices and (self.distractors or self.candidates):
            other = "distractors" if self.distractors else "candidates"
            raise ValueError(f"kind={kind} needs either choices or {other}, not both")
        for name, kinds in (
            ("choices", ("choose", "classify", "rank")),
            ("distractors", ("choose",)),
            ("candidates", ("rank",)),
            ("plain_text", ("choose", "classify", "rank")),
        ):
            if getattr(self, name) and kind not in kinds:
                raise ValueError(f"{name} is for kind={' or '.join(kinds)}, not {kind}; leave it out or change kind")
        if self.choices:
            try:
                checked_choices(self.choices)
            except UserError as error:
                raise ValueError(str(error)) from None
        if kind == "classify" and not self.choices and not self.exemplars:
            raise ValueError("kind=classify needs choices, or exemplars whose answers are the classes")
        if self.exemplars is not None and _same_rows(self.exemplars, self.data):
            raise ValueError("exemplars are the test data itself; name another split or file")
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown:
            raise ValueError(f"metrics: metric {unknown[0]!r} does not exist; {did_you_mean(unknown[0], METRICS)}")
        return self

    @classmethod
    def written(cls, path: list[str], tree: Mapping[str, Any]) -> list[str]:
        """The key of the task that a key of `data` or `exemplars` was translated from."""
        if path[0] not in ("data", "exemplars") or len(path) == 1:
            return path
        is_short, inner = "reader" in tree, path[1]
        if path[0] == "exemplars" and inner == "split" and "exemplar_split" in tree:
            return ["exemplar_split"]
        if inner in SHORT and ((inner in tree and inner != "reader") or (is_short and inner in LAID_OVER)):
            return path[1:]
        return ["reader", *path[1:]] if is_short and path[0] == "data" else path


def _same_rows(exemplars: SourceConfig, data: SourceConfig) -> bool:
    """Whether two sources read the same rows, though one may be called another split, which nothing of it reads."""
    if isinstance(data, TableConfig) and not (data.splits or data.holdout or "{split}" in data.model_dump_json()):
        exemplars = exemplars.model_copy(update={"split": data.split})
    return exemplars == data


def _translated(given: Mapping[str, Any]) -> dict[str, Any]:
    """A task whose short keys have become those of `data` and `exemplars`."""
    _check_keys(given)
    tree = {key: value for key, value in given.items() if key not in SHORT}
    laid = {key: given[key] for key in LAID_OVER if key in given}
    choices = laid.get("choices", "")
    if choices is None or (isinstance(choices, list) and not any(_fields(choice) for choice in choices)):
        tree["choices"] = laid.pop("choices")  # the same for every item; else those of each row
    source = _source(given["reader"], given) if "reader" in given else tree.get("data")
    if source is None:
        return tree
    data = _laid_over(source, laid)
    if "exemplar_split" in given:
        tree["exemplars"] = _laid_over(data, {"split": given["exemplar_split"]})
    elif tree.get("exemplars") is not None:
        tree["exemplars"] = _laid_over(tree["exemplars"], laid)
    tree["data"] = _laid_over(data, {key: given[key] for key in ("split",) if key in given})
    return tree


def _check_keys(given: Mapping[str, Any]) -> None:
    known = (*TaskConfig.model_fields, *SHORT)
    for key in given:
        if key not in known:
            raise ValueError(f"{key} is not a field of TaskConfig; {did_you_mean(str(key), known)}")
    for pair in (("reader", "data"), ("exemplar_split", "exemplars")):
        if all(given.get(key) is not None for key in pair):
            raise ValueError(f"{pair[0]} and {pair[1]} say the same in two ways; give one of them")


def _source(reader: Any, task: Mapping[str, Any]) -> dict[str, Any]:
    """The source of `reader: {kind, ...}`; media that the prompt shows and no key names are columns."""
    if not isinstance(reader, Mapping) or "kind" not in reader:
        raise ValueError("reader has no kind; write reader: {kind: jsonl, path: FILE}")
    options = {key: value for key, value in reader.items() if key != "kind"}
    kind = str(reader["kind"])
    if kind not in READERS and kind not in TABLES:
        raise ValueError(f"reader.kind={kind} is not known; {did_you_mean(kind, (*READERS, *TABLES))}")
    source = {"label": task.get("name"), "split": "test", "reader": "table" if kind in TABLES else kind, **options}
    if source["reader"] in ("table", "parquet"):
        shown = set(_fields(task.get("prompt", ""))) & set(MEDIA)
        source.update({medium: f"{{{medium}}}" for medium in sorted(shown) if medium not in {*task, *options}})
    return source


def _fields(template: Any) -> list[str]:
    """The names in a template; none of one that is no template, which its source tells."""
    try:
        return fields_of(str(template))
    except ValueError:
        return []


def _laid_over(source: Any, keys: Mapping[str, Any]) -> Any:
    if not keys:
        return source
    if isinstance(source, SourceConfig):
        source = source.model_dump()
    return {**source, **keys} if isinstance(source, Mapping) else source


def load_task(name: str | Path) -> TaskConfig:
    """A task by its name among those that come with mmgpt, or from a YAML file.

    Raises:
        UserError: if there is none, or it does not fit the schema.
    """
    return build(TaskConfig, read_yaml(name, "tasks"), str(find_config(name, "tasks")))


class Task:
    """A task with its data opened; its pool too, unless no exemplars will be asked for."""

    def __init__(self, config: TaskConfig, data_root: str | Path = ".", *, with_pool: bool = True) -> None:
        self.config = config
        self.test = self._open(config.data, data_root)
        with_pool = with_pool or (config.kind == "classify" and config.choices is None)
        self.pool: Source | None = None
        if config.exemplars and with_pool:
            self.pool = self._open(config.exemplars, data_root)
        offers = config.choices or config.distractors or config.kind != "choose"
        if not offers and not next(items_of(self.test[0])).choices:
            raise UserError(f"task {config.name}: kind=choose needs either choices or distractors")

    def _open(self, source: SourceConfig, data_root: str | Path) -> Source:
        try:
            return open_source(source, data_root)
        except DataNotFound as error:
            told = f"; its data: {self.config.download}" if self.config.download else ""
            raise DataNotFound(f"task {self.config.name}: {error}{told}") from None

    def items(self, limit: int | None = None) -> list[TaskItem]:
        """The first `limit` items, with their choices, which do not depend on the limit."""
        needs_all = self.config.distractors is not None or self.config.kind == "rank"
        items: list[TaskItem] = []
        for index in range(len(self.test)):
            items += self._items(index)
            if limit and len(items) >= limit and not needs_all:
                break
        offered = self._offered(items)
        return [replace(item, choices=offered(item)) for item in items[:limit]] if offered else items[:limit]

    def _items(self, index: int) -> list[TaskItem]:
        sample = self.test[index]
        return list(merged_items_of(sample) if self.config.references == "branches" else items_of(sample))

    def _offered(self, items: list[TaskItem]) -> Callable[[TaskItem], tuple[str, ...]] | None:
        """What gives an item its choices; None where it has its own, or needs none."""
        config = self.config
        if config.kind in ("generate", "score"):
            return None
        if config.kind == "rank" and not config.choices and not items[0].choices:
            answers = sorted({reference for item in items for reference in item.references})
            count = (config.candidates or 0) - 1
            return lambda item: self._among(item, answers, count) if config.candidates else tuple(answers)
        if config.distractors is not None:
            answers, count = sorted({item.reference for item in items}), config.distractors
            return lambda item: self._among(item, answers, count)
        if config.choices is None and config.kind in ("choose", "rank"):
            return self._own
        fixed = tuple(config.choices or self._classes())
        return lambda item: self._holding(item, fixed)

    def _classes(self) -> list[str]:
        assert self.pool is not None
        samples = (self.pool[index] for index in range(len(self.pool)))
        return sorted({item.reference for sample in samples for item in items_of(sample)})

    def _own(self, item: TaskItem) -> tuple[str, ...]:
        return self._holding(item, item.choices)

    def _holding(self, item: TaskItem, choices: tuple[str, ...]) -> tuple[str, ...]:
        if all(place_of(reference, choices) is None for reference in item.references):
            shown = ", ".join(choices[:6]) + (", ..." if len(choices) > 6 else "")
            raise UserError(f"{item.key}: its reference {item.reference!r} is not among the choices: {shown}")
        return choices

    def _among(self, item: TaskItem, answers: list[str], wanted: int) -> tuple[str, ...]:
        """The reference among so many answers of other items, in an order that depends on the item's key alone."""
        rng = random.Random(f"{self.config.name}/{item.key}")
        own = {item.reference, *item.references}
        others = [answer for answer in answers if answer not in own]
        if len(others) < wanted:
            asked = "candidates" if self.config.kind == "rank" else "distractors"
            raise UserError(
                f"task {self.config.name}: {getattr(self.config, asked)} {asked} asked for, "
                f"only {len(others)} other answers exist"
            )
        shown = [item.reference, *rng.sample(others, wanted)]
        rng.shuffle(shown)
        return tuple(shown)

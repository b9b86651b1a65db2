"""Tasks of lm-evaluation-harness and lmms-eval as ours: YAML of the plain kind, whose templates are bare columns.

Their keys: github.com/EleutherAI/lm-evaluation-harness, docs/task_guide.md. What cannot be carried over is refused by
its key, for a task that scores something else under the same name is worse than none.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgpt.config import UserError, build, did_you_mean, included
from mmgpt.datasets.readers.rows import FOLDER_OF, open_rows
from mmgpt.datasets.source import DataNotFound, resolve, resolve_all
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.yaml_reader import YamlError, parse

REMEDY = "write the task in mmgpt's own keys (docs/evaluation.md)"
KINDS = {
    "generate_until": "generate",
    "multiple_choice": "choose",
    "loglikelihood": "score",
    "loglikelihood_rolling": "score",
}
METRIC_NAMES = {  # theirs: ours
    "acc": "choice_accuracy",
    "acc_norm": "choice_accuracy",
    "exact_match": "exact_match",
    "anls": "anls",
    "relaxed_accuracy": "relaxed_accuracy",
    "relaxed_overall": "relaxed_accuracy",
    "vqa_acc": "vqa_accuracy",
    "bleu": "bleu",
    "chrf": "chrf",
    "wer": "wer",
    "perplexity": "perplexity",
    "word_perplexity": "word_perplexity",
    "bits_per_byte": "bits_per_byte",
}
AGGREGATIONS = ("mean", "perplexity", "weighted_perplexity", "bits_per_byte", "bleu", "chrf")
MEDIA_KEYS = {"doc_to_image": "image", "doc_to_visual": "image", "doc_to_audio": "audio"}
READ = (
    *("task", "include", "output_type", "num_fewshot", "metric_list", "metadata", "generation_kwargs"),
    *("dataset_path", "dataset_name", "dataset_kwargs"),
    *("test_split", "validation_split", "training_split", "fewshot_split"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", *MEDIA_KEYS),
)
IDLE = (  # they change no score; the delimiters stand between texts, and here every turn is a message
    *("group", "tag", "task_alias", "should_decontaminate", "doc_to_decontamination_query"),
    *("target_delimiter", "fewshot_delimiter"),
)
EMPTY = {  # keys whose idle values change nothing
    "description": (None, ""),
    "repeats": (None, 1),
    "filter_list": (None, []),
    "fewshot_config": (None, {}, {"sampler": "default"}),
    "process_docs": (None,),
    "process_results": (None,),
    "doc_to_messages": (None,),
    "lmms_eval_specific_kwargs": (None, {}),
    "model_specific_prompt_kwargs": (None, {}),
}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


TYPES: dict[str, tuple[type, ...]] = {  # of the keys that are read further
    **dict.fromkeys(("task", "output_type", "dataset_path", "dataset_name"), (str,)),
    **dict.fromkeys(("test_split", "validation_split", "training_split", "fewshot_split"), (str,)),
    **dict.fromkeys(("generation_kwargs", "dataset_kwargs"), (dict,)),
    **{"metric_list": (list,), "metadata": (dict, list), "num_fewshot": (int,), "doc_to_choice": (str, list)},
}
WORDS = {dict: "a mapping", list: "a list", str: "a text", int: "a whole number"}


class _Function(str):
    """What stands after `!function`; it is refused later, by the key that has it."""


def import_task(
    path: str | Path, data_root: str | Path = ".", tell: Callable[[str], None] = lambda note: None
) -> TaskConfig:
    """A task of lm-evaluation-harness or lmms-eval as ours.

    Args:
        path: its YAML.
        data_root: the folder that its dataset_path is below; the first row is read to tell numbers from texts.
        tell: called with what else the file says that whoever compares scores must know.
    Raises:
        UserError: on a key that cannot be carried over, naming it; if the data is not there, or lacks a column.
    """
    one = _Import(Path(path), Path(data_root))
    config = one.config()
    for note in one.notes:
        tell(f"{path}: {note}")
    return config


class _Import:
    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.notes: list[str] = []
        self.tree = self._read(path, ())
        self._refuse_what_has_no_like()

    def _refused(self, key: str, why: str, remedy: str = REMEDY) -> UserError:
        return UserError(f"{self.path}: {key}: {why}; {remedy}")

    def _read(self, file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        if file.resolve() in above:
            raise UserError(f"{file}: includes itself; take one of the includes out")
        try:
            tree = parse(file.read_bytes(), {"!function": _Function})
        except FileNotFoundError:
            raise DataNotFound(f"{file}: no such file; give the YAML of a task") from None
        except (YamlError, IsADirectoryError) as error:
            raise UserError(f"{file}: not valid YAML: {error}") from None
        if not isinstance(tree, dict):
            raise UserError(f"{file}: holds a {type(tree).__name__}; a task is a mapping of keys to values")
        merged: dict[str, Any] = {}
        for name in reversed(included(tree, file)):  # of several, theirs lets the first win
            beside = file.parent / name
            if not beside.is_file():
                raise DataNotFound(f"{file}: include: {beside}: no such file; take the include out, or put it there")
            merged |= self._read(beside, (*above, file.resolve()))
        return merged | {key: value for key, value in tree.items() if key != "include"}

    def _refuse_what_has_no_like(self) -> None:
        for key, value in self.tree.items():
            for inner, one in _leaves(value, str(key)):
                if isinstance(one, _Function):
                    raise self._refused(
                        inner, f"!function {one} is Python", f"put what it makes into columns, or {REMEDY}"
                    )
            kinds = TYPES.get(key)
            if kinds and value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise self._refused(key, f"{str(value)[:60]!r} is not {' or '.join(WORDS[kind] for kind in kinds)}")
            if key in EMPTY and value not in EMPTY[key]:
                raise self._refused(key, f"{str(value)[:60]!r} cannot be carried over")
            if key not in (*READ, *IDLE, *EMPTY):
                raise self._refused(str(key), f"not known; {did_you_mean(str(key), (*READ, *IDLE, *EMPTY))}")

    def config(self) -> TaskConfig:
        kind = self._kind()
        if not self.tree.get("task"):
            raise self._refused("task", "not given", "name it")
        test_split = self.tree.get("test_split") or self.tree.get("validation_split")
        if not test_split:
            raise self._refused("test_split", "not given, nor validation_split", "name the split to score")
        source, row = self._source(str(test_split))
        source |= self._media(row) | self._words(kind, row)
        tree: dict[str, Any] = {"name": self.tree.get("task"), "kind": kind, "data": source}
        shot_split = self.tree.get("fewshot_split") or self.tree.get("training_split")
        if shot_split:
            tree["exemplars"] = {**source, **self._source(str(shot_split))[0]}
        choices = self.tree.get("doc_to_choice")
        if kind == "choose" and isinstance(choices, list) and "choices" not in source:
            tree["choices"] = [str(choice) for choice in choices]
        if kind == "generate":
            tree["generate"] = self._decoding()
        if self.tree.get("num_fewshot") is not None:
            self.notes.append(f"its num_fewshot is --shots {self.tree['num_fewshot']}")
        return build(TaskConfig, {**tree, **self._metrics(kind), **self._version()}, str(self.path))

    def _kind(self) -> str:
        told = self.tree.get("output_type", "generate_until")
        if told not in KINDS:
            raise self._refused("output_type", f"{told!r} is not known; {did_you_mean(str(told), KINDS)}")
        return KINDS[told]

    def _source(self, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The table of a split, and its first row."""
        path = self._file(split)
        rows = open_rows(resolve_all(self.root, path, FOLDER_OF))
        if not len(rows):
            raise UserError(f"{self.root / path}: holds no rows; check the split {split}")
        own = {"reader": "table", "label": self.tree.get("task"), "path": path, "split": split}
        return {**own, "ignore": ["*"]}, rows[0]  # their tasks read the columns that they name, and leave the others

    def _file(self, split: str) -> str:
        """The file of a split, below the data root: named by data_files, or found in the folder dataset_path."""
        given, kwargs = str(self.tree.get("dataset_path", "")), self.tree.get("dataset_kwargs") or {}
        if unknown := [key for key in kwargs if key not in ("data_files", "trust_remote_code", "token")]:
            raise self._refused(f"dataset_kwargs.{unknown[0]}", "cannot be carried over")
        files = kwargs.get("data_files")
        if files is not None:
            files = files.get(split) if isinstance(files, Mapping) else files
            if not isinstance(files, str):
                raise self._refused("dataset_kwargs.data_files", f"names no one file for the split {split}")
            resolve_all(self.root, files)
            return files
        if not given or not (self.root / given).exists():
            fetch = f"download it there, and name the folder in dataset_path, or set --data-root (it is {self.root})"
            raise DataNotFound(f"{self.path}: dataset_path={given}: no file or folder below the data root; {fetch}")
        whole = resolve(self.root, given)
        if whole.is_file():
            return given
        folders = [f"{given}/{name}" for name in (self.tree.get("dataset_name"),) if name] + [given, f"{given}/data"]
        for folder in folders:
            for pattern in (*(f"{split}{suffix}" for suffix in SUFFIXES), f"{split}-*.parquet"):
                if list((self.root / folder).glob(pattern)):
                    return f"{folder}/{pattern}"
        raise DataNotFound(f"{whole}: no {split}.jsonl, .json, .csv, .tsv or .parquet there; name its files so")

    def _media(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, medium in MEDIA_KEYS.items():
            value = self.tree.get(key)
            columns = [self._column(key, one, row) for one in (value if isinstance(value, list) else [value]) if one]
            if not columns:
                continue
            if medium == "audio" and len(columns) > 1:
                raise self._refused(key, f"{len(columns)} columns of sounds", "name one")
            paths = [self._place(column, row[column]) for column in columns]
            found[medium] = paths if len(paths) > 1 else paths[0]
        return found

    def _place(self, column: str, cell: Any) -> str:
        """A column of media; paths in it may be relative to the data's own folder."""
        folder = str(self.tree.get("dataset_path", ""))
        is_beside = isinstance(cell, str) and (self.root / folder / cell[:200]).is_file()
        return f"{folder}/{{{column}}}" if is_beside and not (self.root / cell).is_file() else f"{{{column}}}"

    def _words(self, kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Prompt, answer and the choices of each row."""
        prompt = self._template("doc_to_text", self.tree.get("doc_to_text", ""), row)
        for medium in ("image", "audio"):
            if any(self.tree.get(key) for key, of in MEDIA_KEYS.items() if of == medium):
                tag = f"<{medium}>"
                if prompt.count(tag) > 1:
                    raise self._refused("doc_to_text", f"several {tag}", "place one, for all media of a row")
                slot = f"{{{medium}}}"
                prompt = prompt.replace(tag, slot) if tag in prompt else slot + prompt
        if "doc_to_target" not in self.tree:
            raise self._refused("doc_to_target", "not given", "name the column with the answer")
        target, choices = self.tree["doc_to_target"], self.tree.get("doc_to_choice")
        words: dict[str, Any] = {"prompt": prompt}
        if kind != "choose":
            return words | {"answer": self._template("doc_to_target", target, row)}
        if choices is None:
            raise self._refused("doc_to_choice", "not given", "name the column with the choices, or list them")
        if isinstance(choices, str):
            choices = self._column("doc_to_choice", choices, row)
            words["choices"] = choices
        elif any("{{" in str(one) for one in choices):
            words["choices"] = choices = [self._template("doc_to_choice", one, row) for one in choices]
        return words | self._chosen(target, choices, row)

    def _chosen(self, target: Any, choices: str | list[Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """The right choice: a text, or a number among the choices, told by the first row."""
        column = target.strip("{} ") if isinstance(target, str) else ""
        is_number = column in row and str(row[column]).isdecimal()
        if isinstance(target, int):
            raise self._refused("doc_to_target", f"{target} is the same choice for every row", "name a column")
        if not is_number:
            return {"answer": self._template("doc_to_target", target, row)}
        if isinstance(choices, str):
            return {"derive": {"right_choice": {"column": choices, "item": column}}, "answer": "{right_choice}"}
        if any("{" in str(one) for one in choices):
            raise self._refused(
                "doc_to_target", f"{column} is a number among templates", "put the choices into a column"
            )
        names = [str(choice) for choice in choices]
        return {"derive": {"right_choice": {"column": column, "names": names}}, "answer": "{right_choice}"}

    def _template(self, key: str, value: Any, row: Mapping[str, Any]) -> str:
        """A column's name, or words with bare {{column}}s, as a template of ours."""
        text = str(value if value is not None else "")
        if re.fullmatch(r"\w+", text) and (key == "doc_to_target" or (key == "doc_to_text" and text in row)):
            return f"{{{self._column(key, text, row)}}}"
        out, at = "", 0
        for match in re.finditer(r"\{\{\s*(\w+)\s*\}\}", text):
            out += self._literal(key, text[at : match.start()]) + f"{{{self._column(key, match[1], row)}}}"
            at = match.end()
        return out + self._literal(key, text[at:])

    def _literal(self, key: str, text: str) -> str:
        jinja = re.search(r"\{\{.*?(\}\}|$)|\{%.*?(%\}|$)|\{#.*?(#\}|$)", text, re.DOTALL)
        if jinja:
            raise self._refused(
                key, f"{jinja[0][:60]!r} is Jinja beyond a bare {{{{column}}}}", f"put it into a column, or {REMEDY}"
            )
        return text.replace("{", "{{").replace("}", "}}")

    def _column(self, key: str, value: Any, row: Mapping[str, Any]) -> str:
        name = re.sub(r"^\{\{\s*(\w+)\s*\}\}$", r"\1", str(value))
        if name not in row:
            self._literal(key, name)
            raise self._refused(key, f"the data has no column {name}", did_you_mean(name, map(str, row)))
        return name

    def _decoding(self) -> dict[str, Any]:
        given: dict[str, Any] = dict(self.tree.get("generation_kwargs") or {})
        is_sampled = given.pop("do_sample", None)
        if is_sampled not in (None, True, False):
            raise self._refused("generation_kwargs.do_sample", f"{is_sampled!r} is no boolean", "write true or false")
        stop = given.pop("until", None) or []
        names = {"max_gen_toks": "max_new_tokens"}
        told: dict[str, Any] = {names.get(key, key): value for key, value in given.items()}
        if is_sampled:
            told.setdefault("temperature", 1.0)
        elif is_sampled is not None:
            told = {key: value for key, value in told.items() if key not in ("temperature", "top_p", "top_k")}
        for key in told:
            if key not in ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams"):
                raise self._refused(f"generation_kwargs.{key}", "cannot be carried over")
        stops = stop if isinstance(stop, list) else [stop]
        return {"max_new_tokens": 256, **told, **({"stop": stops} if stops else {})}  # 256 is theirs too

    def _metrics(self, kind: str) -> dict[str, Any]:
        given = self.tree.get("metric_list") or [{"metric": "acc" if kind == "choose" else "exact_match"}]
        names = list[str]()
        for entry in given:
            if not isinstance(entry, Mapping):
                raise self._refused("metric_list", f"{entry!r} is no mapping", "write - metric: NAME")
            name = str(entry.get("metric"))
            if name not in METRIC_NAMES:
                raise self._refused(
                    "metric_list", f"metric {name!r} has no like here; {did_you_mean(name, METRIC_NAMES)}"
                )
            options = {key: value for key, value in entry.items() if value not in (False, None, [])}
            for key in options:
                if key not in ("metric", "higher_is_better", "aggregation") or options.get(
                    "aggregation", "mean"
                ) not in (AGGREGATIONS):
                    raise self._refused("metric_list", f"{name} with {key}: {options[key]} has no like here")
            names.append(name)
        if "acc_norm" in names:
            self.notes.append("acc_norm is by the token here, theirs by the byte; for acc set length_normalise: false")
        ours: dict[str, Any] = {"metrics": list(dict.fromkeys(METRIC_NAMES[name] for name in names))}
        return ours | ({"length_normalise": True} if "acc_norm" in names else {})

    def _version(self) -> dict[str, int]:
        told = self.tree.get("metadata") or {}
        for entry in told if isinstance(told, list) else [told]:
            version = entry.get("version") if isinstance(entry, Mapping) else None
            if version is not None:
                try:
                    return {"version": int(float(version))}
                except (TypeError, ValueError, OverflowError):
                    raise self._refused("metadata.version", f"{version!r} is no number", "write one") from None
        return {}


def _leaves(value: Any, key: str) -> Sequence[tuple[str, Any]]:
    """What a value holds, each with the path of keys to it."""
    if isinstance(value, Mapping):
        return [leaf for name, one in value.items() for leaf in _leaves(one, f"{key}.{name}")]
    if isinstance(value, list):
        return [leaf for number, one in enumerate(value) for leaf in _leaves(one, f"{key}.{number}")]
    return [(key, value)]

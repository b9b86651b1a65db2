"""Configs: YAML files read into frozen, checked classes.

The classes themselves stand beside the parts they build; this file only knows how to read, merge and check.
Every mapping may hold `include: FILE`, which is replaced by that file's mapping with the other keys laid over it.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(ValueError):
    """Something the user can mend: the message holds the value, the rule and the remedy. The CLI exits with 2."""

    def __str__(self) -> str:
        """The message as any terminal and file takes it: a lone surrogate of a row or a file name is spelt out."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class Config(BaseModel):
    """Base of every config: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def written(cls, path: list[str], tree: Mapping[str, Any]) -> list[str]:
        """The path of a fault as the user wrote it; a class that translates keys before they are checked says how."""
        return path


class PretrainedConfig(Config):
    """A part that may begin from an outside checkpoint; what that one fixes is filled in from its config.json."""

    pretrained: str | None = None  # a folder, or organisation/name on the hub, whose weights a training begins with
    revision: str | None = None  # branch, tag or commit on the hub
    pickles: bool = False  # where it has no safetensors, read *.bin, with nothing but tensors allowed in them


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `3e-3` is a number, which YAML 1.1 reads as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$|^[-+]?[0-9][0-9_]*\.[0-9_]*$"),
    list("-+0123456789."),
)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The tail of an error message: the nearest right spelling, or all of them."""
    known = sorted(options)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def find_config(path: str | Path, folder: str = "") -> Path:
    """The file at `path`, or the one of that name among the configs that come with mmgpt.

    Args:
        path: a path, or a name below the packaged `configs/` (`quickstart`, `configs/quickstart.yaml`).
        folder: the packaged folder to look in, such as `tasks`.
    Raises:
        UserError: if there is neither.
    """
    if Path(path).is_file():
        return Path(path)
    packaged = Path(str(resources.files("mmgpt.configs")))
    name = re.sub(r"^configs/", "", str(path)).removesuffix(".yaml")
    for candidate in (packaged / folder / f"{name}.yaml", packaged / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = [
        p.relative_to(packaged / folder).as_posix().removesuffix(".yaml") for p in (packaged / folder).rglob("*.yaml")
    ]
    raise UserError(f"{path}: no such file, and no config of that name comes with mmgpt; {did_you_mean(name, known)}")


def read_yaml(path: str | Path, folder: str = "") -> dict[str, Any]:
    """Read a YAML mapping with its includes expanded."""
    return _read(find_config(path, folder), ())


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in above:
        raise UserError(f"{file}: includes itself; take one of the includes out")
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{file}: holds a {type(loaded).__name__}; a config is a mapping of keys to values")
    expanded: dict[str, Any] = _expand(loaded, file, (*above, file.resolve()))
    return expanded


def _expand(node: Any, file: Path, above: tuple[Path, ...]) -> Any:
    if isinstance(node, list):
        return [_expand(item, file, above) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _expand(value, file, above) for key, value in node.items()}
    if "include" not in node:
        return node
    wanted = node.pop("include")
    beside = file.parent / wanted
    return {**_read(beside if beside.is_file() else find_config(wanted), above), **node}


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys: `stages.0.steps=10 model.decoder.width=64`; the values are YAML.

    Raises:
        UserError: if an override is not KEY=VALUE or walks through something that is neither mapping nor list.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override; write KEY=VALUE, as in stages.0.steps=10")
        *path, last = key.split(".")
        node: Any = tree
        for name in path:
            node = _descend(node, name, key)
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UserError(f"override {key}: {text!r} is not valid YAML: {' '.join(str(error).split())}") from None
        if isinstance(node, list):
            node[_index(node, last, key)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise UserError(f"override {key}: {'.'.join(path)} is a single value, it has no {last}")
    return tree


def _descend(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, key)]
    if isinstance(node, dict):
        return node.setdefault(name, {})
    raise UserError(f"override {key}: there is nothing below {name}")


def _index(node: list[Any], name: str, key: str) -> int:
    named = [i for i, item in enumerate(node) if isinstance(item, Mapping) and item.get("name") == name]
    if named:
        return named[0]
    if name.isdecimal() and int(name) < len(node):
        return int(name)
    raise UserError(f"override {key}: {name} is neither a name in the list nor an index below {len(node)}")


def build(cls: type[C], tree: Mapping[str, Any], where: str) -> C:
    """Check a mapping against a config class.

    Raises:
        UserError: one line a fault, each with the path, the value, the rule and the nearest right name.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(cls, tree, fault, where) for fault in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def _explain(cls: type[Config], tree: Mapping[str, Any], fault: Any, where: str) -> str:
    owner, parts = _owner_and_path(cls, fault["loc"])
    parts = cls.written(parts, tree) if parts else parts
    path = ".".join(parts)
    if fault["type"] == "extra_forbidden":
        fields = owner.model_fields if owner else {}
        title = owner.__name__ if owner else "this part"
        return f"{where}: {path} is not a field of {title}; {did_you_mean(parts[-1], fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{where}: {path} is missing; it has no default, so give it a value"
    if fault["type"] == "union_tag_invalid":
        tag, name = fault["ctx"]["tag"], fault["ctx"]["discriminator"].strip("'")
        known = [expected.strip(" '") for expected in fault["ctx"]["expected_tags"].split(",")]
        return f"{where}: {path}.{name}={tag} is not known; {did_you_mean(tag, known)}"
    shown = repr(fault["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{where}: {path or cls.__name__}={shown}: {message}" if path else f"{where}: {message}"


def _owner_and_path(cls: type[Config], location: Sequence[int | str]) -> tuple[type[Config] | None, list[str]]:
    """The config class that holds what a pydantic location names, and the path to it as a user writes it.

    Pydantic puts the tag of a union's member into a location (`image.vit.width`); a user does not.
    """
    here: Any = cls
    owner: type[Config] | None = cls
    path: list[str] = []
    for part in location:
        options = list(_config_classes(here))
        tagged = [] if isinstance(part, int) else [c for c in options if part in _tags(c)]
        if tagged:
            here = tagged[0]
            continue
        path.append(str(part))
        owner = options[0] if len(options) == 1 else None
        holders = [c for c in options if part in c.model_fields]
        if holders:
            here = holders[0].model_fields[str(part)].annotation
    return owner, path


def _config_classes(annotation: Any) -> Iterable[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from _config_classes(argument)


def _tags(cls: type[Config]) -> set[str]:
    tags: set[str] = set()
    for name in ("kind", "reader"):
        if name in cls.model_fields:
            tags |= set(getattr(cls.model_fields[name].annotation, "__args__", ()))
    return tags


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120, allow_unicode=True)

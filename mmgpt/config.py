"""Configs: YAML files read into frozen, checked classes.

The classes themselves stand beside the parts they build; this file only knows how to read, merge and check.
Every mapping may hold `include: FILE`, which is replaced by that file's mapping with the other keys laid over it;
of several, `include: [FIRST, SECOND]`, each lies over those before it.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import core_schema

from mmgpt.config_faults import explain
from mmgpt.errors import UserError, did_you_mean
from mmgpt.yaml_reader import YamlError, dump, parse

__all__ = [
    "Config",
    "PretrainedConfig",
    "Seed",
    "UserError",
    "apply_overrides",
    "build",
    "did_you_mean",
    "find_config",
    "included",
    "old_spellings_allowed",
    "read_yaml",
    "to_yaml",
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # of torch's generators
NOT_SCHEMAS = {"default", "expected", "metadata", "serialization"}  # of a pydantic schema: what only looks like one


def _with_strict_scalars(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_strict_scalars(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in ("bool", "int", "float"):
        strict = {**schema, "strict": True}
        plain = _whole if kind == "int" else _real
        return strict if kind == "bool" else core_schema.no_info_before_validator_function(plain, strict)
    skipped = NOT_SCHEMAS if isinstance(kind, str) else set()  # fields may have any name
    return {key: value if key in skipped else _with_strict_scalars(value) for key, value in schema.items()}


def _whole(value: Any) -> Any:
    """A whole number of any type, 1e3 among them, as an int; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return int(float(value)) if float(value).is_integer() else value


def _real(value: Any) -> Any:
    """A number of numpy as Python's own; all else as it is."""
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


class Config(BaseModel):
    """Base of every config: immutable, unknown keys refused, numbers finite, nothing taken for what it is not.

    A boolean is true or false, never yes or 1; a number is none in quotes; 1e3 and numpy's numbers are whole numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}  # present names by those of the release before

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The schema of the class, its scalars strict."""
        made: core_schema.CoreSchema = _with_strict_scalars(handler(source))
        return made

    @model_validator(mode="before")
    @classmethod
    def _take_old_spellings(cls, tree: Any) -> Any:
        return cls.with_present_names(tree) if isinstance(tree, Mapping) else tree

    @classmethod
    def with_present_names(cls, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tree with present names for those of the release before, each with a note.

        Raises:
            ValueError: if a field is given under both.
        """
        old = {name: cls.renamed[name] for name in tree if name in cls.renamed and name not in cls.model_fields}
        for name, present in old.items():
            if present in tree:
                raise ValueError(f"{name} is the old spelling of {present}, which is given too; keep {present}")
            note = f"{cls.__name__}: {name} is called {present} now; the old spelling goes with the next release"
            warnings.warn(note, FutureWarning, stacklevel=2)
        return {old.get(name, name): value for name, value in tree.items()} if old else tree

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


def find_config(path: str | Path, folder: str = "") -> Path:
    """The file at `path`, or the one of that name among the configs that come with mmgpt.

    Args:
        path: a path, or a name below the packaged `configs/` (`quickstart`, `configs/quickstart.yaml`).
        folder: the packaged folder to look in, such as `tasks`.
    Raises:
        UserError: if there is neither.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise UserError(f"{path!r} is no config; give the path of a YAML file, or the name of one that mmgpt brings")
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
    """Read a YAML mapping with its includes expanded.

    Raises:
        UserError: if it or an include is absent, not YAML, no mapping, or has a key twice.
    """
    return _read(find_config(path, folder), ())


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in above:
        raise UserError(f"{file}: includes itself; take one of the includes out")
    try:
        loaded = parse(file.read_bytes())
    except YamlError as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        is_key = isinstance(loaded, str) and re.match(r"\w+:\S", loaded)
        spacing = "; a space follows the colon of a key" if is_key else ""
        raise UserError(f"{file}: holds a {type(loaded).__name__}; a config is a mapping of keys to values{spacing}")
    expanded: dict[str, Any] = _expand(loaded, file, (*above, file.resolve()))
    return expanded


def _expand(node: Any, file: Path, above: tuple[Path, ...]) -> Any:
    if isinstance(node, list):
        return [_expand(item, file, above) for item in node]
    if not isinstance(node, dict):
        return node
    merged: dict[str, Any] = {}
    for name in included(node, file):
        merged |= _read(_find_include(name, file), above)
    return merged | {key: _expand(value, file, above) for key, value in node.items() if key != "include"}


def included(node: Mapping[str, Any], file: Path) -> list[str]:
    """The names under `include` of a mapping in `file`, one or a list of them.

    Raises:
        UserError: if it holds something else, or a name twice.
    """
    given = node.get("include", [])
    names = given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(f"{file}: include={name!r}: is no file name; write include: FILE, or a list of files")
        if names.count(name) > 1:
            raise UserError(f"{file}: include names {name} twice; keep one of them")
    return names


def _find_include(name: str, file: Path) -> Path:
    beside = file.parent / name
    try:
        return beside if beside.is_file() else find_config(name)
    except UserError as error:
        raise UserError(f"{file}: include: {beside} does not exist, and {error}") from None


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys: `stages.0.steps=10 model.decoder.width=64`; the values are YAML.

    A key that holds dots stands in quotes, `stages.0.learning_rates."encoders.*"=1e-3`. None is KEY=null, and an empty
    text KEY=''. Overrides go in their order, so that a part may follow its whole.

    Raises:
        UserError: if an override is not KEY=VALUE, is given twice, or walks through something that is neither mapping
            nor list.
    """
    if isinstance(overrides, str | Mapping) or not isinstance(overrides, Sequence):
        raise UserError(f"overrides={overrides!r}: give a list of texts, as in ['stages.0.steps=10']")
    seen: dict[tuple[int | str, ...], str] = {}
    for override in overrides:
        key, equals, text = override.partition("=") if isinstance(override, str) else ("", "", "")
        names = _names(key)
        if not equals or not names:
            raise UserError(f"{override!r} is not an override; write KEY=VALUE, as in stages.0.steps=10")
        if not text.strip():
            raise UserError(
                f"override {key}: has no value; write {key}=null for none, or {key}=\"''\" for an empty text"
            )
        try:
            value = parse(text)
        except YamlError as error:
            raise UserError(f"override {key}: {text!r} is not valid YAML: {error}") from None
        path = _set(tree, names, value, key)
        for before, spelled in seen.items():
            if before[: len(path)] == path:
                raise UserError(f"override {key}: {spelled} is given before it, and would be lost; keep one of them")
        seen[path] = key
    return tree


def _names(key: str) -> list[str]:
    """The parts of a dotted key, those in quotes without them; none if one is empty."""
    if not re.fullmatch(r"""(?:"[^"]+"|'[^']+'|[^."'][^.]*)(?:\.(?:"[^"]+"|'[^']+'|[^."'][^.]*))*""", key):
        return []
    return [part.strip("\"'") for part in re.findall(r""""[^"]+"|'[^']+'|[^.]+""", key)]


def _set(tree: dict[str, Any], names: Sequence[str], value: Any, key: str) -> tuple[int | str, ...]:
    """Set a value below keys, making mappings where there are none; the path to it, items by their index."""
    node: Any = tree
    path: list[int | str] = []
    for depth, name in enumerate(names):
        at: int | str = name
        if isinstance(node, list):
            at = _index(node, name, key)
        elif not isinstance(node, dict):
            whole = ".".join(names[:depth])
            raise UserError(f"override {key}: {whole} is a single value, it has no {name}; it is {str(node)[:60]!r}")
        path.append(at)
        if depth == len(names) - 1:
            node[at] = value
        elif isinstance(node, dict) and node.get(at) is None:
            node[at] = {}
        node = node[at]
    return tuple(path)


def _index(node: list[Any], name: str, key: str) -> int:
    named = [i for i, item in enumerate(node) if isinstance(item, Mapping) and item.get("name") == name]
    if len(named) > 1:
        raise UserError(f"override {key}: {name} is the name of {len(named)} items; give an index, such as {named[0]}")
    if named:
        return named[0]
    if name.isascii() and name.isdecimal() and int(name) < len(node):
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
        raise UserError("\n".join(explain(cls, tree, error, where))) from None


@contextmanager
def old_spellings_allowed() -> Iterator[None]:
    """Read a file that an earlier release wrote: nobody needs a note about the spellings in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return dump(config.model_dump(mode="json"))

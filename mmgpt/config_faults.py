"""What is wrong with a config, a line a fault: the key as the user wrote it, its value, the rule, the right name.

Pydantic tells a place by fields, indexes, keys and, inside of unions, by the tag or the type of the member it tried;
the last two are no words of the user's and are left out. A validator of a whole section tells its key in its words:
`heads=5 does not divide width=32` of `model.decoder` becomes `model.decoder.heads=5 does not ...`.
"""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mmgpt.errors import did_you_mean

MAX_SHOWN_CHARACTERS = 60  # characters of a value that are shown
SECTIONS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
}
BOOLEANS = dict.fromkeys(("yes", "on", "y", "1", "true"), "true") | dict.fromkeys(
    ("no", "off", "n", "0", "false"), "false"
)
NUMBERS = ("int_type", "float_type")


def explain(cls: type[BaseModel], tree: Any, error: ValidationError, where: str) -> list[str]:
    """A line for each fault of `tree` as a `cls`, none twice."""
    faults = _likeliest(cls, [dict(fault) for fault in error.errors()])
    return list(dict.fromkeys(f"{where}: {_explain(cls, tree, fault)}" for fault in faults))


def _explain(cls: type[BaseModel], tree: Any, fault: Mapping[str, Any]) -> str:
    parts, here, holder, _ = _walk(cls, fault["loc"])
    kind, value, message = fault["type"], fault["input"], fault["msg"].removeprefix("Value error, ")
    is_of_section = kind == "value_error" and isinstance(value, Mapping | BaseModel)
    if is_of_section and _is_config(here) and (key := re.match(r"\w+", message)) and key[0] in here.model_fields:
        parts, message = [*parts, key[0]], message[key.end() :]
    elif is_of_section and parts:
        message = f": {message}"
    if parts and isinstance(tree, Mapping):
        parts = cls.written(_old_spellings(cls, parts, tree), tree)  # type: ignore[attr-defined]
    path = ".".join(parts)
    if is_of_section:
        return f"{path}{message}"
    return f"{path}{_rule(cls, tree, parts, fault, holder)}"


def _old_spellings(cls: Any, parts: Sequence[str], tree: Any) -> list[str]:
    """The path with the names that the user gave where these are of the release before."""
    here, node, written = cls, tree, []
    for part in parts:
        old = getattr(here, "renamed", {})
        given = next((name for name, new in old.items() if new == part and name in node), part) if old else part
        written.append(given)
        node = node.get(given, {}) if isinstance(node, Mapping) else {}
        here = next(iter(_members(_inside(here, part))), Any) if _is_config(here) else Any
    return written


def _rule(cls: type[BaseModel], tree: Any, parts: list[str], fault: Mapping[str, Any], holder: Any) -> str:
    """What is wrong at a path, and the remedy."""
    kind, value, message = fault["type"], fault["input"], fault["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        title, fields = (holder.__name__, holder.model_fields) if _is_config(holder) else ("this part", {})
        return f" is not a field of {title}; {did_you_mean(parts[-1], fields)}"
    if kind == "missing":
        return " is missing; it has no default, so give it a value"
    if kind.startswith("union_tag"):
        return _wrong_tag(tree, parts, fault)
    if fault["loc"] and fault["loc"][-1] == "[key]":
        return f" is no key here: {message}{_nearest(fault)}"
    name = "" if parts else cls.__name__
    if kind in SECTIONS:
        return f"{name}{_shown(value)}: {SECTIONS[kind]} is wanted here{_spacing(value)}"
    if isinstance(value, Mapping) and kind.endswith("_type"):
        return " is a mapping: a single value is wanted here; a key that holds dots stands in quotes"
    return f"{name}{_shown(value)}: {message}{_remedy(kind, value)}{_nearest(fault)}"


def _wrong_tag(tree: Any, parts: Sequence[str], fault: Mapping[str, Any]) -> str:
    """Of a union whose members differ by their kind: it is not given, or not known."""
    name = fault["ctx"]["discriminator"].strip("'")
    if fault["type"] == "union_tag_not_found":
        return f"{_shown(fault['input'])} without {name}; {_beside(tree, parts) or f'give it {name}: ...'}"
    tag, tags = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].split(",")
    return f".{name}={tag} is not known; {did_you_mean(tag, [known.strip(' ' + chr(39)) for known in tags])}"


def _shown(value: Any) -> str:
    """A value as a message shows it: never a tree, for the keys inside it have lines of their own."""
    if isinstance(value, Mapping | BaseModel):
        return " is a mapping"
    if isinstance(value, list | tuple) and any(isinstance(one, Mapping | BaseModel | list | tuple) for one in value):
        return " is a list"
    text = repr(value)
    return f"={text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + '...'}"


def _remedy(kind: str, value: Any) -> str:
    word = str(value).lower()
    if kind == "bool_type" and word in BOOLEANS:
        return f"; write {BOOLEANS[word]}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'; write "{word}" in quotes'
    if kind in NUMBERS and isinstance(value, bool):
        return "; true and false are no numbers"
    if kind in NUMBERS and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", word):
        return "; write it without quotes"
    return ""


def _nearest(fault: Mapping[str, Any]) -> str:
    """The nearest of the words that a field takes."""
    if fault["type"] != "literal_error" or not isinstance(fault["input"], str):
        return ""
    near = did_you_mean(fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"; {near}" if near.startswith("did you mean") else ""


def _spacing(value: Any) -> str:
    is_key = isinstance(value, str) and re.match(r"[A-Za-z_]+:\S", value)
    return "; a space follows the colon of a key" if is_key else ""


def _beside(tree: Any, parts: Sequence[str]) -> str:
    """The nearest name among the keys beside the last of `parts`, which may be a misspelling of it."""
    for part in parts[:-1]:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    others = [str(key) for key in tree if str(key) != parts[-1]] if isinstance(tree, Mapping) else []
    near = did_you_mean(parts[-1], others) if parts else ""
    return near if near.startswith("did you mean") else ""


def _likeliest(cls: type[BaseModel], faults: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a union whose members each have a fault, those of the member that was most likely meant."""
    groups: dict[Any, dict[Any, list[dict[str, Any]]]] = {}
    for number, fault in enumerate(faults):
        at = next(iter(_walk(cls, fault["loc"])[-1]), None)
        union, member = (number, None) if at is None else (fault["loc"][:at], fault["loc"][at])
        groups.setdefault(union, {}).setdefault(member, []).append(fault)

    def likelihood(member: list[dict[str, Any]]) -> tuple[bool, int]:
        """A value of the right type comes before the wrong type, and a fault deep inside before one at the door."""
        return not any(fault["type"].endswith("_type") for fault in member), max(len(fault["loc"]) for fault in member)

    return [fault for members in groups.values() for fault in max(members.values(), key=likelihood)]


def _walk(cls: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], Any, Any, list[int]]:
    """Follow a location through the annotations.

    Returns:
        The path as a user writes it, the annotations of its last part and of what holds that, and where in the
        location the members of unions without a tag are named.
    """
    here: Any = cls
    holder: Any = cls
    path: list[str] = []
    labels: list[int] = []
    for at, part in enumerate(location):
        members = _members(here)
        if len(members) > 1:
            tagged = [member for member in members if part in _tags(member)]
            labels += [] if tagged else [at]
            here = tagged[0] if tagged else _named(members, str(part))
        elif part != "[key]":
            path.append(str(part))
            holder, here = members[0], _inside(members[0], part)
    return path, here, holder, labels


def _members(annotation: Any) -> list[Any]:
    """What a value of an annotation may be, None left out; the annotation itself where it is no union."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for one in get_args(annotation) if one is not type(None) for member in _members(one)]
    return [annotation]


def _tags(member: Any) -> set[Any]:
    """The values of `kind` or `reader` that choose a config class in a union."""
    fields = member.model_fields if _is_config(member) else {}
    return {tag for name in ("kind", "reader") if name in fields for tag in get_args(fields[name].annotation)}


def _named(members: Sequence[Any], label: str) -> Any:
    """The member of a union that pydantic calls `label`: a class, or a type such as list[int]."""
    for member in members:
        container = get_origin(member)
        if label == getattr(member, "__name__", "") or (container and label.startswith(f"{container.__name__}[")):
            return member
    return next((member for member in members if not get_origin(member)), members[0])


def _inside(annotation: Any, part: int | str) -> Any:
    if _is_config(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else Any
    inner = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(part, int) and part < len(inner) and inner[-1] is not ...:
        return inner[part]
    values = [one for one in inner if one is not ...]
    return values[-1] if get_origin(annotation) in (list, dict, tuple) and values else Any


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

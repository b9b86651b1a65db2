"""What is wrong with a config, a line a fault: the key as the user wrote it, its value, the rule, the nearest right name.

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

LONGEST = 60  # characters of a value that are shown
SECTIONS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping of keys to values"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
}
BOOLEANS = dict.fromkeys(("yes", "on", "y", "1", "true"), "true") | dict.fromkeys(("no", "off", "n", "0", "false"), "false")
NUMBERS = ("int_type", "float_type")


def explain(cls: type[BaseModel], tree: Any, error: ValidationError, where: str) -> list[str]:
    """A line for each fault of `tree` as a `cls`, none twice."""
    faults = _likeliest(cls, [dict(fault) for fault in error.errors()])
    return list(dict.fromkeys(f"{where}: {_explain(cls, tree, fault)}" for fault in faults))


def _explain(cls: type[BaseModel], tree: Any, fault: Mapping[str, Any]) -> str:
    parts, here, holder, _ = _walk(cls, fault["loc"])
    if parts and isinstance(tree, Mapping):
        parts = cls.written(parts, tree)  # type: ignore[attr-defined]
    path, kind, value = ".".join(parts), fault["type"], fault["input"]
    if kind == "extra_forbidden":
        title, fields = (holder.__name__, holder.model_fields) if _is_config(holder) else ("this part", {})
        return f"{path} is not a field of {title}; {did_you_mean(parts[-1], fields)}"
    if kind == "missing":
        return f"{path} is missing; it has no default, so give it a value"
    if kind == "union_tag_invalid":
        tag, name = fault["ctx"]["tag"], fault["ctx"]["discriminator"].strip("'")
        return f"{path}.{name}={tag} is not known; {did_you_mean(tag, _tags_known(fault))}"
    if kind == "union_tag_not_found":
        name = fault["ctx"]["discriminator"].strip("'")
        return f"{path}{_shown(value)} without {name}; {_beside(tree, parts) or f'give it {name}: ...'}"
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(value, Mapping | BaseModel):
        first = re.match(r"\w+", message)
        names_its_key = first and _is_config(here) and first[0] in here.model_fields
        return f"{path}{'.' if names_its_key else ': '}{message}" if path else message
    if kind in SECTIONS:
        return f"{path or cls.__name__}{_shown(value)}: {SECTIONS[kind]} is wanted here{_spacing(value)}"
    return f"{path or cls.__name__}{_shown(value)}: {message}{_remedy(kind, value)}"


def _shown(value: Any) -> str:
    """A value as a message shows it: never a tree, for the keys inside it have lines of their own."""
    if isinstance(value, Mapping | BaseModel):
        return " is a mapping"
    if isinstance(value, list | tuple) and any(isinstance(one, Mapping | BaseModel | list | tuple) for one in value):
        return " is a list"
    text = repr(value)
    return f"={text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}"


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


def _spacing(value: Any) -> str:
    is_key = isinstance(value, str) and re.match(r"[A-Za-z_]+:\S", value)
    return "; a space follows the colon of a key" if is_key else ""


def _tags_known(fault: Mapping[str, Any]) -> list[str]:
    return [expected.strip(" '") for expected in fault["ctx"]["expected_tags"].split(",")]


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


def _members(annotation: Any) -> list[Any]:
    """What a value of an annotation may be, None left out; the annotation itself where it is no union."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for one in get_args(annotation) if one is not type(None) for member in _members(one)]
    return [annotation]


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

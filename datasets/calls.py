"""Calls of tools and the tools themselves, as JSON that any template can write.

Read are OpenAI's `tools` and `tool_calls`, the older `function_call`, and the bare `{"name", "arguments"}` of sharegpt
and ms-swift rows, each also as a JSON string. A null in a struct is as absent; in a JSON string it stays.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmgpt.config import UserError
from mmgpt.datasets.cells import check_keys, well_formed
from mmgpt.datasets.parts import is_absent, present, short


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: of the tool.
        arguments: an object in JSON.
        id: what its answer refers to it by, if anything.
    """

    name: str
    arguments: str = "{}"
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The call as OpenAI spells it."""
        named = {} if self.id is None else {"id": self.id}
        return {**named, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def parse_calls(raw: Any, key: str, ignore: Sequence[str] | None = None) -> tuple[Call, ...]:
    """Calls from a list of them, one alone, or the JSON of either.

    Args:
        raw: what was given.
        key: under which it was.
        ignore: globs of keys that are left out; None where the caller has no such option.
    Raises:
        UserError: if one has no name, arguments that are no object, or a key that nothing reads.
    """
    return tuple(_parse_call(one, f"{key}: the call {short(one)}", ignore) for one in _listed(raw, f"{key}:"))


def parse_tools(raw: Any) -> tuple[str, ...]:
    """The JSON of each tool of a list, `{"type": "function", "function": {"name", ...}}`.

    Raises:
        UserError: if one has no name.
    """
    return tuple(dumped(_parse_tool(one)) for one in _listed(raw, "tools:"))


def dumped(value: Any) -> str:
    """JSON as chat templates write it: with spaces, and letters as they are."""
    return well_formed(json.dumps(value, ensure_ascii=False))


def loaded(text: str, what: str) -> Any:
    """What a JSON string holds.

    Raises:
        UserError: if it is none, or names a key of an object twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {short(text)} is not JSON ({error}); write an object") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _listed(raw: Any, what: str) -> list[Any]:
    found = loaded(raw, what) if isinstance(raw, str) else raw
    if not isinstance(found, list | tuple):
        found = [found]
    return [loaded(one, what) if isinstance(one, str) else one for one in found if not is_absent(one) or one == {}]


def _parse_call(raw: Any, where: str, ignore: Sequence[str] | None) -> Call:
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} is no object; write {{'name': ..., 'arguments': {{...}}}}")
    given = present(raw)
    if "function" in given:
        check_keys(given, ("id", "type", "function"), ignore, where)
        inner = given["function"]
        body = present(inner) if isinstance(inner, Mapping) else {"name": inner}
        check_keys(body, ("name", "arguments"), ignore, where)
    else:
        check_keys(given, ("id", "type", "name", "arguments"), ignore, where)
        body = given
    if given.get("type", "function") != "function":
        raise UserError(f"{where} is of type {given['type']!r}; only functions can be called")
    if not isinstance(body.get("name"), str):
        raise UserError(f"{where} has no name; say which function it calls")
    return Call(well_formed(body["name"]), _arguments(body.get("arguments"), where), _id(given.get("id")))


def _arguments(raw: Any, where: str) -> str:
    if is_absent(raw):
        return "{}"
    found = loaded(raw, f"{where}: arguments") if isinstance(raw, str) else _without_nulls(raw)
    if not isinstance(found, Mapping):
        raise UserError(f"{where} has arguments that are no object but {short(found)}; write {{'NAME': VALUE}}")
    return dumped(found)


def _id(raw: Any) -> str | None:
    return None if raw is None else well_formed(str(raw))


def _parse_tool(raw: Any) -> Mapping[str, Any]:
    tool = _without_nulls(raw) if isinstance(raw, Mapping) else {}
    is_wrapped = isinstance(tool.get("function"), Mapping)
    named = tool["function"] if is_wrapped else tool
    if not isinstance(named.get("name"), str):
        raise UserError(
            f"tools: {short(raw)} has no name; write {{'name': ..., 'description': ..., 'parameters': ...}}"
        )
    return tool if is_wrapped else {"type": "function", "function": tool}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list | tuple) else value

"""YAML as people mean it: the core schema of YAML 1.2 (yaml.org/spec/1.2.2, 10.3), every key once, plain values alone.

PyYAML parses; by itself it would resolve words by YAML 1.1, where yes is true, 010 is 8 and 1:30 is 90, and would take
the last of two equal keys. Here only true and false are booleans, 010 is 10, 0o10 is 8, dates and 1:30 are texts.
Thousands may be set apart (1_000), as YAML 1.1 and Python have it. Merge keys (<<) and anchors work.
"""

import codecs
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from mmgpt.errors import UserError

MOST_VALUES = 1_000_000  # of a text with its aliases written out: a few lines can stand for billions
MOST_DIGITS = 1000
TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
SCALARS: dict[str, str] = {  # tag: how a plain scalar of it is spelled
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|[-+]?[1-9][0-9]{0,2}(?:_[0-9]{3})+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}
HINTS = {  # in a message of the parser: what is most often behind it
    "'\\t'": "indent with spaces, not with tabs",
    "expected ':'": "a space follows the colon of a key, and every quote is closed",
    "mapping values are not allowed": "keys of one mapping begin in one column, and a text with a colon needs quotes",
    "unknown escape": "in double quotes a backslash begins an escape; take single quotes",
    "an alias": "write a text that begins with * in quotes",
    "undefined alias": "write a text that begins with * in quotes",
    "cannot start any token": "write a text that begins with such a character in quotes",
}
Tags = Mapping[str, Callable[[str], Any]]


class YamlError(UserError):
    """What is wrong with a text, in one line; who read it says where it came from."""


class _Loader(yaml.SafeLoader):
    """Has no resolvers of YAML 1.1."""


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else."""


for _name, _pattern in SCALARS.items():
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)


def parse(content: bytes | str, tags: Tags | None = None) -> Any:
    """The value of a YAML text: None, a bool, int, float or str, or lists and dicts of them, nothing of them shared.

    Args:
        content: UTF-8 or, after a byte order mark, UTF-16.
        tags: tags of scalars that are known besides, and what makes a value of their text.
    Raises:
        YamlError: names the line, for a key given twice both.
    """
    text = content if isinstance(content, str) else _decode(content)
    try:
        root = _Loader(text).get_single_node()
        if root is None:
            return None
        _check_size(root, {})
        return _Values(tags or {}).value(root, "")
    except yaml.reader.ReaderError as error:
        line = 1 + text[: error.position].count("\n")
        raise YamlError(
            f"line {line}: holds a control character, U+{_number(error.character):04X}; take it out"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise YamlError(_told(error)) from None
    except RecursionError:
        raise YamlError("is nested too deeply") from None


def dump(value: Any) -> str:
    """Plain values as YAML that reads back equal; keys stay in order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _decode(content: bytes) -> str:
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise YamlError(
            f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _number(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


def _told(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark else ""
    problem = " ".join(filter(None, (error.context, error.problem)))
    if "found another document" in problem:
        return f"{line}a second document begins here; give each a file of its own"
    hint = next((f"; {hint}" for part, hint in HINTS.items() if part in problem), "")
    column = f" (column {mark.column + 1})" if mark else ""
    return f"{line}{problem}{column}{hint}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for with its aliases written out."""
    if id(node) not in sizes:
        sizes[id(node)] = 0  # until it is known: an alias inside of what it names
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_check_size(child, sizes) for child in children)
    if sizes[id(node)] == 0:
        raise YamlError(f"line {_line(node)}: holds an alias of itself; write out what it stands for")
    if sizes[id(node)] > MOST_VALUES:
        raise YamlError(f"line {_line(node)}: stands for over {MOST_VALUES:,} values with its aliases; use fewer")
    return sizes[id(node)]


class _Values:
    """Makes values of nodes; `path` is the dotted keys to a node."""

    def __init__(self, tags: Tags) -> None:
        self.tags = tags

    def value(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in (f"{TAG}seq", f"{TAG}map"):
            raise self._unknown_tag(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self.value(item, f"{path}.{number}".lstrip(".")) for number, item in enumerate(node.value)]

    def _unknown_tag(self, node: yaml.Node, path: str) -> YamlError:
        tag = node.tag.replace(TAG, "!!")
        return YamlError(
            f"line {_line(node)}: {path or 'it'} has the tag {tag}; plain values alone are read, take it out"
        )

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        text = str(node.value)
        if node.tag in self.tags:
            return self.tags[node.tag](text)
        kind = node.tag.removeprefix(TAG)
        if kind in ("str", "merge"):  # "\ud83d\ude00" is one character, as JSON has it
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if kind not in SCALARS:
            raise self._unknown_tag(node, path)
        if not re.fullmatch(SCALARS[kind], text):  # of a tag that is written out, as in !!int x
            raise YamlError(f"line {_line(node)}: {path or 'it'}: {text!r} is no {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int" and len(text) > MOST_DIGITS:
            raise YamlError(f"line {_line(node)}: {path or 'it'} is a number of {len(text):,} digits; shorten it")
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        lines: dict[str, int] = {}
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, value_node, path)
            inner = f"{path}.{key}".lstrip(".")
            marker = key_node.tag if key_node.tag == MERGE else key
            if marker in lines:
                raise YamlError(_twice(inner, lines[marker], _line(key_node)))
            lines[marker] = _line(key_node)
            if marker == MERGE:
                merged = self._merged(value_node, path)
            else:
                own[key] = self.value(value_node, inner)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: str) -> dict[str, Any]:
        """What `<<: *alias` or `<<: [*first, *second]` stands for; the first that has a key gives it."""
        values = [self.value(one, path) for one in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
        if not all(isinstance(value, dict) for value in values):
            raise YamlError(f"line {_line(node)}: << takes an alias of a mapping, or a list of them")
        return {key: one for value in reversed(values) for key, one in value.items()}

    def _key(self, node: yaml.Node, value: yaml.Node, path: str) -> str:
        place = f"line {_line(node)}: "
        inside = f" in {path}" if path else ""
        if not isinstance(node, yaml.ScalarNode):
            raise YamlError(f"{place}a key{inside} is a list or a mapping; a key is a text")
        key = self._scalar(node, path)
        if not isinstance(key, str):
            raise YamlError(f'{place}a key{inside} is {node.value or "null"}, no text; write "{node.value}" in quotes')
        is_bare = not node.style and isinstance(value, yaml.ScalarNode) and value.value == "" and not value.style
        if is_bare and re.search(r":\S", key):
            name, _, rest = key.partition(":")
            raise YamlError(f"{place}{key}{inside} has no space after its colon; write {name}: {rest}")
        return key


def _twice(path: str, first: int, second: int) -> str:
    lines = f"on line {first} and line {second}" if first != second else f"on line {first}"
    return f"{path} is given twice, {lines}; keep one of them"

"""YAML surprises nobody: keys once, words as words, numbers as written, plain values alone."""

import math
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.yaml_reader import YamlError, dump, parse

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
WORDS = st.sampled_from(
    ["yes", "no", "on", "off", "y", "n", "~", "null", "010", "0o10", "1:30", "1e3", "08", "<<", "="]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS | WORDS
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
ONLY_1_2 = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?|0o[0-7]+|[-+]?[1-9]\d{0,2}(_\d{3})+")  # numbers of 1.2 alone


def by_hand(value) -> str:
    """Flow style, every text in double quotes with escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{by_hand(key)}: {by_hand(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(by_hand, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return {None: "~", True: "true", False: "False"}[value] if value is None or isinstance(value, bool) else repr(value)


def has_a_number_of_1_2(tree) -> bool:
    if isinstance(tree, dict):
        return any(map(has_a_number_of_1_2, [*tree, *tree.values()]))
    if isinstance(tree, list):
        return any(map(has_a_number_of_1_2, tree))
    return isinstance(tree, str) and bool(ONLY_1_2.fullmatch(tree))


def same(a, b) -> bool:
    return a == b and repr(a) == repr(b)


@settings(deadline=None)
@given(tree=TREES)
def test_what_is_dumped_or_written_by_hand_reads_back_equal(tree):
    assert same(parse(dump(tree)), tree)
    assert same(parse(by_hand(tree)), tree)


@settings(deadline=None)
@given(tree=TREES.filter(lambda tree: not has_a_number_of_1_2(tree)))
def test_what_pyyaml_dumps_reads_back_equal(tree):
    assert same(parse(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)), tree)


@settings(deadline=None)
@given(keys=st.lists(TEXTS, min_size=2, max_size=5, unique=True), at=st.data())
def test_a_key_given_twice_is_found_wherever_it_stands(keys, at):
    again = at.draw(st.sampled_from(keys))
    lines = [f"{by_hand(key)}: 1" for key in [*keys, again]]
    first, last = keys.index(again) + 2, len(keys) + 2
    with pytest.raises(YamlError, match=rf"is given twice, on line {first} and line {last}; keep one of them"):
        parse("a:\n" + "\n".join(f"- {line}" if number == 0 else f"  {line}" for number, line in enumerate(lines)))


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "On", "tRUE", "2026-11-30", "1:30"])
def test_words_and_dates_stay_the_texts_they_are(word):
    assert parse(f"a: {word}") == {"a": word}
    assert parse(f"- {word}") == [word]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("010", 10), ("0o10", 8), ("0x1F", 31), ("-007", -7), ("1_000", 1000), ("12_345_678", 12345678), ("+5", 5)],
        *[("1_00", "1_00"), ("_1", "_1"), ("0b11", "0b11"), ("1__000", "1__000"), ("1_000.5", "1_000.5"), ("1e", "1e")],
        *[("1e3", 1000.0), (".5", 0.5), ("2.", 2.0), ("1.e2", 100.0), ("-.INF", -math.inf), ("1e999", math.inf)],
        *[("True", True), ("FALSE", False), ("~", None), ("Null", None), ("", None), ("'010'", "010")],
        *[("!!str 010", "010"), ("!!float 3", 3.0), ("=", "="), ("'<<'", "<<"), ("+", "+"), (".", ".")],
    ],
)
def test_scalars_are_those_of_the_core_schema_with_thousands_set_apart(text, value):
    assert same(parse(f"a: {text}"), {"a": value})


def test_not_a_number_is_read_for_the_config_to_refuse():
    assert math.isnan(parse("a: .nan")["a"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "a is given twice, on line 1 and line 3"),
        ("stages:\n- name: s\n  data: [x]\n  data: [y]", "stages.0.data is given twice, on line 3 and line 4"),
        ("a: {b: [1, {c: 1, c: 2}]}", "a.b.1.c is given twice, on line 1;"),
        ('"yes": 1\nyes: 2', "yes is given twice, on line 1 and line 2"),
        ("a: {'b': 1, \"b\": 2}", "a.b is given twice"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "c.<< is given twice"),
        ("1: a\n01: b", 'line 1: a key is 1, no text; write "1" in quotes'),
        ("true: a", 'a key is true, no text; write "true" in quotes'),
        ("a: {~: b}", "a key in a is ~, no text"),
        ("? [a, b]\n: c", "a key is a list or a mapping"),
        ("a:\t1\n\tb: 2", "indent with spaces, not with tabs"),
        ("a: {kind:vit}", "line 1: kind:vit in a has no space after its colon; write kind: vit"),
        ("a: b: c", "line 1: mapping values are not allowed here .* a text with a colon needs quotes"),
        ("train: [*]", "write a text that begins with \\* in quotes"),
        ("train: [*.weight]", "write a text that begins with \\* in quotes"),
        ("a: @home", "write a text that begins with such a character in quotes"),
        ('a: "C:\\data"', "in double quotes a backslash begins an escape; take single quotes"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here"),
        ("a: !!python/object/apply:os.system [x]", "a has the tag !!python/object/apply:os.system; plain values alone"),
        ("a: !mine x", "a has the tag !mine"),
        ("a: !!set {x}", "a has the tag !!set"),
        ("a: !!timestamp 2026-11-30", "a has the tag !!timestamp"),
        ("a: !!bool yes", "a: 'yes' is no bool"),
        ("a: !!int 1:30", "a: '1:30' is no int"),
        ("a: &x [*x]", "holds an alias of itself"),
        ("a: &x {b: *x}", "holds an alias of itself"),
        ("a: *x", "undefined alias"),
        ("a: {<<: 3}", "<< takes an alias of a mapping, or a list of them"),
        ("a: \x07", "line 1: holds a control character, U\\+0007"),
        ("[" * 3000, "is nested too deeply"),
        ("a: " + "9" * 5000, "a is a number of 5,000 digits"),
        ("- 1\n- 2\nb: 3", "line 3: "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(text, told):
    with pytest.raises(YamlError, match=told) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_aliases_that_explode_are_refused_at_once():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(YamlError, match="stands for over 1,000,000 values with its aliases"):
        parse("\n".join(lines))


def test_anchors_and_merge_keys_work_and_share_nothing():
    read = parse("a: &a {x: [1], y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 7}, *a]}\nd: *a\n")
    assert read == {"a": {"x": [1], "y": 2}, "b": {"x": [1], "y": 3}, "c": {"x": 7, "y": 2}, "d": {"x": [1], "y": 2}}
    read["d"]["x"].append(9)
    assert read["a"]["x"] == read["b"]["x"] == [1]


@pytest.mark.parametrize(
    "content",
    ["a: é\n".encode(), "\ufeffa: é\n".encode(), "\ufeffa: é\n".encode("utf-16-le"), "\ufeffa: é".encode("utf-16-be")],
    ids=["utf-8", "bom", "utf-16-le", "utf-16-be"],
)
def test_files_of_every_editor_are_read(content):
    assert parse(content) == {"a": "é"}


def test_bytes_that_are_no_utf_8_are_told_by_their_line():
    with pytest.raises(YamlError, match=r"line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        parse(b"a: 1\nb: \xe9\n")


def test_halves_of_a_surrogate_pair_become_one_character_and_a_lone_half_a_replacement():
    assert parse('a: "\\ud83d\\ude00 \\ud83d"') == {"a": "\U0001f600 \ufffd"}


def test_a_tag_that_is_known_makes_its_own_value():
    assert parse("a: !up x\nb: [!up y]", {"!up": str.upper}) == {"a": "X", "b": ["Y"]}

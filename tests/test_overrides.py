"""Includes and overrides: what each lies over, and what of them would be lost in silence."""

import re
from pathlib import Path

import pytest
import yaml

from mmgpt.config import UserError, apply_overrides, read_yaml
from mmgpt.datasets.readers.registry import load_source
from mmgpt.evaluation.tasks.harness_import import import_task
from mmgpt.evaluation.tasks.task import load_task
from mmgpt.training.recipe import load_recipe
from mmgpt.yaml_reader import parse

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPE = """\
name: mini
template: plain
tokenizer: {vocab_size: 300, num_samples: 20}
model: {decoder: {width: 32, depth: 1, heads: 2, context: 128}}
stages:
  - name: s
    data: [{reader: messages, path: a.jsonl}]
    steps: 3
"""
TASK = """\
name: t
reader: {kind: jsonl, path: t.jsonl}
prompt: '{q}'
answer: '{a}'
kind: choose
"""


class OldLoader(yaml.SafeLoader):
    """PyYAML's YAML 1.1 with the numbers of 1.2."""


OldLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$|^[-+]?[0-9][0-9_]*\.[0-9_]*$"),
    list("-+0123456789."),
)


@pytest.fixture
def write(tmp_path):
    def to_file(text: str, name: str = "mine.yaml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return to_file


@pytest.mark.parametrize("name", sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")))
def test_every_config_that_comes_with_mmgpt_means_what_it_means_to_pyyaml(name):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    assert parse(text) == yaml.load(text, Loader=OldLoader)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            RECIPE + "    data: [{reader: messages, path: b.jsonl}]\n",
            "stages.0.data is given twice, on line 7 and line 9",
        ),
        (RECIPE + "stages: []\n", "stages is given twice, on line 5 and line 9"),
    ],
)
def test_a_recipe_with_a_key_twice_is_refused_with_both_lines(text, told, write):
    with pytest.raises(UserError, match=rf"mine.yaml: not valid YAML: {told}; keep one of them"):
        load_recipe(write(text))


def test_tasks_sources_includes_and_imports_refuse_a_key_twice(write, tmp_path):
    twice = "path is given twice, on line 2 and line 3"
    with pytest.raises(UserError, match="kind is given twice, on line 5 and line 6"):
        load_task(write(TASK + "kind: generate\n"))
    with pytest.raises(UserError, match=twice):
        load_source(write("reader: text\npath: a\npath: b\n"))
    with pytest.raises(UserError, match="task is given twice, on line 1 and line 2"):
        import_task(write("task: a\ntask: b\n"))
    write("reader: text\npath: a\npath: b\n", "part.yaml")
    with pytest.raises(UserError, match=rf"part.yaml: not valid YAML: {twice}"):
        read_yaml(write("data: [{include: part.yaml}]"))


def test_choices_of_words_are_words(write):
    assert load_task(write(TASK + "choices: [yes, no]\n")).choices == ["yes", "no"]
    assert load_task(write(TASK + "choices:\n- on\n- off\n- y\n- 1:30\n")).choices == ["on", "off", "y", "1:30"]
    with pytest.raises(UserError, match=r'choices.0=True: Input should be a valid string; write "true" in quotes'):
        load_task(write(TASK + "choices: [true, false]\n"))


def test_of_several_includes_each_lies_over_those_before_and_own_keys_over_all(write):
    write("{a: 1, b: 1, c: 1}", "first.yaml")
    write("{b: 2, c: 2, include: third.yaml}", "second.yaml")
    write("{c: 3, d: 3}", "third.yaml")
    assert read_yaml(write("include: [first.yaml, second.yaml]\nc: 9\n")) == {"a": 1, "b": 2, "c": 9, "d": 3}
    assert read_yaml(write("x: [{include: [third.yaml]}, 1]\n")) == {"x": [{"c": 3, "d": 3}, 1]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("include: 5", "include=5: is no file name; write include: FILE, or a list of files"),
        ("include:", "include=None: is no file name"),
        ("include: {a: b}", "is no file name"),
        ("include: [[a.yaml]]", "is no file name"),
        ("include: [mine.yaml, mine.yaml]", "include names mine.yaml twice"),
        ("a: {include: mine.yaml}", "mine.yaml: includes itself"),
        (
            "include: absent.yaml",
            r"mine.yaml: include: .*absent.yaml does not exist, and absent.yaml: no such file, and ",
        ),
        ("include: list.yaml", "list.yaml: holds a list; a config is a mapping"),
        ("key:value", "holds a str; a config is a mapping of keys to values; a space follows the colon of a key"),
    ],
)
def test_an_include_that_cannot_be_is_refused_with_the_file_that_holds_it(text, told, write):
    write("[1]", "list.yaml")
    with pytest.raises(UserError, match=told):
        read_yaml(write(text))


@pytest.mark.parametrize(
    ("overrides", "tree"),
    [
        (["a.b=x=y"], {"a": {"b": "x=y"}}),
        (["a.b=null"], {"a": {"b": None}}),
        (["a.b=''"], {"a": {"b": ""}}),
        (['a."b.c"=1'], {"a": {"b.c": 1}}),
        (["a.'b.c'.d=1"], {"a": {"b.c": {"d": 1}}}),
        (["a={b: 1}", "a.b=2"], {"a": {"b": 2}}),
        (["none.b=2"], {"none": {"b": 2}}),
        (["items.second.n=5", "items.0.n=6"], {"items": [{"name": "first", "n": 6}, {"name": "second", "n": 5}]}),
        (["a.b=yes"], {"a": {"b": "yes"}}),
    ],
)
def test_overrides_set_what_they_name(overrides, tree):
    base = {"none": None, "items": [{"name": "first"}, {"name": "second"}]}
    assert apply_overrides(dict(base), overrides) == {**base, **tree}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["a="], "override a: has no value; write a=null for none, or a=\"''\" for an empty text"),
        (["a.b=1", "a.b=2"], "override a.b: a.b is given before it, and would be lost"),
        (["items.0.n=1", "items.x.n=2"], "override items.x.n: items.0.n is given before it, and would be lost"),
        (["a.b=1", "a={c: 2}"], "override a: a.b is given before it, and would be lost"),
        (["a={b: 1, b: 2}"], "override a: .* b is given twice"),
        (["items.-1.n=1"], "-1 is neither a name in the list nor an index below 3"),
        (["items.7.n=1"], "7 is neither a name"),
        (["items.\u0661.n=1"], "is neither a name"),
        (["items.y.n=1"], "y is the name of 2 items; give an index, such as 1"),
        (["text.b=1"], "text is a single value, it has no b; it is 'words'"),
        (["text.b.c=1"], "text is a single value, it has no b"),
        (["number.b=1"], "number is a single value"),
        (["a..b=1"], "is not an override"),
        (["a.=1"], "is not an override"),
        ([".a=1"], "is not an override"),
        (["a=!!python/name:os.system"], "has the tag"),
        (["a=*x"], "write a text that begins with"),
    ],
)
def test_an_override_that_would_be_lost_or_lead_nowhere_is_refused(overrides, told):
    items = [{"name": "x"}, {"name": "y"}, {"name": "y"}]
    with pytest.raises(UserError, match=told):
        apply_overrides({"items": items, "text": "words", "number": 3}, overrides)

"""Tools, calls, answers and turns that are not learned, as they are rendered."""

import json
from dataclasses import replace

import PIL.Image
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmgpt.config import UserError
from mmgpt.datasets.calls import dumped, parse_tools
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Call, Message, Sample, parse_messages
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inputs.templates import TEMPLATES, to_jinja
from mmgpt.inputs.tokenizer import END
from mmgpt.inputs.trimming import TooLong

# Written after the format's description in github.com/NousResearch/Hermes-Function-Calling and what Qwen2.5 prints.
HERMES = """
{%- macro signatures() -%}
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{% for tool in tools %}{{ "\n" ~ (tool | tojson) }}{% endfor %}{{ "\n</tools>" }}

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{%- endmacro -%}
{%- if tools and messages[0].role != "system" -%}
{{ "<|im_start|>system\n" ~ signatures() ~ "<|im_end|>\n" }}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == "tool" -%}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" -%}{{ "<|im_start|>user" }}{%- endif -%}
{{ "\n<tool_response>\n" ~ m.content ~ "\n</tool_response>" }}
{%- if loop.last or messages[loop.index0 + 1].role != "tool" -%}{{ "<|im_end|>\n" }}{%- endif -%}
{%- elif m.role == "assistant" and m.tool_calls -%}
{{ "<|im_start|>assistant" }}
{%- if m.content -%}{{ "\n" ~ m.content }}{%- endif -%}
{%- for call in m.tool_calls -%}
{%- set arguments = call.function.arguments | tojson -%}
{{ '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' ~ arguments ~ "}\n</tool_call>" }}
{%- endfor -%}
{{ "<|im_end|>\n" }}
{%- else -%}
{{ "<|im_start|>" ~ m.role ~ "\n" ~ m.content }}
{%- if loop.first and tools and m.role == "system" -%}{{ "\n\n" ~ signatures() }}{%- endif -%}
{{ "<|im_end|>\n" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
"""
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PICTURE = Image(PIL.Image.new("RGB", (8, 8), "red"))
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "What it's like, caf\u00e9 <b>?"}}]
words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)
arguments = st.dictionaries(words, words | st.integers(), max_size=2)
calls = st.lists(st.tuples(st.sampled_from(["weather", "add"]), arguments), max_size=3)


@pytest.fixture(scope="session")
def renderer(make_bundle):
    return make_bundle(template="chatml", context=8192).renderer


def written(renderer, messages, **options) -> str:
    return renderer.tokenizer.decode(renderer.render(Sample(messages, key="k"), **options).ids, keep_special=True)


def learned(renderer, messages, objective="respond") -> str:
    labels = renderer.render(Sample(messages, key="k"), objective).labels
    return renderer.tokenizer.decode([label for label in labels if label != IGNORED], keep_special=True)


def talk(called, content: str, system: str | None) -> list[dict]:
    opened = [{"role": "system", "content": system}] if system else []
    asked = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in called]
    answers = [{"role": "tool", "content": f"answer {number}"} for number in range(len(called))]
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": content, "tool_calls": asked}]
    return [*opened, *turns, *answers, {"role": "assistant", "content": "So."}]


def with_tools(raw: list[dict]) -> tuple[Message, ...]:
    messages = parse_messages(raw)
    first = messages[0] if messages[0].role == "system" else Message("system", ())
    return (replace(first, tools=parse_tools(TOOLS)), *messages[first is messages[0] :])


@given(called=calls.filter(bool), content=st.just("") | words, system=st.none() | words)
def test_calls_are_rendered_as_transformers_renders_them_by_the_hermes_template(called, content, system, renderer):
    transformers = pytest.importorskip("transformers")
    raw = talk(called, content, system)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=renderer.tokenizer.core)
    options = {"tools": TOOLS, "chat_template": HERMES, "tokenize": False}
    assert written(renderer, with_tools(raw)) == peer.apply_chat_template(raw, **options)
    prompt = renderer.tokenizer.decode(renderer.prompt(with_tools(raw)[:-1]).ids, keep_special=True)
    assert prompt == peer.apply_chat_template(raw[:-1], add_generation_prompt=True, **options)


def test_where_the_marks_are_tokens_the_ids_are_those_of_the_whole_text(renderer):
    ours = replace(renderer, tokenizer=renderer.tokenizer.extended(MARKS))
    whole = tokenizers.Tokenizer.from_str(ours.tokenizer.core.to_str())
    whole.encode_special_tokens = False
    messages = with_tools(talk([("weather", {"city": "Rome."}), ("add", {"a": 1})], "Let me see.", "Be brief."))
    ids = ours.render(Sample(messages, key="k")).ids
    assert ids == whole.encode(written(ours, messages), add_special_tokens=False).ids
    assert ids.count(ours.tokenizer.special("<tool_call>")) == 4


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_the_exported_program_writes_tools_and_calls_as_they_are_rendered(system, renderer):
    own = replace(renderer, system=system)
    jinja = ImmutableSandboxedEnvironment()
    jinja.filters["tojson"] = dumped
    program = jinja.from_string(to_jinja(TEMPLATES["chatml"], "", system, {}))
    for said in (None, "S"):
        raw = talk([("weather", {"city": "X"}), ("add", {})], "Well.", said)
        assert program.render(messages=raw, tools=TOOLS) == written(own, with_tools(raw))
        assert program.render(messages=raw) == written(own, parse_messages(raw))


def test_calls_are_learned_and_answers_never_are(renderer):
    messages = with_tools(talk([("weather", {"city": "X"})], "Well.", None))
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "X"}}\n</tool_call>'
    assert learned(renderer, messages) == f"Well.\n{called}<|im_end|>So.<|im_end|>"
    alone = (Message("assistant", (), calls=(Call("weather", '{"city": "X"}'),)),)
    assert learned(renderer, alone) == f"{called}<|im_end|>"


def test_arguments_that_spell_a_special_token_are_text(renderer):
    messages = with_tools(talk([("weather", {"a": "<|im_end|>"})], "", None))
    end = renderer.tokenizer.special("<|im_end|>")
    assert renderer.render(Sample(messages, key="k")).ids.count(end) == 5


@pytest.mark.parametrize("template", sorted({*TEMPLATES} - {"chatml"}))
def test_a_template_without_a_form_refuses_tools_and_calls_by_name_and_sample(template, make_bundle):
    plain = make_bundle(template=template).renderer
    asked = (Message.of("user", "q"), Message("assistant", (), calls=(Call("f"),)))
    with pytest.raises(UserError, match="set/3: tool_calls: this model's chat template has no form"):
        plain.render(Sample(asked, key="set/3"))
    with pytest.raises(UserError, match="tools: this model's chat template has no form"):
        plain.prompt((Message("system", (), tools=("{}",)), Message.of("user", "q")))


GOOD, BAD = Message.of("assistant", "GOOD"), replace(Message.of("assistant", "BAD"), is_learned=False)
ASKED = Message.of("user", "q")


@pytest.mark.parametrize("template", [*TEMPLATES])
def test_a_turn_that_is_not_learned_is_read_and_no_target(template, make_bundle):
    own = make_bundle(template=template, context=512).renderer
    end = TEMPLATES[template].end
    assert learned(own, (ASKED, BAD, ASKED, GOOD)) == f"GOOD{end}"
    learned_all = replace(BAD, is_learned=True)
    ids = [own.render(Sample((ASKED, one, ASKED, GOOD), key="k")).ids for one in (BAD, learned_all)]
    assert ids[0] == ids[1]
    assert "BAD" not in learned(own, (ASKED, BAD, ASKED, GOOD), "causal")
    shown = own.render(Sample((ASKED, BAD, ASKED, GOOD), key="k"), "masked", 3)
    whole = own.render(Sample((ASKED, BAD, ASKED, GOOD), key="k"), "causal")
    assert all(a in (IGNORED, b) for a, b in zip(shown.labels, whole.labels, strict=True))
    with pytest.raises(UserError, match="k: no token is a target"):
        own.render(Sample((ASKED, BAD), key="k"))
    with pytest.raises(UserError, match="k: no token is a target"):
        own.render(Sample((BAD,), key="k"))


def test_branches_keep_the_turns_that_are_not_learned_out(make_bundle):
    own = make_bundle(template="chatml").renderer
    sample = Sample((ASKED,), key="k", branches=((BAD,), (GOOD,)))
    labels = [label for label in own.render(sample).labels if label != IGNORED]
    assert own.tokenizer.decode(labels, keep_special=True) == "GOOD<|im_end|>"
    bad, good = sample.unbranched()
    assert (bad.messages, good.messages) == ((ASKED, BAD), (ASKED, GOOD))


def test_a_sample_cut_to_turns_that_are_not_learned_is_too_long(make_bundle):
    long = Message.of("user", "word " * 40)
    own = make_bundle(template="chatml", context=60).renderer
    with pytest.raises(TooLong, match="over the context of 60"):
        own.render(Sample((long, GOOD, ASKED, BAD), key="k"))
    assert own.render(Sample((long, BAD, ASKED, GOOD), key="k")).is_trimmed


def test_a_reply_that_is_not_learned_forms_no_pair(make_bundle):
    own = make_bundle(template="plain").renderer
    shown = Message.of("user", PICTURE, "what?")
    good, bad = (own.render(Sample((shown, one), key="k"), "causal").media[0].text for one in (GOOD, BAD))
    assert good is not None
    assert bad is None


@pytest.mark.parametrize("text", ["a\ud83d", "\ude00", "\ud83d\ude00 b"])
def test_lone_surrogates_are_encoded_in_samples_prompts_choices_and_system_turns(text, make_bundle):
    own = make_bundle(template="chatml").renderer
    right = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    raw = [{"role": "user", "content": text}]
    for given_as in (own, replace(own, system=text)):
        prompt = given_as.prompt(parse_messages(raw))
        assert own.tokenizer.decode(prompt.ids).count(right) == 1 + (given_as is not own)
    assert own.choices(parse_messages(raw), [text, "b"])[1] == own.choices(parse_messages(raw), [right, "b"])[1]
    assert own.tokenizer.encode(text) == own.tokenizer.encode(right)
    assert own.tokenizer.count(text) == own.tokenizer.count(right)
    assert json.dumps(parse_messages(raw)[0].to_dict(), ensure_ascii=False).encode()
    assert END in own.tokenizer.special_ids

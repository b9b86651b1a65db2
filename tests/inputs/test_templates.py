import json
from dataclasses import replace

import PIL.Image
import pytest
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import processors

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inputs.templates import TEMPLATES, read_template, to_jinja
from mmgpt.inputs.tokenizer import END, PLACEHOLDER_TOKENS, Tokenizer

PICTURE = Image(PIL.Image.new("RGB", (8, 8), "red"))
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- endfor %}"
)


def with_settings(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (CHATML, ("chatml", "You are kind.")),
        ("{{ '<|im_start|>' + role }}", ("chatml", None)),
        ("{{ '<|start_header_id|>' + role + '<|end_header_id|>' }}", ("llama3", None)),
        ("{{ '<start_of_turn>' + role }}", ("gemma", None)),
        ("{{ 'USER: ' }}{{ 'ASSISTANT:' }}", ("vicuna", None)),
        ([{"name": "tool", "template": "x"}, {"name": "default", "template": "<|im_start|>"}], ("chatml", None)),
    ],
)
def test_a_checkpoints_template_is_known_by_its_markup(program, expected, tmp_path):
    assert read_template(with_settings(tmp_path, chat_template=program)) == expected


def test_the_jinja_file_counts_before_the_settings_and_none_is_plain(tmp_path):
    assert read_template(tmp_path) == ("plain", None)
    assert read_template(with_settings(tmp_path, eos_token="</s>")) == ("plain", None)
    (tmp_path / "chat_template.jinja").write_text("<start_of_turn>")
    assert read_template(with_settings(tmp_path, chat_template="<|im_start|>"))[0] == "gemma"


def test_an_unknown_template_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"none of chatml, llama3, gemma, vicuna; name the one to use"):
        read_template(with_settings(tmp_path, chat_template="{{ '[INST]' }}"))


def test_a_system_turn_that_all_get_stands_where_none_is_given(make_bundle):
    bundle = make_bundle(template="chatml")
    renderer = replace(bundle.renderer, system="You are kind.")
    given = (Message.of("system", "You are kind."), Message.of("user", "Hi."), Message.of("assistant", "Ho."))
    said, added = (renderer.render(Sample(messages, key="k")) for messages in (given, given[1:]))
    assert added.ids == said.ids
    assert added.labels == said.labels
    assert renderer.prompt(given[1:2]).ids == renderer.prompt(given[:2]).ids


def test_a_role_that_a_template_lacks_is_refused(make_bundle):
    renderer = make_bundle(template="gemma").renderer
    with pytest.raises(UserError, match="has no system turns, only user, assistant"):
        renderer.prompt((Message.of("system", "FrameSelection."), Message.of("user", "Hi.")))


@pytest.fixture
def outside(tokenizer):
    """A tokenizer as Llama's: it opens every text with a token of its own and closes documents with `</s>`."""
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    text = core.to_str().replace('"<|end|>"', '"<|other|>"')
    return Tokenizer.from_string(text)


def test_what_a_tokenizer_puts_before_every_text_is_put_before_documents_and_talks(outside, make_bundle):
    begin = (outside.special_ids["<s>"],)
    assert outside.begin == begin
    for template in ("plain", "chatml"):
        renderer = replace(make_bundle().renderer, tokenizer=outside, template=TEMPLATES[template])
        assert tuple(renderer.prompt((Message.of("user", "Hi."),)).ids[:1]) == begin
    document = renderer.render(Sample((Message.of("assistant", "A text."),), key="k"))
    assert document.ids == [*begin, *outside.encode("A text."), outside.special_ids["</s>"]]
    assert document.labels == [IGNORED, *document.ids[1:]]


def test_the_end_of_a_document_is_the_tokenizers_own(outside, tokenizer):
    assert outside.special(END) == outside.special_ids["</s>"]
    assert tokenizer.special(END) == tokenizer.core.token_to_id(END)


def test_tokens_are_added_once_at_the_end(tokenizer):
    more = tokenizer.extended(["<bos>", "<|image|>", "<bos>"])
    assert len(more) == len(tokenizer) + 1
    assert more.special("<bos>") == len(tokenizer)
    assert more.extended(["<bos>"]) is more
    assert more.encode("<bos>") == tokenizer.encode("<bos>")
    assert more.encode_markup("<bos>") == (len(tokenizer),)


@pytest.mark.parametrize(
    ("template", "system"),
    [("plain", None), ("chatml", None), ("chatml", "You are 'kind'.\n"), ("llama3", "Be brief."), ("gemma", None)],
)
def test_the_jinja_program_writes_what_is_rendered(template, system, make_bundle):
    bundle = make_bundle(template=template)
    renderer = replace(bundle.renderer, system=system, media_markup={"image": ("<", ">")})
    slots, begin = f"<{PLACEHOLDER_TOKENS['image'] * 4}>", TEMPLATES[template].begin or ""
    program = to_jinja(TEMPLATES[template], begin, system, {"image": slots})
    messages = (
        Message.of("user", "See ", PICTURE, "and say:\n"),
        Message.of("assistant", "Red."),
        Message.of("user", "Why?"),
    )
    words = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": "and say:\n"}]
    raw = [
        {"role": "user", "content": words},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(program)
    written = jinja.render(messages=raw, add_generation_prompt=True)
    assert written == bundle.tokenizer.decode(renderer.prompt(messages).ids, keep_special=True)
    assert slots in written


def test_a_renamed_token_keeps_its_id_and_everything_else(tokenizer):
    other = tokenizer.renamed("<|image|>", "<image>")
    assert other.special("<image>") == tokenizer.special("<|image|>")
    assert "<|image|>" not in other.special_ids
    assert other.encode("A red circle. <image>") == tokenizer.encode("A red circle. <image>")
    assert other.renamed("<image>", "<|image|>").special_ids == tokenizer.special_ids
    added = tokenizer.extended(["<a>"]).renamed("<a>", "<b>")
    assert added.special("<b>") == len(tokenizer)


def test_a_folder_with_a_sentencepiece_model_alone_is_told_how_to_write_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match=r"tokenizer.json: no such file; write it with transformers: AutoTokenizer"):
        Tokenizer.load(tmp_path)

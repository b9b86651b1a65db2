from dataclasses import replace

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import MASK
from mmgpt.inputs.trimming import TooLong

PICTURE = Image(PIL.Image.new("RGB", (8, 8), "red"))
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (  # without `trim`, which the rendering of learned text may not do
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = '<|begin_of_text|>' + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
JINJA = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA}
turns = st.lists(st.tuples(st.text(max_size=20), st.text(min_size=1, max_size=20)), min_size=1, max_size=3)
spellings = st.sampled_from(
    ["<|end|>", "<|image|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>", "<|im_start|>user\n"]
)


@pytest.fixture(scope="session")
def renderers(make_bundle):
    return {name: make_bundle(template=name, context=4096).renderer for name in TEMPLATES}


def system_of(template: str, text: str | None) -> str | None:
    return text if "system" in TEMPLATES[template].turns else None


def talk(*exchanges: tuple[str, str], system: str | None = None) -> tuple[Message, ...]:
    first = [Message.of("system", system)] if system is not None else []
    pairs = [(Message.of("user", q), Message.of("assistant", a)) for q, a in exchanges]
    return (*first, *(message for pair in pairs for message in pair))


def targets(rendered) -> list[int]:
    return [label for label in rendered.labels if label != IGNORED]


@pytest.mark.parametrize("template", [*TEMPLATES])
@given(exchanges=turns, noise=spellings, system=st.none() | st.text(max_size=10))
def test_exactly_the_assistants_text_and_end_token_are_targets(template, exchanges, noise, system, renderers):
    renderer = renderers[template]
    tokenizer, end = renderer.tokenizer, renderer.tokenizer.special(renderer.template.end)
    exchanges = [(question + noise, answer) for question, answer in exchanges]
    rendered = renderer.render(Sample(talk(*exchanges, system=system_of(template, system)), key="k"))
    assert targets(rendered) == [i for _, answer in exchanges for i in (*tokenizer.encode(answer), end)]
    assert all(label in (IGNORED, i) for label, i in zip(rendered.labels, rendered.ids, strict=True))


@pytest.mark.parametrize("template", [*TEMPLATES])
@given(text=st.lists(spellings | st.text(max_size=5), max_size=6).map("".join))
def test_text_that_spells_special_tokens_adds_none_of_them(template, text, renderers):
    renderer = renderers[template]
    specials = set(renderer.tokenizer.special_ids.values())
    spelt, plain = (renderer.render(Sample(talk((t, "answer " + t)), key="k")) for t in (text, ""))
    assert [i for i in spelt.ids if i in specials] == [i for i in plain.ids if i in specials]
    assert spelt.media == []


@pytest.mark.parametrize("template", [*JINJA])
@given(exchanges=turns, system=st.none() | st.text(max_size=10))
def test_rendering_gives_the_text_of_the_well_known_jinja_template(template, exchanges, system, renderers):
    renderer = renderers[template]
    messages = talk(*exchanges, system=system_of(template, system))
    raw = [{"role": message.role, "content": message.text} for message in messages]
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(JINJA[template])
    whole = renderer.tokenizer.decode(renderer.render(Sample(messages, key="k")).ids, keep_special=True)
    assert whole == jinja.render(messages=raw, add_generation_prompt=False)
    asked = renderer.tokenizer.decode(renderer.prompt(messages[:-1]).ids, keep_special=True)
    assert asked == jinja.render(messages=raw[:-1], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        ("chatml", [("user", "Hi."), ("assistant", "Ho.")]),
        ("llama3", [("system", "Be brief."), ("user", "Hi."), ("assistant", "Ho.")]),
    ],
)
def test_the_ids_are_special_tokens_and_texts_in_the_order_of_the_template(template, pieces, renderers):
    renderer = renderers[template]
    special, text = renderer.tokenizer.special, renderer.tokenizer.encode
    expected = [special("<|begin_of_text|>")] if template == "llama3" else []
    for role, content in pieces:
        if template == "chatml":
            expected += [
                special("<|im_start|>"),
                *text(role + "\n"),
                *text(content),
                special("<|im_end|>"),
                *text("\n"),
            ]
        else:
            header = [special("<|start_header_id|>"), *text(role), special("<|end_header_id|>"), *text("\n\n")]
            expected += [*header, *text(content), special("<|eot_id|>")]
    messages = tuple(Message.of(role, content) for role, content in pieces)
    assert renderer.render(Sample(messages, key="k")).ids == expected


@pytest.mark.parametrize("template", [*TEMPLATES])
@given(exchanges=turns)
def test_a_prompt_is_the_beginning_of_the_sample_it_is_learned_from(template, exchanges, renderers):
    renderer = renderers[template]
    messages = talk(*exchanges)
    messages = (Message.of("user", PICTURE, messages[0].text), *messages[1:])
    prompt, whole = renderer.prompt(messages[:-1]), renderer.render(Sample(messages, key="k"))
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    answer = [*renderer.tokenizer.encode(messages[-1].text), renderer.tokenizer.special(renderer.template.end)]
    assert whole.ids[len(prompt.ids) :][: len(answer)] == answer


@pytest.mark.parametrize(
    ("objective", "messages"),
    [
        ("respond", (Message.of("user", PICTURE, "What?"),)),
        ("respond", (Message.of("assistant", ""),)),
        ("causal", (Message.of("assistant", ""),)),
        ("masked", (Message.of("assistant", ""),)),
    ],
)
def test_a_sample_without_a_target_is_an_error_that_names_it(objective, messages, renderers):
    with pytest.raises(UserError, match="set/17: no token is a target"):
        renderers["plain"].render(Sample(messages, key="set/17"), objective)
    with pytest.raises(UserError, match="set/17: holds no messages"):
        renderers["plain"].render(Sample((), key="set/17"), objective)


def test_the_first_token_of_a_document_or_branch_is_never_a_target(renderers, scenes, open_world):
    document = renderers["plain"].render(open_world("stories")[3])
    assert document.labels[0] == IGNORED
    assert document.labels[1:] == document.ids[1:]
    branched = renderers["plain"].render(scenes[0])
    starts = [at for at, branch in enumerate(branched.branches) if at == 0 or branched.branches[at - 1] != branch]
    assert all(branched.labels[at] == IGNORED for at in starts)


def test_branch_positions_go_on_from_the_end_of_the_context(renderers, scenes):
    rendered = renderers["chatml"].render(scenes[0])
    context = rendered.branches.count(0)
    assert rendered.positions[:context] == list(range(context))
    for number in range(1, 10):
        own = [p for p, branch in zip(rendered.positions, rendered.branches, strict=True) if branch == number]
        assert own == list(range(context, context + len(own)))


def test_a_document_over_the_context_is_cut_and_says_so(make_bundle):
    renderer = make_bundle(context=16).renderer
    text = "a red circle in the middle. " * 5
    cut = renderer.render(Sample((Message.of("assistant", text),), key="k"))
    assert cut.is_trimmed
    assert cut.ids == list(renderer.tokenizer.encode(text))[:16]
    assert not renderer.render(Sample((Message.of("assistant", "a red"),), key="k")).is_trimmed
    with pytest.raises(TooLong, match=r"k: .* over the context of 16, and it holds media"):
        renderer.render(Sample((Message.of("assistant", text, PICTURE),), key="k"))


@pytest.mark.parametrize("template", [*TEMPLATES])
@given(count=st.integers(1, 6), context=st.integers(10, 150), words=st.integers(0, 6))
def test_truncation_drops_whole_exchanges_and_never_cuts_a_medium(template, count, context, words, renderers):
    renderer = replace(renderers[template], context=context)
    system = [Message.of("system", "FrameSelection.")] if "system" in TEMPLATES[template].turns else []
    exchanges = [
        (Message.of("user", PICTURE, f"What is {n}?" + " red" * words), Message.of("assistant", f"It is {n}."))
        for n in range(count)
    ]
    sample = Sample((*system, *(message for pair in exchanges for message in pair)), key="set/3")

    def rendered_last(kept: int):
        messages = (*system, *(message for pair in exchanges[count - kept :] for message in pair))
        return renderers[template].render(Sample(messages, key="set/3"))

    fitting = [kept for kept in range(count, 0, -1) if len(rendered_last(kept).ids) <= context]
    if not fitting:
        with pytest.raises(TooLong, match=f"set/3: .* over the context of {context}"):
            renderer.render(sample)
        return
    rendered = renderer.render(sample)
    assert rendered.ids == rendered_last(fitting[0]).ids
    assert rendered.is_trimmed == (fitting[0] < count)
    slot = renderer.tokenizer.special("<|image|>")
    assert rendered.ids.count(slot) == sum(medium.num_tokens for medium in rendered.media) == 4 * fitting[0]


@given(context=st.integers(10, 200))
def test_truncation_keeps_the_picture_that_a_whole_conversation_is_about(context, renderers):
    plain = renderers["chatml"]
    asked = [Message.of("user", PICTURE, "What is 0?"), *(Message.of("user", f"What is {n}?") for n in range(1, 9))]
    turns = [turn for n, question in enumerate(asked) for turn in (question, Message.of("assistant", f"It is {n}."))]
    fitting = [
        rendered
        for count in range(1, 10)
        if len((rendered := plain.render(Sample(tuple(turns[: 2 * count]), key="k"))).ids) <= context
    ]
    short, sample = replace(plain, context=context), Sample(tuple(turns), key="k")
    if not fitting:
        with pytest.raises(TooLong, match=f"k: .* tokens in one exchange alone, over the context of {context}"):
            short.render(sample)
        return
    rendered = short.render(sample)
    assert rendered.ids == fitting[-1].ids
    assert len(rendered.media) == 1


def test_a_conversation_of_many_turns_is_not_rendered_once_for_each(renderers, monkeypatch):
    turns = [Message.of(role, f"{n}") for n in range(128) for role in ("user", "assistant")]
    versions, render = [], Renderer._conversation
    monkeypatch.setattr(Renderer, "_conversation", lambda *given: versions.append(given[1]) or render(*given))
    assert replace(renderers["plain"], context=100).render(Sample(tuple(turns), key="k")).is_trimmed
    assert len(versions) <= 9


@given(context=st.integers(8, 200))
def test_truncation_drops_whole_branches_from_the_end(context, renderers, scenes, first_branches):
    renderer = replace(renderers["plain"], context=context)
    sizes = {count: len(renderers["plain"].render(first_branches(scenes[2], count)).ids) for count in range(1, 10)}
    fitting = [count for count, size in sizes.items() if size <= context]
    if not fitting:
        with pytest.raises(TooLong, match="scenes/0/train/2: "):
            renderer.render(scenes[2])
        return
    rendered = renderer.render(scenes[2])
    assert rendered.ids == renderers["plain"].render(first_branches(scenes[2], max(fitting))).ids
    assert rendered.is_trimmed == (max(fitting) < 9)


def test_a_prompt_over_the_context_names_its_heaviest_medium(make_bundle):
    renderer = make_bundle(context=12).renderer
    with pytest.raises(TooLong, match=r"too many for the context of 12 \(heaviest media: image given as Image 4\)"):
        renderer.prompt((Message.of("user", PICTURE, "What is this, in many words?"),))


def test_a_medium_the_model_has_no_encoder_for_is_refused_with_what_it_takes(renderers):
    with pytest.raises(UserError, match=r"k: clip.wav: this model has no audio encoder; it takes text, image"):
        renderers["plain"].render(
            Sample((Message.of("user", Audio("clip.wav")), Message.of("assistant", "rain")), key="k")
        )


def test_masking_hides_fifteen_percent_of_the_text_and_varies_with_the_draw(renderers):
    sample = Sample(talk(("How many shapes are there?" * 8, "a large red circle at the left." * 8)), key="k")
    whole = renderers["plain"].render(sample, "causal")
    shows = [renderers["plain"].render(sample, "masked", draw) for draw in range(40)]
    texts = len(targets(whole))
    fates = {"mask": 0, "kept": 0, "other": 0}
    for shown in shows:
        hidden = [at for at, label in enumerate(shown.labels) if label != IGNORED]
        assert len(hidden) == round(0.15 * texts)
        assert all(shown.labels[at] == whole.ids[at] for at in hidden)
        assert all(shown.ids[at] == whole.ids[at] for at in range(len(whole.ids)) if at not in hidden)
        for at in hidden:
            is_mask = shown.ids[at] == renderers["plain"].tokenizer.special(MASK)
            fates["mask" if is_mask else "kept" if shown.ids[at] == whole.ids[at] else "other"] += 1
    assert 0.75 < fates["mask"] / sum(fates.values()) < 0.85
    assert fates["kept"] > 0
    assert fates["other"] > 0
    assert shows[0].labels != shows[1].labels
    assert renderers["plain"].render(sample, "masked", 7).ids == shows[7].ids


def test_word_dropout_hides_its_share_of_the_targets_and_of_nothing_else(renderers):
    sample = Sample(talk(("How many shapes are there?", "a large red circle at the left." * 8)), key="k")
    mask = renderers["plain"].tokenizer.special(MASK)
    whole = renderers["plain"].render(sample)
    shows = [renderers["plain"].render(sample, sample_number=draw, word_dropout=0.2) for draw in range(60)]
    for shown in shows:
        assert shown.labels == whole.labels
        for id_, label, before in zip(shown.ids, shown.labels, whole.ids, strict=True):
            assert id_ == before or (id_ == mask and label == before)
    hidden = sum(shown.ids.count(mask) for shown in shows)
    assert 0.16 < hidden / (60 * len(targets(whole))) < 0.24
    assert shows[0].ids != shows[1].ids
    assert renderers["plain"].render(sample, sample_number=7, word_dropout=0.2).ids == shows[7].ids


def test_media_tokens_are_never_targets(renderers):
    sample = Sample((Message.of("user", PICTURE, "What?"), Message.of("assistant", "red", PICTURE, "blue")), key="k")
    slot = renderers["plain"].tokenizer.special("<|image|>")
    for objective in ("respond", "causal", "masked"):
        rendered = renderers["plain"].render(sample, objective)
        assert slot not in targets(rendered)
        assert rendered.ids.count(slot) == 8


@pytest.mark.parametrize("template", [*TEMPLATES])
def test_choices_are_replies_to_the_prompt_with_their_end(template, renderers):
    renderer = renderers[template]
    messages = (Message.of("user", PICTURE, "Is it red?"),)
    rendered, answers = renderer.choices(messages, ["yes", "no, blue"])
    end = renderer.tokenizer.special(renderer.template.end)
    assert answers == [[*renderer.tokenizer.encode(choice), end] for choice in ("yes", "no, blue")]
    prompt = renderer.prompt(messages)
    assert (rendered.ids, rendered.labels, rendered.positions) == (prompt.ids, prompt.labels, prompt.positions)

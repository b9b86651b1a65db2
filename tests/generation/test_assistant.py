import base64
import io
import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mmgpt
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message
from mmgpt.files import write_folder
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.batch import collate
from mmgpt.inputs.trimming import TooLong

QUESTION = "How many red shapes are there?"


def picture_file(folder) -> str:
    PIL.Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 50).convert("RGB").save(folder / "scene.png")
    return str(folder / "scene.png")


def said(reply) -> tuple[str, list[int], str]:
    return reply.text, reply.tokens, reply.finish_reason


@torch.no_grad()
def test_one_conversation_gives_a_reply_and_a_list_gives_a_list(assistant, conversations):
    one = assistant.chat(conversations[0], max_new_tokens=6)
    many = assistant.chat(conversations, max_new_tokens=6)
    assert isinstance(one, mmgpt.Reply)
    assert [type(reply) for reply in many] == [mmgpt.Reply] * len(conversations)
    assert said(many[0]) == said(one)
    assert [said(reply) for reply in assistant.chat(conversations[:1], max_new_tokens=6)] == [said(one)]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_replies_do_not_depend_on_how_many_are_answered_at_a_time(options, assistant, conversations):
    runs = [assistant.chat(conversations, batch_size=n, max_new_tokens=10, **options) for n in (1, 4, 32)]
    assert len({tuple(map(str, map(said, run))) for run in runs}) == 1


def test_a_row_of_a_list_draws_from_its_own_seed(assistant, conversations):
    together = assistant.chat(conversations, temperature=1.0, seed=40, max_new_tokens=10)
    alone = [
        assistant.chat(one, temperature=1.0, seed=40 + row, max_new_tokens=10) for row, one in enumerate(conversations)
    ]
    assert [said(reply) for reply in together] == [said(reply) for reply in alone]
    other = assistant.chat(conversations[0], temperature=1.0, seed=39, max_new_tokens=10)
    assert said(other) != said(alone[0])


def test_ask_is_a_chat_of_one_user_turn(assistant, tmp_path):
    image = Image(picture_file(tmp_path))
    one = assistant.ask(image, QUESTION, max_new_tokens=6)
    assert said(one) == said(assistant.chat([Message.of("user", image, QUESTION)], max_new_tokens=6))
    both = assistant.ask([image, QUESTION], ["2 + 2 ="], max_new_tokens=6)
    assert said(both[0]) == said(one)
    assert said(both[1]) == said(assistant.ask("2 + 2 =", max_new_tokens=6))


def test_every_spelling_of_a_message_gives_the_same_reply(assistant, tmp_path):
    path = picture_file(tmp_path)
    with open(path, "rb") as file:
        payload = file.read()
    url = f"data:image/png;base64,{base64.b64encode(payload).decode()}"
    text = {"type": "text", "text": QUESTION}
    pictures = [
        {"type": "image", "path": path},
        {"type": "image", "image": PIL.Image.open(io.BytesIO(payload))},
        {"type": "image", "url": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": path},
        Image(path),
        Image(payload),
    ]
    wanted = said(assistant.chat([Message.of("user", Image(path), QUESTION)], max_new_tokens=8))
    for picture in pictures:
        spelt = {"role": "user", "content": [picture, text]}
        assert said(assistant.chat([spelt], max_new_tokens=8)) == wanted
    assert said(assistant.chat([{"role": "user", "content": QUESTION}], max_new_tokens=8)) != wanted


@given(
    text=st.text(st.sampled_from("ab é€😀\u0301\u0410.stop"), min_size=1, max_size=24),
    stops=st.lists(st.sampled_from(["stop", "op", "€😀", "a", "ab.", "é€"]), max_size=2),
    ends=st.booleans(),
)
@settings(max_examples=60)
def test_streamed_pieces_joined_are_the_reply_with_characters_of_many_bytes(text, stops, ends, scripted):
    pieces, reply = scripted([*scripted.assistant.tokenizer.encode(text)], ends=ends, stop=tuple(stops))
    assert "".join(pieces) == reply.text
    assert all(pieces)
    cuts = [text.find(stop) for stop in stops if stop in text]
    assert reply.text == (text[: min(cuts)] if cuts else text)
    assert not any("\ufffd" in piece for piece in pieces), "a character was told in halves"


@given(ids=st.lists(st.integers(0, 399), min_size=1, max_size=12), stop=st.sampled_from([(), ("a",), ("\ufffd",)]))
def test_streamed_pieces_joined_are_the_reply_whatever_the_tokens_are(ids, stop, scripted):
    pieces, reply = scripted(ids, ends=False, stop=stop)
    assert "".join(pieces) == reply.text


def test_a_stream_tells_the_answer_while_it_is_decoded(assistant, conversations, script):
    ids = assistant.tokenizer.encode("one two three four")
    script([*ids, assistant.eos_token_id])
    pieces = assistant.stream(conversations[0])
    first = next(pieces)
    assert "one two three four".startswith(first)
    assert len(first) < 8
    assert first + "".join(pieces) == "one two three four"


def test_a_wrong_prompt_or_option_is_refused_before_the_first_piece_is_asked_for(assistant, conversations):
    with pytest.raises(UserError, match="the prompt is empty"):
        assistant.stream([])
    with pytest.raises(UserError, match="did you mean temperature"):
        assistant.stream(conversations[0], temprature=1)


@pytest.mark.parametrize("template", ["plain", "chatml", "llama3"])
@pytest.mark.parametrize("normalise", [False, True])
def test_choose_picks_what_separate_passes_pick(normalise, template, make_assistant, conversations, logprobs_of):
    assistant = make_assistant(template=template)
    choices = ["yes", "no", "a large blue circle in the middle", "", "3"]
    ends = assistant.tokenizer.encode_markup(assistant.renderer.template.end)
    chosen = assistant.choose(conversations, choices, normalise=normalise, batch_size=4)
    for found, conversation in zip(chosen, conversations, strict=True):
        prompt = assistant.renderer.prompt(conversation)
        separate = []
        for choice in choices:
            logprobs = logprobs_of(assistant, prompt, [*assistant.tokenizer.encode(choice), *ends])
            separate.append(sum(logprobs) / (len(logprobs) if normalise else 1))
        assert found.logprobs == pytest.approx(separate, abs=1e-5, rel=1e-5)
        assert found.text == choices[found.index]
        assert found.index == separate.index(max(separate))


def test_choose_takes_one_conversation_a_list_or_a_list_of_lists(assistant, conversations):
    options = ["yes", "no"]
    one = assistant.choose(conversations[0], options)
    assert isinstance(one, mmgpt.Choice)
    shared = assistant.choose(conversations[:2], options)
    own = assistant.choose(conversations[:2], [options, ["red", "blue", "no"]])
    assert (shared[0].text, own[0].text) == (one.text, one.text)
    assert own[1].logprobs[2] == pytest.approx(shared[1].logprobs[1], abs=1e-5)


@pytest.mark.parametrize("choices", [["yes"], [], [["yes", "no"]], [["yes", "no"], ["yes"]]])
def test_choices_that_are_too_few_are_refused(choices, assistant, conversations):
    with pytest.raises(UserError, match="at least two choices"):
        assistant.choose(conversations[:2], choices)


def test_an_unknown_option_is_refused_with_the_nearest_name(assistant):
    with pytest.raises(UserError, match="max_tokens is not a field of GenerateConfig; did you mean max_new_tokens"):
        assistant.ask("2 + 2 =", max_tokens=3)


@pytest.mark.parametrize("ask", ["chat", "stream", "choose"])
def test_a_prompt_over_the_context_is_refused_saying_by_how_many_tokens(ask, make_assistant, scenes):
    assistant = make_assistant(context=32)
    image = scenes[0].messages[0].parts[0]
    digits = [Message.of("user", image, "1" * 32)]
    length = 4 + 32 + 1  # the picture, a token a digit, the end of the turn
    rule = {"choose": "over the context of 32"}.get(ask, f"{length} tokens, {length + 1 - 32} too many .* image")
    with pytest.raises(TooLong, match=rule):
        getattr(assistant, ask)(digits, *([["yes", "no"]] if ask == "choose" else []))
    fits = [Message.of("user", image, "1" * (32 - 1 - 4 - 1))]
    assert assistant.chat(fits).finish_reason in ("length", "stop")
    with pytest.raises(TooLong, match="1 too many"):
        assistant.chat([Message.of("user", image, "1" * (32 - 4 - 1))])
    with pytest.raises(TooLong, match="prompt 1: "):
        assistant.chat([fits, digits])


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "the prompt is empty; give at least one user message"),
        ([Message.of("user", "Hi."), Message.of("assistant", "yes")], "ends with an assistant turn; end it with"),
        ([Message.of("user", Audio(b""), "What?")], "has no audio encoder; it takes text, image"),
        (
            [Message.of("user", Audio("a.wav"), "What?")],
            "a.wav: this model has no audio encoder; .* text, image, video",
        ),
        ([Message.of("user", Video("a.mp4"), "What?")], "a.mp4: no such file; check the video's path"),
        ([Message.of("user", Image("not/there.png"))], "not/there.png: no such file; check the image's path"),
        ("What?", "messages must be a list of messages, not str; write"),
        ({"role": "user", "content": "What?"}, "messages must be a list of messages, not dict; write"),
        ([{"role": "usr", "content": "What?"}], "role 'usr' is not known; did you mean user"),
        ([{"role": "user", "content": [{"type": "imag", "path": "a"}]}], "did you mean image"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_remedy(messages, told, assistant):
    with pytest.raises(UserError, match=told):
        assistant.chat(messages)


def test_a_question_without_parts_is_refused(assistant):
    with pytest.raises(UserError, match="the prompt is empty"):
        assistant.ask()


def test_a_text_model_refuses_pictures(make_assistant):
    with pytest.raises(UserError, match="this model has no image encoder; it takes text"):
        make_assistant(image=None).ask(Image(PIL.Image.new("RGB", (8, 8))), "What?")


@pytest.fixture
def saved(assistant, tmp_path) -> Path:
    write_folder(tmp_path / "model", lambda draft: save_bundle(assistant.bundle, draft))
    return tmp_path / "model"


def test_a_loaded_model_has_the_logits_of_the_one_that_was_saved(assistant, saved, conversations):
    loaded = mmgpt.load(saved, device="cpu", verify=True)
    batch = collate([assistant.renderer.prompt(one) for one in conversations])
    with torch.no_grad():
        wanted_BTD = assistant.model.eval().hidden(batch)
        torch.testing.assert_close(loaded.model.hidden(batch), wanted_BTD, atol=1e-6, rtol=1e-6)
    weights = assistant.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.model.state_dict().items())
    ours, theirs = (one.chat(conversations, max_new_tokens=8) for one in (assistant, loaded))
    assert [said(reply) for reply in ours] == [said(reply) for reply in theirs]


def test_a_run_opens_its_final_model_before_its_checkpoints(saved, assistant, tmp_path):
    assert mmgpt.load(save_as(assistant, tmp_path / "run" / "align" / "checkpoint-3").parents[1]).tokenizer
    with torch.no_grad():
        assistant.model.decoder.head.weight.zero_()
    save_as(assistant, tmp_path / "run" / "final")
    assert not mmgpt.load(tmp_path / "run").model.decoder.head.weight.any()


def save_as(assistant: Assistant, folder: Path) -> Path:
    write_folder(folder, lambda draft: save_bundle(assistant.bundle, draft))
    return folder


def test_verify_tells_weights_that_are_not_those_of_the_golden_logits(saved):
    weights = load_file(saved / "model.safetensors")
    weights["adapters.image.project.0.weight"] *= 1.5
    save_file(weights, saved / "model.safetensors")
    assert mmgpt.load(saved)
    with pytest.raises(UserError, match=r"golden.json's logits are off by .*; the weights are not the ones"):
        mmgpt.load(saved, verify=True)


def change_config(folder: Path, **changes) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["model"]["decoder"] |= changes
    (folder / "config.json").write_text(json.dumps(described))


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda folder: change_config(folder, width=40),
            r"do not fit its config.json .* of another shape: .*instead of",
        ),
        (lambda folder: change_config(folder, depth=3), r"missing: decoder.blocks.2.*take the config.json"),
        (lambda folder: change_config(folder, depth=1), r"unexpected: decoder.blocks.1"),
        (lambda folder: change_config(folder, dept=1), r"dept is not a field of DecoderConfig; did you mean depth"),
        (lambda folder: cut_in_half(folder / "model.safetensors"), "damaged or truncated .*; take another checkpoint"),
        (lambda folder: cut_in_half(folder / "config.json"), "config.json: not valid JSON"),
        (lambda folder: cut_in_half(folder / "tokenizer.json"), "not a tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file; the checkpoint is incomplete"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json, final/ or checkpoint; give a run"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "lama"}'),
            "'lama' is no known .*; did you mean llama",
        ),
    ],
)
def test_a_folder_that_cannot_be_opened_is_refused_with_the_reason(damage, told, saved):
    damage(saved)
    with pytest.raises(UserError, match=told):
        mmgpt.load(saved)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="not/there: no such folder; give a run"):
        mmgpt.load(tmp_path / "not" / "there")


@pytest.mark.parametrize("device", ["cupu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device, saved):
    with pytest.raises(UserError, match=f"device {device}"):
        mmgpt.load(saved, device=device)


@pytest.fixture(scope="module")
def scripted(make_bundle):
    """Decode given ids as a stream and as a chat: (pieces, reply)."""
    assistant = Assistant(make_bundle())

    def run(ids, *, ends, stop):
        options = {"stop": stop, "max_new_tokens": max(1, len(ids) + ends)}
        answers = []
        for ask in (lambda *given, **more: list(assistant.stream(*given, **more)), assistant.chat):
            queue = iter([*ids, *[assistant.eos_token_id] * ends, 10])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("mmgpt.generation.engine.sample_tokens", lambda *_, q=queue: torch.tensor([next(q)]))
                answers.append(ask([Message.of("user", "?")], **options))
        return answers

    run.assistant = assistant
    return run


def test_excess_is_how_many_tokens_a_talk_and_its_answer_are_over_the_context(assistant):
    context = assistant.renderer.context
    short, long = [Message.of("user", "a" * 5)], [Message.of("user", "ab cd " * context)]
    for talk in (short, long):
        free = assistant.tokens_over_context(talk, 0)
        assert assistant.tokens_over_context(talk, 3) == free + 3
    assert assistant.tokens_over_context(short, 0) == len(assistant.renderer.prompt(tuple(short)).ids) - context


def test_a_fingerprint_tells_weights_and_settings_apart(make_assistant):
    talker = make_assistant()
    before = talker.fingerprint()
    assert talker.fingerprint() == before
    talker.bundle.system = "Be brief."
    assert talker.fingerprint() != before

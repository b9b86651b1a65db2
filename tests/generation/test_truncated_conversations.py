"""Talks that outgrow the context lose whole exchanges, the oldest first."""

import pytest

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message
from mmgpt.generation.prompts import parse_prompt, truncate_conversation
from mmgpt.inputs.rendered import RenderContext
from mmgpt.inputs.trimming import TooLong

SYSTEM = Message.of("system", "3" * 9)  # ten tokens with its end, as every turn of nine digits


@pytest.fixture
def renderer(make_bundle):
    return make_bundle(context=64).renderer


def said(digits: int, role: str = "user", *media) -> Message:
    return Message.of(role, *media, "1" * digits)


def talk(exchanges: int, *first: Message) -> list[Message]:
    turns = [turn for _ in range(exchanges) for turn in (said(9), said(9, "assistant"))]
    return [*first, *turns, said(9)]


def test_a_talk_that_fits_is_left_alone(renderer):
    messages = talk(2, SYSTEM)  # six turns of ten tokens
    fitted = truncate_conversation(renderer, messages, room=4)
    assert fitted.messages == tuple(messages)
    assert (fitted.left_out, fitted.told()) == ((), "")
    assert fitted.prompt == renderer.prompt(tuple(messages))


def test_the_oldest_exchanges_go_and_the_system_turn_stays(renderer):
    messages = talk(4, SYSTEM)
    fitted = truncate_conversation(renderer, messages)
    assert fitted.messages == (SYSTEM, *messages[5:])
    assert fitted.left_out == tuple(messages[1:5])
    assert len(fitted.prompt.ids) == 60
    assert fitted.told().startswith("the oldest 4 turns left out")
    assert truncate_conversation(renderer, messages, room=5).messages == (SYSTEM, *messages[7:])
    assert truncate_conversation(renderer, talk(4)).messages == tuple(talk(2)[-5:])


def test_a_tools_turns_go_with_the_question_that_they_are_about(renderer):
    calls = [
        said(9),
        said(9, "assistant"),
        said(9, "tool"),
        said(9, "assistant"),
        said(9),
        said(9, "assistant"),
        said(9),
    ]
    fitted = truncate_conversation(renderer, calls)
    assert fitted.left_out == tuple(calls[:4])
    assert truncate_conversation(renderer, [said(9), said(9, "assistant"), said(9, "tool")]).left_out == ()


def test_media_are_counted_told_and_decoded_once(renderer, scenes, monkeypatch):
    picture = scenes[0].messages[0].parts[0]
    decoded = []
    original = Image.load
    monkeypatch.setattr(Image, "load", lambda self, *rest: decoded.append(self) or original(self, *rest))
    messages = [
        said(20, "user", picture),
        said(9, "assistant"),
        said(20, "user", Image(picture.source)),
        said(0, "assistant"),
    ]
    showing = RenderContext()
    fitted = truncate_conversation(renderer, [*messages, said(9)], showing=showing)
    assert fitted.left_out == tuple(messages[:2])
    assert "(with 1 image) left out" in fitted.told()
    assert len(decoded) == 2
    assert truncate_conversation(renderer, [*messages, said(9)], showing=showing).messages == fitted.messages
    assert len(decoded) == 2


def test_the_last_exchange_stays_where_the_answer_has_less_room_and_is_never_cut(renderer):
    assert truncate_conversation(renderer, [said(9), said(9, "assistant"), said(50)], room=30).messages == (said(50),)
    with pytest.raises(TooLong, match="90 too many"):
        truncate_conversation(renderer, [said(9), said(9, "assistant"), said(152)])
    with pytest.raises(UserError, match="the prompt is empty"):
        truncate_conversation(renderer, [])


def test_a_talk_with_a_system_turn_and_a_tools_reply_is_answered(make_assistant):
    assistant = make_assistant(template="chatml")
    spelt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "weather()"},
        {"role": "tool", "content": [{"type": "text", "text": "21"}]},
    ]
    turns = [("system", "Be brief."), ("user", "How warm is it?"), ("assistant", "weather()"), ("tool", "21")]
    by_hand = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    prompt = assistant.renderer.prompt(parse_prompt(spelt))
    assert assistant.tokenizer.decode(prompt.ids, keep_special=True) == by_hand
    assert assistant.chat(spelt, max_new_tokens=3).tokens != assistant.chat(spelt[:2], max_new_tokens=3).tokens

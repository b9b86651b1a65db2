import json

import pytest
import torch

from mmgpt.config import UserError
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.beam import beam_search

QUESTIONS = ["How many?", "What is red, and what is blue?", "Is it?", "a a a a a a a a a a a a"]


def talks(assistant):
    return [[{"role": "user", "content": question}] for question in QUESTIONS]


def test_beams_are_those_of_the_search_and_end_as_answers_do(assistant):
    options = {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9}
    replies = assistant.chat(talks(assistant), batch_size=3, **options)
    for talk, reply in zip(talks(assistant), replies, strict=True):
        prompt = assistant._prompt(talk, "prompt", assistant._options(options), False)
        best = beam_search(assistant.model, [prompt], eos_token_id=assistant.eos_token_id, **options)[0][0]
        assert tuple(reply.tokens) == best.tokens
        assert reply.finish_reason == ("stop" if best.tokens[-1] == assistant.eos_token_id else "length")
        assert reply.text == assistant.tokenizer.decode(reply.tokens)


def test_best_of_takes_the_answer_with_the_highest_mean_whatever_the_batch(assistant):
    options = {"temperature": 1.0, "max_new_tokens": 6, "seed": 5}
    best = assistant.chat(talks(assistant), best_of=4, **options)
    assert [r.tokens for r in best] == [
        r.tokens for r in assistant.chat(talks(assistant), best_of=4, batch_size=1, **options)
    ]
    single = assistant.chat(talks(assistant), **options)
    mean = lambda reply: sum(reply.logprobs) / len(reply.logprobs)  # noqa: E731
    assert all(mean(one) >= mean(two) for one, two in zip(best, single, strict=True))
    assert [one.tokens for one in best] != [two.tokens for two in single]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}])
def test_speculation_gives_the_answers_of_plain_decoding(options, assistant, make_bundle):
    plain = assistant.chat(talks(assistant), max_new_tokens=20, **options)
    looked_up = assistant.chat(talks(assistant), max_new_tokens=20, speculation="lookup", batch_size=3, **options)
    assert [r.tokens for r in looked_up] == [r.tokens for r in plain]
    assert [r.text for r in looked_up] == [r.text for r in plain]
    small = Assistant(make_bundle(depth=1))
    drafted = assistant.chat(talks(assistant), max_new_tokens=20, speculation="draft", draft=small, **options)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    torch.testing.assert_close(drafted[1].logprobs, plain[1].logprobs, atol=1e-4, rtol=0)
    assert (
        "".join(assistant.stream(talks(assistant)[0], max_new_tokens=20, speculation="lookup", **options))
        == plain[0].text
    )


def test_speculation_tells_the_alternatives_and_takes_the_best_of_several(assistant):
    options = {"max_new_tokens": 12, "temperature": 1.0, "best_of": 3, "top_logprobs": 2}
    plain = assistant.chat(talks(assistant), **options)
    looked_up = assistant.chat(talks(assistant), speculation="lookup", **options)
    assert [r.tokens for r in looked_up] == [r.tokens for r in plain]
    assert [[one[0][0] for one in r.top] for r in looked_up] == [[one[0][0] for one in r.top] for r in plain]


def test_ways_of_decoding_may_differ_from_one_conversation_to_the_next(assistant):
    each = [{"num_beams": 2}, {}, {"speculation": "lookup"}, {"temperature": 1.0, "best_of": 2}]
    together = assistant.chat(talks(assistant), max_new_tokens=7, each=each)
    for number, (talk, own) in enumerate(zip(talks(assistant), each, strict=True)):
        alone = assistant.chat(talk, max_new_tokens=7, seed=number, **own)
        assert together[number].tokens == alone.tokens


def test_the_likeliest_alternatives_are_told_with_every_token(assistant):
    reply = assistant.ask("How many?", max_new_tokens=5, top_logprobs=3)
    assert [len(best) for best in reply.top] == [3] * len(reply.tokens)
    for token, logprob, best in zip(reply.tokens, reply.logprobs, reply.top, strict=True):
        assert best[0] == (token, pytest.approx(logprob, abs=1e-5))
    assert assistant.ask("How many?", max_new_tokens=5).top == []


def test_an_answer_keeps_to_its_constraint(assistant):
    number = {"type": "integer", "minimum": 0, "maximum": 99}
    schema = {"type": "object", "properties": {"n": number}, "required": ["n"], "additionalProperties": False}
    replies = assistant.chat(
        talks(assistant)[:3],
        max_new_tokens=60,
        each=[
            {"constraint": {"choices": ["red", "blue"]}},
            {"constraint": {"regex": "[0-9]{3}"}},
            {"constraint": {"json_schema": schema}},
        ],
    )
    assert replies[0].text in ("red", "blue")
    assert len(replies[1].text) == 3
    assert replies[1].text.isdecimal()
    assert 0 <= json.loads(replies[2].text)["n"] <= 99
    assert {reply.finish_reason for reply in replies} == {"stop"}


def test_what_cannot_be_answered_so_is_refused(assistant, make_bundle):
    talk = talks(assistant)[0]
    with pytest.raises(UserError, match=r"speculation: draft needs a small model; give chat\(..., draft="):
        assistant.chat(talk, speculation="draft")
    other = Assistant(make_bundle(template="gemma"))
    with pytest.raises(UserError, match="the draft model has another tokenizer"):
        assistant.chat(talk, speculation="draft", draft=other)
    with pytest.raises(UserError, match="num_beams is for whole answers"):
        assistant.stream(talk, num_beams=2)
    with pytest.raises(UserError, match="a stream takes lookup"):
        assistant.stream(talk, speculation="draft")


def test_a_talk_over_the_context_is_trimmed_when_asked_to(assistant):
    long = [{"role": "user", "content": "red " * 90}, {"role": "assistant", "content": "Yes."}] * 4
    talk = [*long, {"role": "user", "content": "How many?"}]
    with pytest.raises(UserError, match="too many for the context"):
        assistant.chat(talk, max_new_tokens=4)
    trimmed = assistant.chat(talk, max_new_tokens=4, trim=True)
    assert trimmed.tokens


def test_vectors_of_prompts_come_from_the_model(assistant):
    vectors = assistant.embed(["red", "blue", "red"])
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors[0], vectors[2])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))

import pytest

from mmgpt.config import UserError
from mmgpt.inputs.rendered import Rendered


def test_score_is_the_log_softmax_of_a_full_pass_over_both_strings(assistant, logprobs_of):
    context, continuation = "There is a red circle", " in the middle and <|end|> a square."
    head, tail = (list(assistant.tokenizer.encode(text)) for text in (context, continuation))
    row = Rendered(head, [-100] * len(head), [0] * len(head), list(range(len(head))), [], "", "")
    wanted = logprobs_of(assistant, row, tail)
    assert assistant.score(context, continuation) == pytest.approx(wanted, abs=1e-5)
    pairs = assistant.score([context, "2 + 2"], [continuation, " = 4"])
    assert pairs[0] == pytest.approx(wanted, abs=1e-5)
    assert len(pairs[1]) == len(assistant.tokenizer.encode(" = 4"))


@pytest.mark.parametrize("pair", [("", "a"), ("a", ""), (["a"], ["b", "c"]), ("a", ["b"]), ([], [])])
def test_score_refuses_what_is_no_pair_of_texts(pair, assistant):
    with pytest.raises(UserError, match=r"empty|two strings"):
        assistant.score(*pair)


@pytest.mark.parametrize("begin", [(), (7,)])
@pytest.mark.parametrize("context", ["", "There is"])
def test_a_text_s_tokens_are_scored_after_its_context_or_after_what_begins_every_text(
    context, begin, assistant, monkeypatch, logprobs_of
):
    monkeypatch.setattr(assistant.tokenizer, "begin", begin)
    text = " a red circle in the middle."
    head, tail = ([*assistant.tokenizer.encode(one)] for one in (context, text))
    ids, first = [*begin, *head, *tail], max(1, len(begin) + len(head))
    row = Rendered(ids[:first], [-100] * first, [0] * first, list(range(first)), [], "", "")
    (found,) = assistant.score_texts([context], [text])
    assert found == pytest.approx(logprobs_of(assistant, row, ids[first:]), abs=1e-5)
    assert len(found) == len(tail) - (not context and not begin)


def test_a_text_over_the_context_is_scored_in_windows_each_token_once(assistant, logprobs_of):
    limit = assistant.renderer.context
    text = "There is a red circle in the middle and a blue square below. " * 40
    ids = list(assistant.tokenizer.encode(text))
    assert len(ids) > 2 * limit
    (found,) = assistant.score_texts([""], [text])
    assert len(found) == len(ids) - 1
    scored = found[:]
    for at in (1, limit - 1, limit, limit + limit // 2 - 1, limit + limit // 2, len(ids) - 1):
        before = ids[max(0, _stop(at, limit, len(ids)) - limit) : at]
        row = Rendered(before, [-100] * len(before), [0] * len(before), list(range(len(before))), [], "", "")
        assert scored[at - 1] == pytest.approx(logprobs_of(assistant, row, [ids[at]])[0], abs=1e-4)


def _stop(at: int, limit: int, length: int) -> int:
    """The end of the window in which a token is scored."""
    stop = limit
    while stop <= at:
        stop += limit // 2
    return min(stop, length)


def test_a_text_without_a_token_to_score_is_refused(assistant):
    with pytest.raises(UserError, match=r"prompt 1: .* none of which is scored"):
        assistant.score_texts(["", ""], ["Two words", "a"])

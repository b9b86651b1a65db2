import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.inputs.tokenizer import SPECIALS, Tokenizer

spelt_specials = st.lists(st.sampled_from([*SPECIALS, "<image>", "<|im_", "end|>", " ", "\n", "red"]), max_size=8).map(
    "".join
)


@given(text=st.one_of(st.text(), spelt_specials))
@example(text="<|image|>")
@example(text="a<|end|>b")
@example(text="\x00\r\n\t  \u2028 e\u0301 \U0001f9e0")
def test_any_text_comes_back_and_never_becomes_a_special_token(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, keep_special=True) == text
    assert not set(ids) & set(tokenizer.special_ids.values())


def test_markup_means_its_special_tokens_and_text_does_not(tokenizer):
    markup = tokenizer.encode_markup("<|im_start|>user\n")
    assert markup == (tokenizer.special("<|im_start|>"), *tokenizer.encode("user\n"))
    assert tokenizer.encode("<|im_start|>user\n") != markup


@given(number=st.integers(0, 10**12))
def test_every_digit_is_a_token_of_its_own(number, tokenizer):
    assert len(tokenizer.encode(str(number))) == len(str(number))


def test_a_tokenizer_saved_or_pickled_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = "How many red circles are there? <|end|> caf\u00e9"
    for copy in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.encode(text) == tokenizer.encode(text)
        assert copy.special_ids == tokenizer.special_ids
        assert len(copy) == len(tokenizer)


def test_training_is_repeatable_and_reaches_the_size_asked_for():
    texts = ["a red circle at the left.", "How many shapes are there?"] * 30
    first, second = (Tokenizer.train(texts, 290) for _ in range(2))
    assert first.core.to_str() == second.core.to_str()
    assert len(first) == 290


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size=100 is too small; the bytes and special tokens alone take 267"):
        Tokenizer.train(["a"], 100)


def test_a_missing_and_a_damaged_file_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_a_special_token_the_tokenizer_lacks_is_refused_with_those_it_has(tokenizer):
    with pytest.raises(UserError, match=r"no special token <\|video\|>; it has .*<\|image\|>"):
        tokenizer.special("<|video|>")

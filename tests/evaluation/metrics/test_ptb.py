import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmgpt.evaluation.metrics.ptb import cut, words


def test_flickr8k_has_the_words_of_the_official_tokenizer(data_packs):
    folder = data_packs / "caption_metrics" / "flickr8k_human0_vs_4"
    if not folder.is_dir():
        pytest.skip(f"no official words at {folder}")
    official = json.loads((folder / "ptb_tokenized_first200.json").read_text())
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / "references.json").read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    results = {str(row["image_id"]): row["caption"] for row in json.loads((folder / "results.json").read_text())}
    assert len(official["references"]) == len(official["results"]) == 200
    for key, expected in official["references"].items():
        assert [" ".join(words(caption)) for caption in references[key]] == expected
    for key, expected in official["results"].items():
        assert " ".join(words(results[key])) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # contractions
        ("The dog's ball isn't his", "the dog 's ball is n't his"),
        ("they're, we'll, I've, I'm, she'd", "they 're , we 'll , i 've , i 'm , she 'd"),
        ("He can't, won't and shouldn't've", "he ca n't , wo n't and should n't 've"),
        ("You cannot; we're gonna, gotta, wanna", "you can not ; we 're gon na , got ta , wan na"),
        ("Gimme! Lemme! 'Tis I", "gim me ! lem me ! 't is i"),
        ("DON\u2019T feed the cat\u2019s kittens", "do n't feed the cat 's kittens"),
        ("the dog 's owner does n't run", "the dog 's owner does n't run"),
        ("two boys' kites", "two boys ' kites"),
        ("canned gonnabe pecannot", "canned gonnabe pecannot"),
        # apostrophes, hyphens and slashes inside words
        ("five o'clock at O'Brien's, ma'am", "five o'clock at o'brien 's , ma'am"),
        ("rock 'n' roll of the '90s", "rock 'n' roll of the '90s"),
        ("a bird's-eye view of a jack-o'-lantern", "a bird's-eye view of a jack-o'-lantern"),
        ("a black-and-white T-shirt", "a black-and-white t-shirt"),
        ("short- and long-haired dogs", "short- and long-haired dogs"),
        ("black/white cats and/or dogs", "black/white cats and/or dogs"),
        ("a cat - a dog -- a cow\u2014a hen", "a cat - a dog -- a cow -- a hen"),
        # numbers
        ("1,000 men, 2.5 miles, 10:30, 1/2, 9/11.", "1,000 men , 2.5 miles , 10:30 , 1/2 , 9/11 ."),
        ("a 4x4, the 3rd, an mp3, a 6.5-foot pole", "a 4x4 , the 3rd , an mp3 , a 6.5-foot pole"),
        ("-5 or .5 of 1950's", "-5 or .5 of 1950 's"),
        ("$5.00, 50% off @ #8 *new* 1 + 1 = 2", "$ 5.00 , 50 % off @ # 8 * new * 1 + 1 = 2"),
        # dots
        ("Mr. Smith and Dr. Jones on Main St.", "mr. smith and dr. jones on main st."),
        ("in the U.S. at 5 p.m.", "in the u.s. at 5 p.m."),
        ("John F. Kennedy wears No. 5. No.", "john f. kennedy wears no. 5 . no ."),
        ("a sign with the letter P.", "a sign with the letter p ."),
        ("A dog runs.A cat sits.", "a dog runs . a cat sits ."),
        ("wait... what\u2026 dog..", "wait ... what ... dog ..."),
        ("www.example.com or example.com.", "www.example.com or example.com ."),
        # the rest
        ('"Stop," says ("a") sign', "`` stop , '' says -lrb- `` a '' -rrb- sign"),
        ("\u201cStop\u201d and \u2018go\u2019", "`` stop '' and ` go '"),
        ("[a] {b}", "-lsb- a -rsb- -lcb- b -rcb-"),
        ("AT&T, R&B, salt & pepper, men&women", "at&t , r&b , salt & pepper , men & women"),
        ("what?! a dog; a cat: a cow!", "what ?! a dog ; a cat : a cow !"),
        ("caf\u00e9 cafe\u0301 \u5317\u4eac \u20ac5", "caf\u00e9 cafe\u0301 \u5317\u4eac \u20ac 5"),
        ("two\nlines\r\n and\ta tab", "two lines and a tab"),
        (" \n", ""),
    ],
)
def test_a_caption_is_cut_by_the_conventions_of_the_treebank(caption, expected):
    assert cut(caption) == expected.split()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A dog, a cat; a cow: \"moo\" - 'moo' -- moo... Moo! Moo? `Moo`.",
            "a dog a cat a cow moo moo moo moo moo moo",
        ),
        ("a man (left) [right] {up}", "a man -lrb- left -rrb- -lsb- right -rsb- -lcb- up -rcb-"),
        ("What?! 5 % & more", "what ?! 5 % & more"),
        ("The dogs' bowl isn't Mr. T's.", "the dogs bowl is n't mr. t 's"),
    ],
)
def test_words_are_the_tokens_less_the_punctuation_that_caption_metrics_drop(caption, expected):
    assert words(caption) == expected.split()


@given(st.text())
@example("\u0130 '\u0301 n't 's .5 -.5 a. & \x00 \u2028 \ud800")
def test_any_text_has_tokens_none_of_them_empty_or_with_a_space(caption):
    tokens = cut(caption)
    assert all(token and not any(map(str.isspace, token)) for token in tokens)
    assert set(words(caption)) <= set(tokens)


@given(st.text("ant019'/&,;:!?$% "))
def test_tokens_put_together_are_the_text_less_its_spaces(caption):
    assert "".join(cut(caption)) == "".join(caption.split())


@given(st.lists(st.from_regex(r"[a-z]+(-[a-z]+)*", fullmatch=True)))
@example(["cannot", "gonna"])
def test_words_of_plain_words_are_themselves(plain):
    once = words(" ".join(plain))
    assert words(" ".join(once)) == once
    assert "".join(once) == "".join(plain)


def test_thousands_of_captions_are_cut_in_a_second():
    captions = [f"A man's dog number {n} isn't on the snow-covered hill, he said." for n in range(16_000)]
    started = time.process_time()
    for caption in captions:
        words(caption)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("piece", ["a.", "ab.", "a-", "a'", "n't", "1.", "a&", "'", ".", "a"])
def test_a_long_text_without_spaces_takes_no_longer_than_any_other(piece):
    started = time.process_time()
    assert cut(piece * 20_000)
    assert time.process_time() - started < 1

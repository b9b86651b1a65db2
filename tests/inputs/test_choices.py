import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.inputs.choices import checked_choices, parse_choices


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        (["yes,no"], ["yes", "no"]),
        (["yes, no"], ["yes", "no"]),
        ([" yes ,no "], ["yes", "no"]),
        (["yes,no,"], ["yes", "no"]),
        (["yes, no, "], ["yes", "no"]),
        (["yes\tor so,\u00a0no\n"], ["yes or so", "no"]),
        (['"yes, sir", no'], ["yes, sir", "no"]),
        (['no, "yes, sir"'], ["no", "yes, sir"]),
        (["yes, sir", " no "], ["yes, sir", "no"]),
        (['a 5" pipe, a 6" pipe'], ['a 5" pipe', 'a 6" pipe']),
        (["it's, isn't"], ["it's", "isn't"]),
        (["\u7ea2,\u84dd"], ["\u7ea2", "\u84dd"]),
        (["yes"], ["yes"]),  # one is refused by whoever chooses
    ],
)
def test_choices_are_read_without_the_spaces_around_them(given, choices):
    assert parse_choices(given) == choices


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["yes,,no"], "one is empty"),
        ([",yes"], "one is empty"),
        ([""], "one is empty"),
        ([" "], "one is empty"),
        (["yes", ""], "one is empty"),
        (["yes, yes"], "'yes' is there twice"),
        (["yes", " yes"], "'yes' is there twice"),
        (['"yes, no'], "between double quotes, or give --choices once for each"),
        (['"yes" sir, no'], "between double quotes"),
    ],
)
def test_choices_that_cannot_be_told_apart_are_refused(given, told):
    with pytest.raises(UserError, match=told):
        parse_choices(given)


def test_choices_in_python_are_scored_without_the_spaces_around_them():
    assert checked_choices((" yes", "no\n")) == ["yes", "no"]
    for choices, told in (([True, "no"], "True is no text"), (["a", " a"], "twice"), (["a", " "], "empty")):
        with pytest.raises(UserError, match=told):
            checked_choices(choices)


@given(st.lists(st.text("ab ,'", min_size=1).filter(str.strip), min_size=2, max_size=5, unique_by=str.strip))
def test_quoted_choices_come_back_whole(choices):
    assert parse_choices([" , ".join(f'"{choice}"' for choice in choices)]) == [
        " ".join(choice.split()) for choice in choices
    ] or len({" ".join(choice.split()) for choice in choices}) < len(choices)

"""What is missing, how a cell is written, which keys nobody reads."""

import datetime
import io
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.cells import cell_text, check_keys, is_missing, matches, well_formed
from mmgpt.datasets.template import EmptyCell, fields_of, fill

NAN = float("nan")
MISSING = [
    *(None, NAN, -NAN, np.float32(NAN), np.float16(NAN), np.array(NAN), np.datetime64("NaT"), np.timedelta64("NaT")),
    *(Decimal("NaN"), Decimal("sNaN"), "", " ", "\t\n", "\u00a0", "\u3000", "\ufeff", "\u200b", "\x00", b"", b"  "),
]


@pytest.mark.parametrize("cell", MISSING, ids=repr)
def test_what_shows_nothing_is_missing_and_cannot_be_written(cell):
    assert is_missing(cell)
    with pytest.raises(ValueError, match="is no value"):
        cell_text(cell)
    with pytest.raises(EmptyCell, match="a is empty"):
        fill("{a}", {"a": cell})
    assert fill("<{a}>", {"a": cell}, optional=["a"]) == "<>"
    assert matches(cell, [""])
    assert not matches(cell, ["nan", "None", "NaT", "null"])


def test_missing_values_of_pandas_and_pyarrow_are_missing():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    assert all(map(is_missing, (pandas.NA, pandas.NaT, pyarrow.scalar(None), pyarrow.scalar(NAN))))
    assert cell_text(pyarrow.scalar(2.0)) == "2"


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NA", "N/A", "False", "0"])
def test_words_that_name_nothing_are_words_all_the_same(word):
    assert not is_missing(word)
    assert cell_text(word) == word


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        *((2.0, "2"), (-0.0, "0"), (-3.0, "-3"), (0.1, "0.1"), (1e22, "1" + "0" * 22), (1e23, "1" + "0" * 23)),
        *((2**53 + 1, "9007199254740993"), (10**400, "1" + "0" * 400), (9007199254740993.0, "9007199254740992")),
        *((np.float32(2), "2"), (np.float32(0.1), "0.1"), (np.float16(3), "3"), (np.int8(-4), "-4")),
        *((np.uint64(2**64 - 1), "18446744073709551615"), (Decimal("2.00"), "2"), (Decimal("2.50"), "2.50")),
        *((True, "True"), (np.bool_(False), "False"), (datetime.date(2024, 1, 2), "2024-01-02"), ("2.0", "2.0")),
        *(("\ud83d", "\ufffd"), ("\ud83d\ude00", "\U0001f600"), (np.str_("x"), "x"), (Decimal("1E+3"), "1000")),
    ],
    ids=repr,
)
def test_a_cell_is_written_as_people_write_it(cell, expected):
    assert cell_text(cell) == expected


@pytest.mark.parametrize(
    "cell", [["x"], {"b": 1}, b"x", (1,), np.zeros(3), float("inf"), Decimal("-Infinity")], ids=str
)
def test_what_is_no_text_is_never_spelt_as_one(cell):
    assert not is_missing(cell)
    with pytest.raises(ValueError, match=r"no text|no number"):
        cell_text(cell)


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back_from_its_text(number):
    text = cell_text(number)
    assert float(text) == number
    assert not text.endswith(".0")


@given(text=st.text(st.characters()))
def test_every_text_can_be_written_to_a_file_once_it_is_well_formed(text):
    well_formed(text).encode()
    assert well_formed(text) == text or not is_encodable(text)


def is_encodable(text: str) -> bool:
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize(
    ("cell", "wanted", "expected"),
    [
        *(
            (2.0, ["2"], True),
            (2.0, ["2.0"], True),
            (2, ["2"], True),
            ("2.0", ["2"], False),
            (np.float32(5), ["5"], True),
        ),
        *((True, ["true"], True), (True, ["True"], True), (False, ["true"], False), ("true", ["True"], False)),
        *((None, ["None"], False), ("None", ["None"], True), ("", [""], True), (0, [""], False), (0, ["0"], True)),
    ],
)
def test_values_of_a_config_are_compared_with_cells_as_they_are_written(cell, wanted, expected):
    assert matches(cell, wanted) is expected


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{score:.1f}", {"score": 2.25}, "2.2"),
        ("{score:.1f}", {"score": 2}, "2.0"),
        ("{n:012d}", {"n": 42.0}, "000000000042"),
        ("{n:>4}|", {"n": "ab"}, "  ab|"),
        ("{{n}} {n}", {"n": 2.0}, "{n} 2"),
        ("{a.b} {c d}", {"a.b": 1.0, "c d": "x"}, "1 x"),
    ],
)
def test_templates_write_cells_and_keep_their_format_specs(template, row, expected):
    assert fill(template, row) == expected


@pytest.mark.parametrize("template", ["{q", "q}", "{q!r}", "{q:{width}}"])
def test_a_template_that_cannot_be_filled_is_refused_by_its_words(template):
    with pytest.raises(UserError, match="the template"):
        fields_of(template)


@given(keys=st.lists(st.text(st.characters()), unique=True, max_size=5), used=st.sets(st.integers(0, 4)))
def test_every_key_is_used_ignored_or_named_in_an_error_that_any_terminal_takes(keys, used):
    read = [key for number, key in enumerate(keys) if number in used]
    left = [key for key in keys if key not in read]
    check_keys(keys, keys, [], "rows.json")
    check_keys(keys, read, ["*"], "rows.json")
    check_keys(keys, read, left, "rows.json")  # a key with the signs of a glob is named as it is
    if left:
        with pytest.raises(UserError, match=r"rows.json: nothing reads") as told:
            check_keys(keys, read, [], "rows.json")
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8").write(str(told.value))


def test_the_error_of_a_key_says_what_is_near_and_what_to_write():
    with pytest.raises(UserError) as told:
        check_keys(["anser", "a b", "no"], ["answer"], [], "rows.csv")
    assert str(told.value) == (
        "rows.csv: nothing reads 'anser', 'a b', 'no'; did you mean answer? "
        'To leave them out, write ignore: [anser, "a b", "no"]'
    )

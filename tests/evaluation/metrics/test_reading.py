"""Answers as people and models write them: what is writing alone never changes a score."""

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, ScoredPrediction
from mmgpt.evaluation.metrics.answers import SCORES
from mmgpt.evaluation.metrics.letters import labels, letter_of, place_of
from mmgpt.evaluation.metrics.normalise import composed, plain, unmarked
from mmgpt.evaluation.metrics.yes_no import check_yes_no, says_yes

COLOURS = ("green", "red", "blue", "none of these")
DECORATIONS = {
    "space before": " {}",
    "line end": "{}\n",
    "no-break space": "\u00a0{}\u00a0",
    "zero width": "\u200b{}\ufeff",
    "final dot": "{}.",
    "ideographic dot": "{}\u3002",
    "bold": "**{}**",
    "bold with its dot": "**{}.**",
    "dot after bold": "**{}**.",
    "italic": "*{}*",
    "underscores": "__{}__",
    "both": "***{}***",
    "code": "`{}`",
    "double quotes": '"{}"',
    "single quotes": "'{}'",
    "curly quotes": "\u201c{}\u201d",
    "guillemets": "\u00ab{}\u00bb",
    "html": "<b>{}</b>",
    "box": "\\boxed{{{}}}",
    "heading": "# {}",
    "quoted bold": '"**{}**"',
}
LIKE_SENTENCES = ("rouge_l", "bleu_4", "cider", "wer", "cer", "wer_whisper_en", "wer_whisper_basic", "bleu", "chrf")
# By metric: a right answer; one with a letter that has two spellings in Unicode where the metric reads such.
RIGHT = {
    **dict.fromkeys(SCORES, "17 red caf\u00e9s"),
    "vqa_accuracy": "caf\u00e9 door",
    **dict.fromkeys(LIKE_SENTENCES, "a dog runs to the caf\u00e9 door"),
    "macro_f1": "caf\u00e9",
    "balanced_accuracy": "caf\u00e9",
    "choice_accuracy": "caf\u00e9",
    "choice_letter": "B",
    "pope_accuracy": "no",
    "pope_f1": "yes",
}
GRADED = {*LIKE_SENTENCES, "choice_accuracy", "choice_letter"}
NEEDS = {"wer": "jiwer", "cer": "jiwer", "bleu": "sacrebleu", "chrf": "sacrebleu"} | dict.fromkeys(
    ("wer_whisper_en", "wer_whisper_basic"), "whisper_normalizer"
)
CHOICES = ("dog", "caf\u00e9", "cow")


@pytest.mark.parametrize(
    "thought", ["<think>No. A or C? 3 cats.</think>", "Is it A?\n</think>\n\n", "<THINKING>\nno</THINKING> "]
)
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_thought_before_an_answer_is_no_part_of_it(name, thought):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    right = RIGHT[name]
    wanted = METRICS[name].value(answered(name, right, right))
    assert METRICS[name].value(answered(name, thought + right, right)) == wanted
    assert (
        METRICS[name].value(answered(name, f"<think>{right}</think>no dog", right)) != wanted or name == "pope_accuracy"
    )


def answered(name, said, right):
    choices = CHOICES if name.startswith("choice") else ()
    others = [ScoredPrediction("cow", ("cow",), choices), ScoredPrediction("a cat", ("dog",), choices)]
    if name.startswith("pope"):
        others = [ScoredPrediction("yes", ("yes",)), ScoredPrediction("yes", ("no",))]
    if name == "choice_letter":
        others = []
    return [ScoredPrediction(said, (right,), choices), *others]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(DECORATIONS.keys() - {"bold with its dot", "dot after bold"})),
    st.sampled_from(sorted(DECORATIONS)),
    st.sampled_from(["NFC", "NFD"]),
)
@pytest.mark.parametrize("name", RIGHT)
def test_decorating_a_right_answer_or_its_reference_never_changes_the_score(name, inner, outer, form):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    assume("*" not in DECORATIONS[inner] or outer != "bold with its dot")  # "****17**.**" is bold to nobody
    right = said = RIGHT[name]
    for decoration in (inner, outer):
        said = DECORATIONS[decoration].format(said)
    said = unicodedata.normalize(form, said)
    metric = METRICS[name]
    wanted = metric.value(answered(name, right, right))
    assert metric.value(answered(name, said, right)) == pytest.approx(wanted, abs=1e-12), said
    if name not in GRADED:  # whose figures depend on the length of the reference
        assert metric.value(answered(name, right, said)) == pytest.approx(wanted, abs=1e-12), said


@given(st.text())
def test_reading_a_text_twice_gives_the_same(text):
    for reading in (composed, unmarked, plain):
        assert reading(reading(text)) == reading(text)
    assert bool(plain(text)) == bool(composed(text)) or not unmarked(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2**3**2", "232"),
        ("yes", "yeah"),
        ("3 * 4 * 5", "3  4  5"),
        ("Yes", "yes"),
        ("it's", "its"),
        ("a red dog", "a red  cat"),
        ("...", ""),
        ('"a" or "b"', "a or b"),
        ("$5 and $6", "5 and 6"),
        ("-3", "3"),
        (".5", "5"),
        ("x_y_z", "xyz"),
    ],
)
def test_what_is_answer_and_not_writing_counts(one, other):
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: **B**", "B"),
        ("B\n\nBecause it is red.", "B"),
        ("B is correct", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("Option B", "B"),
        ("option b", "B"),
        ("b", "B"),
        ("`B`", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("So \\boxed{B}, for A is green", "B"),
        ("<answer>B</answer>", "B"),
        ("B: red", "B"),
        ("B - red", "B"),
        ("b) red", "B"),
        ("I think it's B because A is wrong", "B"),
        ("I choose option b.", "B"),
        ("As a matter of fact, B", "B"),
        ("The answer is not A but B", "B"),
        ("A and C are wrong, so B", "B"),
        ("It can't be A or C, it must be B", "B"),
        ("A shows green. B shows red. Therefore, the answer is (B).", "B"),
        ("The correct option is B because option A shows a cow", "B"),
        ("\u7b54\u6848\u662fB", "B"),
        ("\u7b54\u6848\u662f**B**\u3002", "B"),
        ("\u9009B", "B"),
        ("\uff22", "B"),
        ("\uff08\uff22\uff09", "B"),
        ("'B'", "B"),
        ("The answer is 'B'.", "B"),
        ("### Answer\nB", "B"),
        ("Red", "B"),
        ("It is red.", "B"),
        ("**Answer:** red", "B"),
        ("None of these.", "D"),
        ("A is green", "A"),
        ("Answer: a", "A"),
        ("A or B", None),
        ("A, B", None),
        ("A/B", None),
        ("Both A and C", None),
        ("The answer is A or B", None),
        ("None of the above", None),
        ("A dog", None),
        ("The answer is a dog", None),
        ("I do not know", None),
        ("A is wrong", None),
        ("E", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_letter_of_an_answer_is_read_by_rule(text, letter):
    assert letter_of(text, COLOURS) == letter


def test_more_choices_than_letters_have_two():
    choices = [f"thing {number}" for number in range(30)]
    assert labels(28)[-2:] == ["AA", "AB"]
    assert [letter_of(text, choices) for text in ("AB", "thing 28", "The answer is (AC).", "Z", "AE")] == [
        "AB",
        "AC",
        "AC",
        "Z",
        None,
    ]


def test_the_words_of_a_choice_find_it_if_they_find_one():
    assert place_of(" Yes. ", ("yes", "no")) == 0
    assert place_of("he left", ("He left.", "He left?")) == 0
    assert place_of("He left.", ("He left", "He left.")) == 1  # as it stands
    assert place_of('"He left"!', ("He left", "He left.")) is None
    assert place_of("A dog", ("the dog", "a cat")) == 0
    spaced = ScoredPrediction("yes", (" yes",), ("yes", "no"), (-1.0, -2.0))
    assert METRICS["choice_accuracy"].value([spaced]) == METRICS["recall@1"].value([spaced]) == 1.0


def test_a_right_answer_that_is_no_choice_is_refused_with_its_value():
    check = METRICS["choice_letter"].check
    check(ScoredPrediction("", ("cat",), ("dog", "cat")))
    with pytest.raises(UserError, match="'cow' is not a letter of its 2 choices nor the words of one"):
        check(ScoredPrediction("", ("cow",), ("dog", "cat")))


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [
        ("Yes, there is a dog.", True),
        ("No.", False),
        ("**No**", False),
        ("**No.** There is a cat", False),
        ("There is no dog", False),
        ("There isn\u2019t a dog.", False),
        ("not yes", False),
        ("Yes and no", False),
        ("Yes, it is not small", True),
        ("nope", False),
        ("yeah", True),
        ("\n\nno", False),
        ("No\nYes", False),
        ("Yes! No doubt", True),
        ('"no"', False),
        ("false", False),
        ("0", False),
        ("True", True),
        ("\u4e0d\u662f", False),
        ("\u662f\u7684", True),
        ("maybe", True),
        ("", True),
    ],
)
def test_yes_and_no_are_read_by_rule(text, is_yes):
    assert says_yes(text) is is_yes


@pytest.mark.parametrize(
    ("yes", "no"), [("Yes.", "No."), (" yes", " no"), ("YES", "NO"), ("True", "False"), ("1", "0"), ("**Yes**", "no\n")]
)
def test_right_answers_of_yes_and_no_are_read_as_predictions_are(yes, no):
    some = [
        ScoredPrediction("yes", (yes,)),
        ScoredPrediction("no", (no,)),
        ScoredPrediction("No, it is red", (no,)),
        ScoredPrediction("no", (yes,)),
    ]
    for one in some:
        check_yes_no(one)
    assert METRICS["pope_accuracy"].value(some) == 3 / 4
    assert METRICS["pope_precision"].value(some) == 1.0
    assert METRICS["pope_recall"].value(some) == 1 / 2
    assert METRICS["pope_yes_ratio"].value(some) == 1 / 4


@pytest.mark.parametrize("value", ["banana", "2", "", "a dog"])
def test_a_right_answer_that_is_neither_yes_nor_no_is_refused_with_its_value(value):
    with pytest.raises(UserError, match=f"the right answer '{value}' is neither yes nor no"):
        check_yes_no(ScoredPrediction("yes", (value,)))


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("1,000", "1000", 1),
        ("1\u2009000", "1000", 1),
        ("1 000 000", "1000000", 1),
        ("5%", "0.05", 1),
        ("5 percent", "0.05", 1),
        ("5%", "5", 0),  # a percentage is its hundredth, as in the official code
        ("$5", "5", 1),
        ("5.0", "5", 1),
        ("**5**", "5.", 1),
        ("\u22123", "-3", 1),
        ("-$3", "-3", 1),
        ("-3", "3", 0),
        ("\uff15", "5", 1),
        ("five", "5", 0),  # words are no numbers, as in the official code
        ("3 apples", "3", 0),
        ("nan", "nan", 1),
        ("nan", "5", 0),
        ("inf", "5", 0),
        ("1_000", "1000", 0),
        ("0.0", "0", 1),
        ("", "5", 0),
        ("", "", 1),
        ("France.", "france", 1),
    ],
)
def test_relaxed_accuracy_reads_numbers_as_people_write_them(said, right, score):
    assert SCORES["relaxed_accuracy"](said, (right,)) == score


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("**1,234**", "#### 1234", 1),
        ("The sum is 12 \u20ac.", "12", 1),
        ("= \u22125", "-5", 1),
        ("1\u202f000", "1000", 1),
        ("in 2020, 100", "100", 1),
        ("\\boxed{18}", "18", 1),
        ("5 m\u00b2", "5", 1),
        ("18.00", "18", 1),
        ("\uff11\uff18", "18", 1),
        ("", "18", 0),
    ],
)
def test_the_last_number_is_found_however_it_is_written(said, right, score):
    assert SCORES["last_number"](said, (right,)) == score


def test_labels_are_one_label_but_where_right_ones_differ_by_case_alone():
    pets = [
        ScoredPrediction("Dog", ("dog ",)),
        ScoredPrediction("cat.", ("Cat",)),
        ScoredPrediction("**cat**", ("dog",)),
    ]
    assert METRICS["balanced_accuracy"].value(pets) == pytest.approx((1 / 2 + 1) / 2)
    letters = [ScoredPrediction("a", ("a",)), ScoredPrediction("a", ("A",))]
    assert METRICS["balanced_accuracy"].value(letters) == 0.5


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in {"choice_letter", "pope_accuracy", "pope_f1"}])
def test_an_empty_prediction_has_the_worst_score(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    metric = METRICS[name]
    worst = 0.0 if metric.higher_is_better else 1.0
    choices = CHOICES if name.startswith("choice") else ()
    assert metric.value([ScoredPrediction("", (RIGHT[name],), choices)] * 2) == pytest.approx(worst, abs=1e-6)


def test_a_long_answer_full_of_marks_is_read_in_no_time():
    for piece in ("*a ", "_a ", "`", "**", "<b>", "A or B ", "not ", "$", '"', "(A) "):
        text = piece * 3000
        assert plain(text) is not None
        letter_of(text, COLOURS)
        says_yes(text)

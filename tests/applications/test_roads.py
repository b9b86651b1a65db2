"""The roads to a figure agree: the evaluation, its samples scored again, `score`, `compare`, the pages."""

import json

import pytest

from mmgpt.applications.pipeline import _told
from mmgpt.datasets.sample import Message
from mmgpt.evaluation import compare as comparing
from mmgpt.evaluation.compare import compare
from mmgpt.evaluation.metrics import METRICS
from mmgpt.evaluation.official_scores import score_evaluation
from mmgpt.evaluation.predict import Prediction
from mmgpt.evaluation.results import Evaluation, answered, intervals, rescore, sample_row
from mmgpt.evaluation.tasks.few_shot import FewShotPrompt
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.reports.gallery import is_right
from mmgpt.reports.leaderboard import write_leaderboard
from mmgpt.reports.run_report import write_report

NEEDS = {"wer": "jiwer", "cer": "jiwer", "bleu": "sacrebleu", "chrf": "sacrebleu"}
CHOICES = ("yes", "no", "a dog runs in the snow", "two dogs play", "12 men ride", "a cat", "one cow")
PAIRS = [
    ("yes", "Yes."),
    ("**no**", "no"),
    ("a dog runs", "a dog runs in the snow"),
    ("two dogs\u2028play", "two dogs play"),
]
PAIRS += [("13 men ride", "12 men ride"), ("no", "yes"), ("a cat.", "a cat"), ("", "one cow")]


def evaluation(name, worse=0):
    """Answers in the form of every metric, as `evaluate` keeps them; the last `worse` ones are wrong."""
    items, answers = [], []
    for number, (said, right) in enumerate(PAIRS * 3):
        said = "two cats" if number >= 3 * len(PAIRS) - worse else said
        items.append(TaskItem(f"k{number}", (Message.of("user", f"What {number}?"),), right, (right,), CHOICES))
        answers.append(Prediction(said, tuple(-0.1 - ((number + place * 3) % 7) / 3 for place in range(7))))
    metric = METRICS[name]
    statistics_NS = metric.sample_stats([answered(*pair) for pair in zip(items, answers, strict=True)])
    each = metric.per_sample(statistics_NS)
    rows = [
        sample_row(item, FewShotPrompt(item.messages), answer, {name: score})
        for item, answer, score in zip(items, answers, each, strict=True)
    ]
    blind = {name: {"value": 0.25}, "text_only": {}}
    result = {"task": "pets", "version": 1, "shots": 0, "n": len(rows), "seconds": 1.0, "blind": blind, "groups": {}}
    result |= {
        "metrics": intervals({name: statistics_NS}),
        "prompt_sha256": "0" * 64,
        "samples": "samples-pets-0.jsonl",
    }
    return Evaluation("model", {}, [result], {"pets-0": rows})


@pytest.mark.parametrize("name", METRICS)
def test_every_road_gives_the_same_figure_written_the_same(name, tmp_path, monkeypatch, mmgpt_says):
    pytest.importorskip("whisper_normalizer" if "whisper" in name else NEEDS.get(name, "numpy"))
    monkeypatch.setattr(comparing, "PERMUTATIONS", 19)
    metric, found = METRICS[name], evaluation(name)
    value = found.value("pets", name)
    folder, other = tmp_path / "run" / "eval", tmp_path / "other"
    found.save(folder)
    evaluation(name, worse=4).save(other)
    (folder.parent / "config.yaml").write_text("name: pets\nstages: []\n")
    assert rescore(folder / "samples-pets-0.jsonl")[name] == found.results[0]["metrics"][name]
    assert score_evaluation(folder)["pets-0"][name]["value"] == value
    (row,) = compare(folder, other).rows
    assert row.a == pytest.approx(value, abs=1e-12)
    if row.better:
        assert row.better == ("a" if metric.gain(row.a, row.b) > 0 else "b")
    shown = metric.written(value)
    assert f"{name} {shown} " in _told(found)["pets, 0 shots"]
    report = write_report(folder.parent).read_text()
    assert f"<b>{shown}{metric.unit}</b>" in report
    assert f"<b>{shown}</b>" in write_leaderboard([folder], tmp_path / "board.html").read_text()
    if name in ("wer", "cider", "perplexity", "token_f1"):
        assert f" {shown} \u00b1" in mmgpt_says("score", "evaluation", folder)[1]
        assert f" {shown} " in mmgpt_says("compare", folder, other)[1]
    judged = [is_right(sample) for sample in found.samples["pets-0"]]
    assert f"{judged.count(False)} of {len(judged)} wrong" in report or None in judged


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("exact_match", 0.5, "50.0 %"),
        ("wer", 1.25, "125.0 %"),
        ("bleu", 0.253, "25.3 %"),
        ("bleu_4", 0.253, "25.3 %"),
        ("perplexity", 25.0, "25"),
        ("bits_per_byte", 1.2345, "1.234"),
        ("cider", 0.3529, "0.3529"),
        ("ece", 0.03, "3.0 %"),
    ],
)
def test_a_figure_is_written_in_its_own_unit(name, value, written):
    assert METRICS[name].written(value) + METRICS[name].unit == written


@pytest.mark.parametrize(
    ("name", "score", "verdict"),
    [
        ("exact_match", 1.0, True),
        ("exact_match", 0.0, False),
        ("token_f1", 0.5, True),
        ("wer", 0.0, True),
        ("wer", 0.2, False),
        ("cer", 0.0, True),
        ("perplexity", 2.0, None),
        ("rouge_l", 0.36, None),
        ("bleu", 0.2, None),
        ("cider", 0.1, None),
        ("pope_f1", 0.0, None),
        ("of another version", 0.9, True),
    ],
)
def test_an_answer_is_judged_by_what_its_metric_says(name, score, verdict):
    assert is_right({"scores": {name: score}}) is verdict


def test_a_lower_error_rate_than_the_guess_is_told_as_better(tmp_path):
    pytest.importorskip("jiwer")
    found = evaluation("wer")
    low, high = found.results[0]["metrics"]["wer"]["ci95"]
    for guess, told in ((high + 0.5, "from the media"), (max(0.0, low - 0.1), "not clearly above guessing")):
        found.results[0]["blind"] = {"wer": {"value": guess}}
        folder = tmp_path / told
        found.save(folder / "eval")
        (folder / "config.yaml").write_text("name: pets\nstages: []\n")
        assert told in write_report(folder).read_text()


@pytest.mark.parametrize("keys", [lambda n: n, float, lambda n: f" {n} "], ids=["int", "float", "spaces"])
def test_the_type_of_a_samples_key_is_no_matter(keys, tmp_path):
    found = evaluation("exact_match")
    for number, row in enumerate(found.samples["pets-0"]):
        row["key"] = str(number)
    found.save(tmp_path / "a")
    for number, row in enumerate(found.samples["pets-0"]):
        row["key"] = keys(number)
    found.save(tmp_path / "b")
    (row,) = compare(tmp_path / "a", tmp_path / "b").rows
    assert (row.n, row.only_a, row.only_b, row.difference) == (24, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prediction": None}, "k1: its prediction is None, not a text"),
        ({"prediction": 7}, "k1: its prediction is 7, not a text"),
        ({"references": "yes"}, "k1: its references are 'yes', not a list"),
        ({"references": []}, "k1: its references are"),
        ({"key": "k0"}, "the key 'k0' is there twice"),
        ({"key": None}, "no sample with a key"),
        ({"key": True}, "no sample with a key"),
    ],
)
def test_a_samples_row_that_cannot_be_scored_is_named(change, told, tmp_path, mmgpt_says):
    found = evaluation("exact_match")
    found.samples["pets-0"][1] |= change
    found.save(tmp_path)
    code, _, error = mmgpt_says("score", "evaluation", tmp_path)
    assert code == 2
    assert told in error


def test_an_evaluation_is_scored_by_other_metrics_and_a_wrong_name_is_refused(tmp_path, mmgpt_says):
    evaluation("exact_match").save(tmp_path)
    code, said, _ = mmgpt_says("score", "evaluation", tmp_path, "--metrics", "anls, token_f1", "--json")
    assert code == 0
    assert json.loads(said)["pets-0"].keys() == {"anls", "token_f1"}
    assert "exact_match" in mmgpt_says("score", "evaluation", tmp_path, "--metrics", "exact_macth")[2]
    assert mmgpt_says("score", "evaluation", tmp_path / "none")[0] == 2

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmgpt.config import UserError
from mmgpt.evaluation.compare import compare, mcnemar, paired_test
from mmgpt.evaluation.metrics import METRICS, Metric
from mmgpt.evaluation.run import evaluate
from mmgpt.reports.leaderboard import write_leaderboard

PROMPT = [{"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}]


def write(
    folder: Path, answers: dict[str, str], *, task="colours", shots=0, metrics=("exact_match",), **changes
) -> Path:
    """An evaluation in which `red` is always right."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"key": key, "messages": PROMPT, "exemplars": [], "prediction": said, "reference": "red", "references": ["red"]}
        for key, said in answers.items()
    ]
    for row in rows:
        row["messages"] = changes.get("messages", PROMPT)
        row["scores"] = {name: float(row["prediction"] == "red") for name in metrics}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples-{task}-{shots}.jsonl").write_text(lines)
    result = {"task": task, "version": 1, "shots": shots, "n": len(rows), "blind": None, "prompt_sha256": "0" * 64}
    result |= {"metrics": {name: {"value": 0.5} for name in metrics}} | {
        k: v for k, v in changes.items() if k in result
    }
    file = folder / "results.json"
    results = json.loads(file.read_text())["results"] if file.is_file() else []
    file.write_text(json.dumps({"model": f"runs/{folder.name}", "environment": {}, "results": [*results, result]}))
    return folder


def said(right: str) -> dict[str, str]:
    """Answers by key: `1` for a right one, `0` for a wrong one, blank for a sample that is not there."""
    return {f"k{n}": "red" if mark == "1" else "blue" for n, mark in enumerate(right) if mark != " "}


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 2 * (1 + 10) / 1024), (10, 30, 0.0022214338)],
)
def test_mcnemars_p_value_is_that_of_the_binomial_test(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-6)


def test_mcnemar_of_very_many_pairs_agrees_with_the_exact_one():
    exact = 2 * sum(math.comb(4000, wins) for wins in range(1941)) / 2**4000
    assert mcnemar(1940, 2060) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(1941, 2061) == pytest.approx(exact, rel=0.02)  # by the normal curve


def test_samples_of_both_are_compared_by_key_and_the_rest_is_counted(tmp_path):
    a = write(tmp_path / "a", said("110010  "))
    b = write(tmp_path / "b", dict(reversed(said(" 1111111").items())))
    (row,) = compare(a, b).rows
    assert (row.n, row.only_a, row.only_b) == (5, 1, 2)
    assert (row.a, row.b, row.difference) == pytest.approx((2 / 5, 1.0, 3 / 5))
    assert (row.test, row.p_value, row.better) == ("mcnemar", 0.25, None)
    low, high = row.ci95
    assert 0 <= low < 3 / 5 < high <= 1


def test_the_better_one_is_named_where_chance_is_unlikely(tmp_path):
    a, b = write(tmp_path / "a", said("0" * 20 + "1" * 20)), write(tmp_path / "b", said("1" * 39 + "0"))
    (there,), (back,) = compare(a, b).rows, compare(b, a).rows
    assert (there.better, back.better) == ("b", "a")
    assert there.p_value == back.p_value == pytest.approx(2 * 22 / 2**21)
    assert there.ci95[0] > 0
    assert back.difference == -there.difference
    (same,) = compare(a, a).rows
    assert (same.difference, same.ci95, same.p_value, same.better) == (0.0, [0.0, 0.0], 1.0, None)


def test_the_interval_knows_that_samples_are_paired():
    rng = np.random.default_rng(0)
    hard_N1 = rng.normal(size=(400, 1)) * 5
    metric = Metric(lambda some: np.zeros((len(some), 1)))
    found = paired_test(metric, hard_N1, hard_N1 + 0.2 + 0.5 * rng.normal(size=(400, 1)))
    low, high = found["ci95"]
    assert 0.1 < low < 0.2 < high < 0.3  # alone, each mean is known to 0.5 only
    assert (found["test"], found["better"]) == ("permutation", "b")
    assert found["p_value"] == pytest.approx(1 / 10_000)


def test_the_permutation_test_of_a_ratio_agrees_with_all_permutations():
    ratio = Metric(lambda some: np.zeros((len(some), 2)), lambda sums, count: sums[0] / sums[1], higher_is_better=False)
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 30, (8, 1)).astype(float)
    a_NS, b_NS = (np.concatenate([rng.integers(0, 5, (8, 1)) + more, lengths], axis=1) for more in (0, 1.5))
    found = paired_test(ratio, a_NS, b_NS)
    gap = abs(found["difference"])
    far = 0
    for number in range(2**8):
        swap = np.array([number >> bit & 1 for bit in range(8)], dtype=bool)[:, None]
        one, other = np.where(swap, b_NS, a_NS).sum(axis=0), np.where(swap, a_NS, b_NS).sum(axis=0)
        far += abs(one[0] / one[1] - other[0] / other[1]) >= gap - 1e-12
    assert found["p_value"] == pytest.approx(far / 2**8, abs=0.015)
    assert found["better"] == ("a" if found["p_value"] < 0.05 else None)
    assert found["b"] > found["a"]


def test_random_answers_differ_by_chance_as_often_as_the_p_value_says():
    rng = np.random.default_rng(2)
    metric = METRICS["exact_match"]
    draws = [rng.random((2, 60, 1)).round(2) for _ in range(40)]
    low = sum(paired_test(metric, a, b)["p_value"] < 0.25 for a, b in draws)
    assert 4 <= low <= 16  # of 40; ten are expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 2}, r"colours: version 1 in .*a, 2 in .*b; evaluate both with one version"),
        (
            {"prompt_sha256": "f" * 64, "messages": [{"role": "user", "content": "Colour?"}]},
            r"colours, 0 shots: 4 of 4 prompts differ, the first of them k0; prompt_sha256 0{12} in .*f{12} in",
        ),
        (
            {"task": "shapes"},
            r"no task with the same shots and metric in common; colours, 0 shots: only in .*a; shapes",
        ),
        ({"metrics": ("choice_accuracy",)}, "no task with the same shots and metric in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, told, tmp_path):
    a, b = write(tmp_path / "a", said("1100")), write(tmp_path / "b", said("1010"), **changes)
    with pytest.raises(UserError, match=told):
        compare(a, b)


def test_other_samples_with_the_same_prompts_are_no_other_prompts(tmp_path):
    a = write(tmp_path / "a", said("1100"))
    b = write(tmp_path / "b", said("11000"), prompt_sha256="f" * 64)
    assert compare(a, b).rows[0].only_b == 1


def test_no_common_sample_and_damaged_files_are_refused(tmp_path):
    a, b = write(tmp_path / "a", said("11")), write(tmp_path / "b", said("  11"))
    with pytest.raises(UserError, match="no sample is in both"):
        compare(a, b)
    file = b / "samples-colours-0.jsonl"
    file.write_text(file.read_text() * 2)
    with pytest.raises(UserError, match=r"samples-colours-0.jsonl:3: the key 'k2' is there twice"):
        compare(a, b)
    file.write_text('{"key": "k0"')
    with pytest.raises(UserError, match=r"jsonl:1: no sample with a key"):
        compare(a, b)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        compare(a, b)
    (b / "results.json").write_text("{}")
    with pytest.raises(UserError, match="not the results of an evaluation"):
        compare(a, b)
    with pytest.raises(UserError, match=r"c: no results.json; give the folder that `mmgpt eval --out` wrote"):
        compare(a, tmp_path / "c")


def test_the_command_prints_a_table_or_json(tmp_path, mmgpt_says):
    a, b = write(tmp_path / "a", said("0" * 20 + "1")), write(tmp_path / "b", said("1" * 20))
    write(a, said("1"), task="shapes", shots=4)
    code, told, _ = mmgpt_says("compare", a, b)
    assert code == 0
    line = next(line for line in told.splitlines() if line.startswith(" colours"))
    assert line.split() == [
        "colours",
        "0",
        "20",
        "exact_match",
        "0.0",
        "100.0",
        "+100.0",
        "+100.0",
        "to",
        "+100.0",
        "2e-06",
    ]
    assert "colours, 0 shots: 1 samples only in A, 0 only in B; left out" in told
    assert "shapes, 4 shots: only in" in told
    code, told, _ = mmgpt_says("compare", a, b, "--json")
    found = json.loads(told)
    assert (found["a"], found["b"]) == ("runs/a", "runs/b")
    assert found["rows"][0]["p_value"] == pytest.approx(2 / 2**20)
    code, _, told = mmgpt_says("compare", a, tmp_path / "none")
    assert code == 2
    assert "no results.json" in told


def test_an_evaluation_compares_with_one_of_fewer_questions(answerer, easy_vqa, tmp_path):
    from mmgpt.evaluation.run import evaluate

    evaluate(answerer, ["easy_vqa"], data_root=easy_vqa, out=tmp_path / "a")
    evaluate(answerer, ["easy_vqa"], limit=8, data_root=easy_vqa, out=tmp_path / "b")
    (row,) = compare(tmp_path / "a", tmp_path / "b").rows
    assert (row.n, row.only_a, row.only_b, row.difference) == (8, 13, 0, 0.0)
    found = evaluate(answerer, ["easy_vqa"], limit=8, data_root=easy_vqa).value("easy_vqa")
    assert row.a == found  # over the eight that both have


def test_evaluations_of_several_seeds_are_compared_and_shown_seed_by_seed(answerer, easy_vqa, tmp_path):
    for name in ("a", "b"):
        evaluate(answerer, ["easy_vqa"], shots=[0, 1], seeds=[0, 1], data_root=easy_vqa, out=tmp_path / name)
    rows = compare(tmp_path / "a", tmp_path / "b").rows
    assert [row.shots for row in rows] == [0, "1-seed0", "1-seed1"]
    assert all(row.difference == 0 for row in rows)
    page = write_leaderboard([tmp_path / "a", tmp_path / "b"], tmp_path / "board.html")
    assert "1-seed1" in page.read_text()

"""Two evaluations compared on the samples that both have: the difference, its interval, and a paired test.

The statistics of a sample under A and under B stay together: when samples are drawn again (bootstrap), and when the
labels A and B are exchanged by chance (permutation test; for scores of 0 and 1 McNemar's in its exact form).

Shape letters: N samples, S statistics of a sample, P permutations.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import METRICS, Floats, Metric
from mmgpt.evaluation.metrics.intervals import percentiles, resampled_sums
from mmgpt.evaluation.results import Folder, Record, answered_of, open_folder

PERMUTATIONS = 9999
MAX_NUMBERS_PER_CHUNK = 1 << 22  # numbers
NORMAL_APPROXIMATION_FROM = 4000  # discordant pairs, with which the normal curve is as good


@dataclass(frozen=True)
class Compared:
    """One metric of one task under A and under B.

    Attributes:
        n: samples that both have; the values are over these.
        only_a, only_b: samples that one alone has, which count for nothing here.
        difference: b - a, with its 95 % interval of a paired bootstrap.
        p_value: how often chance alone gives a difference at least as large.
        test: `mcnemar` or `permutation`.
        better: `a` or `b` where p < 0.05, else None.
    """

    task: str
    shots: Any
    metric: str
    n: int
    only_a: int
    only_b: int
    a: float
    b: float
    difference: float
    ci95: list[float]
    p_value: float
    test: str
    better: str | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `unmatched` names what only one evaluation has."""

    a: str
    b: str
    rows: list[Compared]
    unmatched: list[str]

    def to_dict(self) -> Record:
        """The comparison as JSON has it."""
        return asdict(self)


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two folders of evaluations, on the tasks, shots, metrics and samples that both have.

    Raises:
        UserError: if a folder holds no results, both have nothing in common, or a task's versions or prompts differ.
    """
    first, second = open_folder(a), open_folder(b)
    rows: list[Compared] = []
    unmatched: list[str] = []
    for one in first.results:
        other = second.result(one["task"], one["shots"])
        if other is None:
            unmatched.append(f"{one['task']}, {one['shots']} shots: only in {a}")
            continue
        common = [metric for metric in one["metrics"] if metric in other["metrics"]]
        rows += _compared(first, second, one, other, common)
        odd = sorted({*one["metrics"]} ^ {*other["metrics"]})
        unmatched += [f"{one['task']}, {metric}: only in {a if metric in one['metrics'] else b}" for metric in odd]
    missing = [one for one in second.results if first.result(one["task"], one["shots"]) is None]
    unmatched += [f"{one['task']}, {one['shots']} shots: only in {b}" for one in missing]
    if not rows:
        raise UserError(f"{a} and {b} have no task with the same shots and metric in common; " + "; ".join(unmatched))
    return Comparison(first.model, second.model, rows, unmatched)


def _compared(first: Folder, second: Folder, one: Record, other: Record, metrics: Sequence[str]) -> list[Compared]:
    task, shots = one["task"], one["shots"]
    if one["version"] != other["version"]:
        raise UserError(
            f"{task}: version {one['version']} in {first.path}, {other['version']} in {second.path}; "
            "evaluate both with one version"
        )
    a, b = first.samples(task, shots), second.samples(task, shots)
    keys = [key for key in a if key in b]
    if not keys:
        raise UserError(f"{task}, {shots} shots: no sample is in both {first.path} and {second.path}")
    _check_prompts(first, second, one, other, [(a[key], b[key]) for key in keys])
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UserError(f"{task}: metric {unknown[0]!r} is not known to this mmgpt; known: {', '.join(METRICS)}")
    answers_a, answers_b = ([answered_of(side[key]) for key in keys] for side in (a, b))
    counts: Record = {"n": len(keys), "only_a": len(a) - len(keys), "only_b": len(b) - len(keys)}
    found = []
    for name in metrics:
        metric = METRICS[name]
        test = paired_test(metric, metric.sample_stats(answers_a), metric.sample_stats(answers_b))
        found.append(Compared(task, shots, name, **counts, **test))
    return found


def _check_prompts(
    first: Folder, second: Folder, one: Record, other: Record, pairs: Sequence[tuple[Record, Record]]
) -> None:
    """Equal hashes say that all is equal; else the samples do, for one evaluation may have more of them."""
    if one["prompt_sha256"] == other["prompt_sha256"]:
        return
    differ = [a["key"] for a, b in pairs if any(a.get(name) != b.get(name) for name in ("messages", "choices"))]
    if differ:
        raise UserError(
            f"{one['task']}, {one['shots']} shots: {len(differ)} of {len(pairs)} prompts differ, the first of them "
            f"{differ[0]}; prompt_sha256 {one['prompt_sha256'][:12]} in {first.path}, {other['prompt_sha256'][:12]} in "
            f"{second.path}; evaluate both with the same prompts, exemplars and seed"
        )


def paired_test(metric: Metric, a_NS: Floats, b_NS: Floats) -> Record:
    """Both figures, their difference b - a, its 95 % interval and p-value.

    Args:
        metric: whose statistics these are.
        a_NS, b_NS: of the same samples under A and B.
    """
    count, size = a_NS.shape
    a, b = (metric.compute(side_NS.sum(axis=0), count) for side_NS in (a_NS, b_NS))
    sums_R2S = resampled_sums(np.concatenate([a_NS, b_NS], axis=1))
    drawn_R = [metric.compute(sums[size:], count) - metric.compute(sums[:size], count) for sums in sums_R2S]
    is_binary = metric.is_mean_of_scores and size == 1 and bool(np.isin([a_NS, b_NS], (0, 1)).all())
    if is_binary:
        test, p_value = "mcnemar", mcnemar(int((a_NS > b_NS).sum()), int((a_NS < b_NS).sum()))
    else:
        test, p_value = "permutation", _permutation(metric, a_NS, b_NS, abs(b - a))
    better = None
    if p_value < 0.05:
        better = "b" if metric.gain(b, a) > 0 else "a"
    return {
        "a": a,
        "b": b,
        "difference": b - a,
        "ci95": percentiles(np.array(drawn_R), count),
        "p_value": p_value,
        "test": test,
        "better": better,
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's test (1947): of samples that one system alone has right, half are each's.

    It is the exact binomial one, but over 4,000 such samples, where the normal curve is as good.
    """
    discordant, least = only_a + only_b, min(only_a, only_b)
    if discordant > NORMAL_APPROXIMATION_FROM:
        return math.erfc(max(0.0, abs(only_a - only_b) - 1) / math.sqrt(2 * discordant))
    ways, total = 1, 0
    for wins in range(least + 1):
        total += ways
        ways = ways * (discordant - wins) // (wins + 1)
    return min(1.0, 2 * total / 2**discordant)


def _permutation(metric: Metric, a_NS: Floats, b_NS: Floats, difference: float) -> float:
    """The share of random exchanges of A and B, sample by sample, that part the figures as far.

    The true labels count as one of them (Phipson and Smyth 2010), so that it is never 0.
    """
    count = len(a_NS)
    rng = np.random.default_rng([0, count])
    gap_NS, a_S, b_S = b_NS - a_NS, a_NS.sum(axis=0), b_NS.sum(axis=0)
    as_far, done = 0, 0
    while done < PERMUTATIONS:
        size = min(PERMUTATIONS - done, max(1, MAX_NUMBERS_PER_CHUNK // count))
        moved_PS = rng.integers(0, 2, (size, count), dtype=np.int8) @ gap_NS
        for moved_S in moved_PS:
            gap = metric.compute(b_S - moved_S, count) - metric.compute(a_S + moved_S, count)
            as_far += abs(gap) >= difference - 1e-12
        done += size
    return (as_far + 1) / (PERMUTATIONS + 1)

"""What an evaluation found: rows of results.json, and rows of the samples that they can be computed from again.

Shape letters: N samples, S statistics of a sample.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from mmgpt.config import UserError, did_you_mean
from mmgpt.evaluation.ids import id_text
from mmgpt.evaluation.metrics import METRICS, Floats, ScoredPrediction, interval
from mmgpt.evaluation.predict import Prediction
from mmgpt.evaluation.tasks.few_shot import FewShotPrompt
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.files import write_file

Record = dict[str, Any]


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        results: as in results.json, a row for each task, number of shots and seed.
        samples: rows by the name of their file, as in `samples-NAME.jsonl`.
        over_seeds: mean and deviation of what was run with several seeds.
    """

    model: str
    environment: Record
    results: list[Record] = field(default_factory=list)
    samples: dict[str, list[Record]] = field(default_factory=dict)
    over_seeds: list[Record] = field(default_factory=list)

    def value(self, task: str, metric: str = "exact_match", shots: int | str = 0) -> float:
        """One score; of several seeds, their mean."""
        rows = [r for r in self.results if r["task"] == task and r["shots"] == shots]
        return fmean(float(row["metrics"][metric]["value"]) for row in rows)

    def save(self, folder: Path) -> None:
        """Write results.json and the samples files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in self.samples.items():
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            write_file(folder / f"samples-{name}.jsonl", lines)
        content = {"model": self.model, "environment": self.environment, "results": self.results}
        content |= {"over_seeds": self.over_seeds} if self.over_seeds else {}
        write_file(folder / "results.json", json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Folder:
    """The files of an evaluation."""

    path: Path
    model: str
    results: list[Record]
    environment: Record

    def result(self, task: str, shots: Any) -> Record | None:
        """The results of a task with so many shots."""
        return next((one for one in self.results if (one["task"], one["shots"]) == (task, shots)), None)

    def samples_file(self, task: str, shots: Any) -> Path:
        """Where its samples are."""
        return self.path / f"samples-{task}-{shots}.jsonl"

    def samples(self, task: str, shots: Any) -> dict[str, Record]:
        """The samples by key.

        Raises:
            UserError: if the file is absent, damaged, or holds a key twice.
        """
        return read_samples(self.samples_file(task, shots))


def open_folder(path: str | Path) -> Folder:
    """Read the results of an evaluation.

    Raises:
        UserError: if the folder holds none.
    """
    file = Path(path) / "results.json"
    if not file.is_file():
        raise UserError(f"{path}: no results.json; give the folder that `mmgpt eval --out` wrote")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        results = [{**one, "shots": _shots_of(one)} for one in content["results"]]
        return Folder(Path(path), content["model"], results, content.get("environment", {}))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: not the results of an evaluation; evaluate again") from None


def _shots_of(result: Record) -> Any:
    """A result's shots, with the seed where there are several: "2-seed0", as in the name of its samples' file."""
    named = str(result.get("samples", "")).removeprefix(f"samples-{result['task']}-").removesuffix(".jsonl")
    return named if "-seed" in named else result["shots"]


def answered(item: TaskItem, answer: Prediction) -> ScoredPrediction:
    """An answer beside what is known about the right one."""
    return ScoredPrediction(answer.prediction, item.references, item.choices, answer.logprobs, dict(item.tags))


def statistics_of(config: TaskConfig, some: Sequence[ScoredPrediction]) -> dict[str, Floats]:
    """The statistics (N, S) of each metric of a task."""
    return {name: METRICS[name].sample_stats(some) for name in config.metrics}


def intervals(statistics: Mapping[str, Floats]) -> Record:
    """Figure, standard error and interval of each metric."""
    return {name: interval(METRICS[name], found_NS) for name, found_NS in statistics.items()}


def groups(statistics: Mapping[str, Floats], items: Sequence[TaskItem]) -> Record:
    """The same by each value of each tag, with the number of samples that have it."""
    places: dict[str, dict[str, list[int]]] = {}
    for number, item in enumerate(items):
        for tag, value in item.tags.items():
            places.setdefault(tag, {}).setdefault(value, []).append(number)
    return {
        tag: {
            value: {"n": len(own), **intervals({name: found_NS[own] for name, found_NS in statistics.items()})}
            for value, own in sorted(values.items())
        }
        for tag, values in places.items()
    }


def sample_row(item: TaskItem, prompt: FewShotPrompt, answer: Prediction, scores: Mapping[str, float]) -> Record:
    """All that is known of a sample: enough to score it again without the model."""
    row: Record = {
        "key": item.key,
        "messages": [message.to_dict() for message in prompt.messages],
        "exemplars": list(prompt.exemplars),
    }
    row |= {"choices": list(item.choices)} if item.choices else {}
    row |= {"prediction": answer.prediction}
    row |= {"logprobs": list(answer.logprobs)} if answer.logprobs else {}
    row |= {"reference": item.reference, "references": list(item.references)}
    row |= {"tags": dict(item.tags)} if item.tags else {}
    return row | {"scores": dict(scores)}


def over_seeds(rows: Sequence[Record]) -> Record:
    """Mean and standard deviation, over the seeds of the choice of exemplars, of one task's figures."""
    first = rows[0]
    values = {name: [row["metrics"][name]["value"] for row in rows] for name in first["metrics"]}
    return {
        "task": first["task"],
        "shots": first["shots"],
        "seeds": [row["seed"] for row in rows],
        "metrics": {name: {"mean": fmean(own), "deviation": stdev(own), "values": own} for name, own in values.items()},
    }


def answered_of(row: Record) -> ScoredPrediction:
    """A sample's row as metrics take it.

    Raises:
        UserError: if its prediction or references are not texts, with its key.
    """
    references = row.get("references", [row.get("reference")])
    if not isinstance(row.get("prediction"), str):
        raise UserError(f"{row['key']}: its prediction is {row.get('prediction')!r}, not a text; evaluate it again")
    if not isinstance(references, list) or not references or not all(isinstance(one, str) for one in references):
        raise UserError(f"{row['key']}: its references are {references!r}, not a list of texts")
    return ScoredPrediction(
        row["prediction"],
        tuple(references),
        tuple(row.get("choices", ())),
        tuple(row.get("logprobs") or ()),
        row.get("tags") or {},
    )


def read_samples(file: Path) -> dict[str, Record]:
    """The rows of a samples file by key.

    Raises:
        UserError: if the file is absent or empty, a line is damaged, or a key is there twice.
    """
    if not file.is_file() or not file.stat().st_size:
        raise UserError(
            f"{file}: no such file, or no samples there; `mmgpt eval --out` writes samples-TASK-SHOTS.jsonl"
        )
    found: dict[str, Record] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = id_text(row["key"])
        except (ValueError, KeyError, TypeError):
            key = None
        if key is None:
            raise UserError(f"{file}:{number}: no sample with a key; evaluate again")
        if key in found:
            raise UserError(f"{file}:{number}: the key {key!r} is there twice; evaluate again")
        found[key] = row
    return found


def rescore(samples: Path, metrics: Sequence[str] = ()) -> Record:
    """Scores of a samples file, computed again from its predictions without the model.

    Args:
        samples: the file.
        metrics: names; those of the file's own scores if none are given.
    Raises:
        UserError: if the file is absent, empty or damaged, or a metric is not known.
    """
    rows = list(read_samples(samples).values())
    names = list(metrics or rows[0].get("scores", ()))
    for name in names:
        if name not in METRICS:
            raise UserError(f"{samples}: metric {name!r} is not known; {did_you_mean(name, METRICS)}")
    if not names:
        raise UserError(f"{samples}: its samples have no scores; name the metrics to compute")
    some = [answered_of(row) for row in rows]
    return intervals({name: METRICS[name].sample_stats(some) for name in names})


def environment() -> dict[str, Any]:
    """Versions, machine and device, for results.json."""
    return {
        "mmgpt": version("mmgpt"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }

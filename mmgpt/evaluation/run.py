"""The runner: tasks and shots in, scores, predictions and their files out."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmgpt.config import UserError
from mmgpt.datasets.episodes import EpisodeSource
from mmgpt.datasets.sample import Message
from mmgpt.evaluation.blind import TextOnlyGuess
from mmgpt.evaluation.episode_prompts import EpisodePrompts
from mmgpt.evaluation.item import Item
from mmgpt.evaluation.metrics import METRICS, Answered, Floats, summary
from mmgpt.evaluation.shots import Exemplars, Shots
from mmgpt.evaluation.task import Task, TaskConfig, load_task
from mmgpt.generation.assistant import Assistant, load
from mmgpt.generation.prompts import without_media

Record = dict[str, Any]
OnProgress = Callable[[str, int, int], None]


@dataclass
class Evaluation:
    """What `evaluate` found: `results` as in results.json, `samples` by task and shots."""

    model: str
    environment: Record
    results: list[Record] = field(default_factory=list)
    samples: dict[str, list[Record]] = field(default_factory=dict)

    def value(self, task: str, metric: str = "exact_match", shots: int = 0) -> float:
        """One score."""
        row = next(r for r in self.results if r["task"] == task and r["shots"] == shots)
        return float(row["metrics"][metric]["value"])

    def save(self, folder: Path) -> None:
        """Write results.json and one samples file for each task and number of shots."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in self.samples.items():
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            (folder / f"samples-{name}.jsonl").write_text(lines, encoding="utf-8")
        content = {"model": self.model, "environment": self.environment, "results": self.results}
        (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def evaluate(
    model: Assistant | str | Path,
    tasks: Sequence[str | TaskConfig],
    *,
    shots: Sequence[int] = (0,),
    limit: int | None = None,
    data_root: str | Path = ".",
    out: str | Path | None = None,
    blind: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: OnProgress = lambda task, done, total: None,
) -> Evaluation:
    """Score a model on tasks.

    Args:
        model: an Assistant, or the path of one.
        tasks: names of tasks that come with mmgpt, YAML files, or TaskConfigs.
        shots: numbers of solved examples before each question.
        limit: only the first so many items of each task.
        data_root: the folder that the tasks' paths are relative to.
        out: where to write results.json and the samples.
        blind: score the same questions with media removed, and the best guess from the words alone.
        batch_size: questions at a time; scores do not depend on it.
        seed: of the choice of exemplars.
        on_progress: called with task, questions answered, questions in all.
    Raises:
        UserError: on an unknown task, absent data, or prompts that do not fit the context.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves nothing to score; give 1 or more, or None for all")
    configs = [task if isinstance(task, TaskConfig) else load_task(task) for task in tasks]
    opened = [Task(config, data_root) for config in configs]
    assistant = model if isinstance(model, Assistant) else load(model)
    found = Evaluation(assistant.name, environment())
    for task in opened:
        items = task.items(limit)
        for count in shots:
            scorer = _Scorer(assistant, task, batch_size, seed, count, on_progress)
            result, samples = scorer.score(items, blind)
            found.results.append(result)
            found.samples[f"{task.config.name}-{count}"] = samples
    if out is not None:
        found.save(Path(out))
    return found


@dataclass
class _Scorer:
    assistant: Assistant
    task: Task
    batch_size: int
    seed: int
    shots: int
    on_progress: OnProgress

    def score(self, items: Sequence[Item], blind: bool) -> tuple[Record, list[Record]]:
        config, started = self.task.config, time.perf_counter()
        pool: Exemplars | EpisodePrompts = Exemplars(self.task.pool, config.name, config.shots, self.seed)
        if isinstance(self.task.test, EpisodeSource):
            pool = EpisodePrompts(self.task.test)
        shown = [pool.prompt(item, Shots(str(self.shots), self.shots)) for item in items]
        prompts = [one.messages for one in shown]
        predictions = self._answer(prompts, items)
        statistics = self._statistics(items, predictions)
        digest = hashlib.sha256()
        samples = []
        for number, (item, prompt) in enumerate(zip(items, shown, strict=True)):
            messages = [message.to_dict() for message in prompt.messages]
            digest.update(json.dumps([messages, item.choices]).encode())
            sample = {"key": item.key, "messages": messages, "exemplars": list(prompt.exemplars)}
            sample |= {"choices": list(item.choices)} if item.choices else {}
            scores = {name: float(statistics[name][number, 0]) for name in config.metrics}
            sample |= {"prediction": predictions[number], "reference": item.reference}
            sample |= {"references": list(item.references), "scores": scores}
            samples.append(sample)
        result = {
            "task": config.name,
            "version": config.version,
            "shots": self.shots,
            "n": len(items),
            "metrics": {name: summary(METRICS[name], statistics[name]) for name in config.metrics},
            "blind": self._blind(items, prompts) if blind else None,
            "seconds": round(time.perf_counter() - started, 2),
            "prompt_sha256": digest.hexdigest(),
        }
        return result, samples

    def _answer(self, prompts: Sequence[tuple[Message, ...]], items: Sequence[Item]) -> list[str]:
        answers: list[str] = []
        config = self.task.config
        for at in range(0, len(items), self.batch_size):
            chunk = list(prompts[at : at + self.batch_size])
            if config.kind == "choose":
                choices = [list(item.choices) for item in items[at : at + self.batch_size]]
                answers += [c.text for c in self.assistant.choose(chunk, choices, normalise=config.normalise)]
            else:
                options = config.generate.model_dump() | {"seed": config.generate.seed + at}
                replies = self.assistant.chat(chunk, batch_size=self.batch_size, **options)
                answers += [reply.text for reply in replies]
            self.on_progress(config.name, len(answers), len(items))
        return answers

    def _statistics(self, items: Sequence[Item], predictions: Sequence[str]) -> dict[str, Floats]:
        answered = [
            Answered(prediction, item.references, item.choices, tags=dict(item.tags))
            for item, prediction in zip(items, predictions, strict=True)
        ]
        return {name: METRICS[name].statistics(answered) for name in self.task.config.metrics}

    def _summaries(self, items: Sequence[Item], predictions: Sequence[str]) -> Record:
        return {name: summary(METRICS[name], found) for name, found in self._statistics(items, predictions).items()}

    def _blind(self, items: Sequence[Item], prompts: Sequence[tuple[Message, ...]]) -> Record:
        removed = self._answer([without_media(prompt) for prompt in prompts], items)
        record = dict(self._summaries(items, removed))
        if self.task.pool is not None:
            guess = TextOnlyGuess(self.task.pool)
            record["text_only"] = self._summaries(items, [guess.answer(item) for item in items])
        return record


def environment() -> Record:
    """What a figure depends on besides the model."""
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


def rescore(samples: Path) -> Record:
    """Scores of a samples file, computed again from its predictions without the model.

    Raises:
        UserError: if the file is absent or empty.
    """
    if not samples.is_file() or not samples.stat().st_size:
        raise UserError(f"{samples}: no samples there; give a samples-TASK-SHOTS.jsonl that `mmgpt eval --out` wrote")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    answered = [Answered(row["prediction"], tuple(row["references"])) for row in rows]
    return {name: summary(METRICS[name], METRICS[name].statistics(answered)) for name in rows[0]["scores"]}

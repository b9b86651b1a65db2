"""A recipe from start to end: train its stages, score its tasks, write the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmgpt.arguments import place
from mmgpt.checkpoints.model_card import add_scores
from mmgpt.distributed import is_main
from mmgpt.evaluation.metrics import METRICS
from mmgpt.evaluation.results import Record
from mmgpt.evaluation.run import Evaluation, OnProgress, OnScore, evaluate
from mmgpt.evaluation.tasks.task import Task, load_task
from mmgpt.reports.examples import Example, save_examples
from mmgpt.reports.run_report import write_report
from mmgpt.run_log import OnRecord
from mmgpt.training.loop import Run, train
from mmgpt.training.recipe import Recipe, open_recipe


@dataclass(frozen=True)
class Finished:
    """What a recipe left: the run's folder, its scores (None without tasks), its report, a few examples."""

    folder: Path
    evaluation: Evaluation | None
    report: Path
    examples: list[Example]


def run_recipe(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | Path = ".",
    device: str = "auto",
    on_record: OnRecord = lambda record: None,
    on_progress: OnProgress = lambda task, done, total: None,
    on_score: OnScore | None = None,
) -> Finished:
    """Train a recipe (or go on with it), evaluate its `tasks` with their blind baselines, and write report.html.

    The arguments and errors are those of `train` and `evaluate`; the scores go to the run's `eval/`. Of the processes
    of a torchrun, only the first evaluates and writes; the others come back without scores when the training is done.
    """
    recipe, data_root = open_recipe(recipe, overrides), place("data_root", data_root)
    for name in recipe.tasks:
        Task(load_task(name), data_root)  # a wrong name or absent data is told now, not after the training
    run: Run = train(recipe, out=out, data_root=data_root, device=device, on_record=on_record)
    if not is_main():
        return Finished(run.folder, None, run.folder / "report.html", [])
    evaluation = None
    if run.recipe.tasks:
        evaluation = evaluate(
            run.folder,
            run.recipe.tasks,
            data_root=data_root,
            out=run.folder / "eval",
            blind=True,
            place=(0, 1),
            on_progress=on_progress,
            on_score=on_score,
        )
        add_scores(run.folder / "final" / "README.md", _told(evaluation))
    examples = save_examples(evaluation, run.folder / "examples") if evaluation else []
    return Finished(run.folder, evaluation, write_report(run.folder), examples)


def _told(evaluation: Evaluation) -> dict[str, str]:
    """Each task's scores, with half the width of their 95 % interval."""
    return {
        f"{result['task']}, {result['shots']} shots": ", ".join(
            _with_interval(metric, score) for metric, score in result["metrics"].items()
        )
        for result in evaluation.results
    }


def _with_interval(name: str, score: Record) -> str:
    metric, (low, high) = METRICS[name], score["ci95"]
    return (
        f"{name} {metric.written(score['value'])} \N{PLUS-MINUS SIGN} {metric.written((high - low) / 2)}{metric.unit}"
    )

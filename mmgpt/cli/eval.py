"""`mmgpt eval`: a model scored on tasks, and the table of scores."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from mmgpt.cli.console import out_console
from mmgpt.config import UserError

if TYPE_CHECKING:
    from mmgpt.evaluation.results import Evaluation, Record
    from mmgpt.evaluation.tasks.task import TaskConfig

LONGEST_SILENCE = 30.0  # seconds of an evaluation without a terminal
TOLD = TextColumn("{task.fields[told]}")  # of a progress bar: the running score

DataRoot = Annotated[Path, typer.Option(help="Folder that the paths in a recipe or task are relative to.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


Tested = Annotated[
    str,
    typer.Argument(
        help="A run, a checkpoint, an exported folder, openai:URL, or hf:FOLDER_OR_NAME.", show_default=False
    ),
]
Tasks = Annotated[str, typer.Option(help="Task names or YAML files, with commas between them.")]
Imported = Annotated[
    list[Path] | None, typer.Option("--import", help="A task of lm-evaluation-harness or lmms-eval, its YAML.")
]
ShotNames = Annotated[
    str, typer.Option(help="Numbers of solved examples, with commas between them; flamingo-0 is two in words.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many questions of each task.", min=1)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results.json and the answers; a stopped evaluation goes on there.")
]
Cache = Annotated[Path | None, typer.Option(help="Folder of answers that evaluations of a model share.")]
Blind = Annotated[bool, typer.Option("--blind", help="Also score without media, and the best guess from words.")]
BlindModes = Annotated[
    str | None, typer.Option(help="Blind in these ways, with commas between them: removed, shuffled, noise.")
]
BatchSize = Annotated[int, typer.Option(help="Questions at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the choice of examples.", min=0)]
Seeds = Annotated[
    str | None, typer.Option(help="Several such seeds, with commas between them: their mean and deviation.")
]
CacheFeatures = Annotated[
    bool,
    typer.Option("--cache-features", help="Keep what the encoders make of media on disk, for the next evaluation."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Decode by a compiled step: slower to start, for many answers.")
]


def evaluate(
    model: Tested,
    tasks: Tasks = "",
    imported: Imported = None,
    shots: ShotNames = "0",
    limit: Limit = None,
    data_root: DataRoot = Path("."),
    out: Out = None,
    cache: Cache = None,
    blind: Blind = False,
    blind_modes: BlindModes = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    seeds: Seeds = None,
    device: Device = "auto",
    compile: Compile = False,
    cache_features: CacheFeatures = False,
) -> None:
    """Score a model on tasks, zero- or few-shot. Under torchrun, all processes answer."""
    from mmgpt.distributed import is_main
    from mmgpt.evaluation.models.model import open_model
    from mmgpt.evaluation.run import evaluate as run
    from mmgpt.evaluation.tasks.harness_import import import_task

    several = _listed(seeds or str(seed))
    if not all(one.isdecimal() for one in several):
        raise UserError(f"--seeds {seeds}: give numbers with commas between them, as in 0,1,2")
    wanted: list[str | TaskConfig] = [*_listed(tasks)]
    terminal = Console(stderr=True)
    wanted += [import_task(path, data_root, partial(terminal.print, style="dim")) for path in imported or []]
    if not wanted:
        raise UserError("no task to score; give --tasks NAMES, or --import FILE.yaml")
    shown = terminal.is_interactive and is_main()
    out_console.quiet = terminal.quiet = not is_main()
    with Progress(*Progress.get_default_columns(), TOLD, console=terminal, transient=True, disable=not shown) as bars:
        progress = Bars(bars) if shown else PlainBars(terminal)
        found = run(
            open_model(model, device, compile=compile, cache_features=cache_features),
            wanted,
            shots=_listed(shots),
            limit=limit,
            data_root=data_root,
            out=out,
            cache=cache,
            blind=_listed(blind_modes) if blind_modes else blind,
            batch_size=batch_size,
            seeds=[int(one) for one in several],
            on_progress=progress,
            on_score=progress.score if is_main() else None,
        )
    out_console.print(score_table(found))
    for result in found.results:
        if result["groups"]:
            out_console.print(group_table(result))
    if out:
        out_console.print(f"answers and scores: {out}")


class Bars:
    """A progress bar for each task of an evaluation, with the running score."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.tasks, self.told = bars, dict[str, Any](), dict[str, str]()

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self.tasks:
            self.bars.start()
            self.tasks[task] = self.bars.add_task(task, total=total, told="")
        self.bars.update(self.tasks[task], completed=done, total=total, told=self.told.get(task, ""))

    def score(self, task: str, metric: str, value: float) -> None:
        self.told[task] = f"{metric} {_figure(metric, value)}"


class PlainBars:
    """The same where there is no terminal: a line at each tenth of a task, and at the least one in half a minute."""

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, dict[str, str]()
        self.shown: dict[str, tuple[int, float]] = {}  # tenths that were told of a task, and when
        self.started: dict[str, tuple[int, float]] = {}  # of a task: what was answered before, and when it was

    def __call__(self, task: str, done: int, total: int) -> None:
        """Tell a task's progress, if there is something to tell."""
        from mmgpt.cli.training_display import in_clock

        now = time.monotonic()
        before, begun = self.started.setdefault(task, (done, now))
        tenths, last = self.shown.get(task, (0, begun))
        is_new = 10 * done // max(total, 1) > tenths or now - last > LONGEST_SILENCE
        if not is_new or done == before == 0:
            return
        self.shown[task] = (10 * done // max(total, 1), now)
        parts = [f"{task}  {done:,}/{total:,}", self.told.get(task, "")]
        if before < done < total:
            parts.append(f"{in_clock((now - begun) / (done - before) * (total - done))} left")
        self.console.print("  ".join(filter(None, parts)), markup=False, highlight=False, soft_wrap=True)

    def score(self, task: str, metric: str, value: float) -> None:
        """Keep the running score for the next line."""
        self.told[task] = f"{metric} {_figure(metric, value)}"


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _figure(metric: str, value: float) -> str:
    from mmgpt.evaluation.metrics import metric_named

    return metric_named(metric).written(value)


def score_table(found: "Evaluation") -> Table:
    """Scores with half their 95 % interval; beside them the scores blind and the best guess from words."""
    table = Table(title="scores in %", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    told = [name for result in found.results for name in result["blind"] or () if name not in result["metrics"]]
    modes = [name for name in dict.fromkeys(told) if name != "text_only"]
    for name in ("task", "shots", "n", "metric", "score", "blind", *modes, "text-only"):
        justify: Literal["left", "right"] = "left" if name in ("task", "metric") else "right"
        is_text = name in ("task", "shots", "metric")  # these are folded where a terminal is narrow
        table.add_column(name, justify=justify, no_wrap=not is_text, overflow="fold" if is_text else "ellipsis")
    several = {(one["task"], one["shots"]) for one in found.over_seeds}
    for result in found.results:
        blind = result["blind"] or {}
        shots = str(result["shots"])
        shots += f" seed {result['seed']}" if (result["task"], result["shots"]) in several else ""
        for metric, score in result["metrics"].items():
            low, high = score["ci95"]
            guesses = [blind.get(metric), *(blind.get(name, {}).get(metric) for name in (*modes, "text_only"))]
            table.add_row(
                result["task"],
                shots,
                f"{result['n']:,}",
                metric,
                f"[bold]{_figure(metric, score['value'])}[/bold] \u00b1{_figure(metric, (high - low) / 2)}",
                *(_figure(metric, guess["value"]) if guess else "-" for guess in guesses),
            )
    for mean in found.over_seeds:
        for metric, own in mean["metrics"].items():
            score = f"[bold]{_figure(metric, own['mean'])}[/bold] \u00b1{_figure(metric, own['deviation'])}"
            table.add_row(mean["task"], f"{mean['shots']} mean", "", metric, score, *["-"] * (2 + len(modes)))
    table.caption, table.caption_justify = "".join(_notes(found)), "left"
    return table


def group_table(result: "Record") -> Table:
    """The scores of one row of results by each value of each tag."""
    title = f"{result['task']}, {result['shots']} shots, in %"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("group", "", "n", *result["metrics"]):
        table.add_column(name, justify="left" if name in ("group", "") else "right", no_wrap=True)
    for tag, values in result["groups"].items():
        for value, own in values.items():
            scores = (_figure(metric, own[metric]["value"]) for metric in result["metrics"])
            table.add_row(tag, escape(value), f"{own['n']:,}", *scores)
    return table


def _notes(found: "Evaluation") -> Iterator[str]:
    """What has to be known to read the table."""
    from mmgpt.evaluation.metrics import metric_named

    if any(result["blind"] for result in found.results):
        yield "blind: media removed; text-only: best answer to the same words in training\n"
    plain = {metric for result in found.results for metric in result["metrics"] if not metric_named(metric).in_percent}
    if plain:
        yield f"not in %: {', '.join(sorted(plain))}\n"
    if found.over_seeds:
        yield "mean: over the seeds, with their standard deviation\n"
    for result in found.results:
        name = f"{result['task']}, {result['shots']} shots"
        if result["empty"]:
            yield f"{name}: empty answers: {len(result['empty']):,}, the first to {result['empty'][0]}\n"
        if result["dropped"]:
            yield (
                f"{name}: {result['dropped']:,} examples of {result['n']:,} prompts were left out to fit the context\n"
            )

"""`mmgpt compare` and `mmgpt leaderboard`: evaluations side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from mmgpt.cli.console import out_console

if TYPE_CHECKING:
    from mmgpt.evaluation.compare import Compared, Comparison

Evaluation = Annotated[Path, typer.Argument(help="A folder that `mmgpt eval --out` wrote.", show_default=False)]


def compare(
    a: Evaluation,
    b: Evaluation,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say whether B answers better than A: a paired test on the samples that both evaluations have."""
    from mmgpt.evaluation.compare import compare as run

    found = run(a, b)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
        return
    out_console.print(comparison_table(found))
    partial = {(row.task, row.shots): row for row in found.rows if row.only_a or row.only_b}
    notes = [
        f"{row.task}, {row.shots} shots: {row.only_a:,} samples only in A, {row.only_b:,} only in B; left out"
        for row in partial.values()
    ]
    for note in [*notes, *found.unmatched]:
        out_console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def comparison_table(found: "Comparison") -> Table:
    """A, B, their difference with its 95 % interval, and the p-value."""
    from mmgpt.evaluation.metrics import metric_named

    title = f"A = {escape(found.a)}\nB = {escape(found.b)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "shots", "n", "metric", "A", "B", "B - A", "95 % interval", "p"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for row in found.rows:
        low, high = (_figure(row, end, sign=True) for end in row.ci95)
        style = {"a": "red", "b": "green", None: "default"}[row.better]
        table.add_row(
            escape(row.task),
            str(row.shots),
            f"{row.n:,}",
            row.metric,
            _figure(row, row.a),
            _figure(row, row.b),
            f"[{style}]{_figure(row, row.difference, sign=True)}[/]",
            f"{low} to {high}",
            f"{row.p_value:.4f}" if row.p_value >= 1e-4 else f"{row.p_value:.0e}",
        )
    plain = {row.metric for row in found.rows if not metric_named(row.metric).in_percent}
    units = f"in %, but {', '.join(sorted(plain))}" if plain else "in %"
    table.caption = f"{units}; green: B is better, red: A is better, by p < 0.05, each row for itself\n"
    table.caption_justify = "left"
    return table


def _figure(row: "Compared", value: float, sign: bool = False) -> str:
    from mmgpt.evaluation.metrics import metric_named

    return metric_named(row.metric).written(value, signed=sign)


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Folders of evaluations, one a model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("leaderboard.html"),
    samples: Annotated[int, typer.Option(help="Answers shown behind each score, wrong ones first.", min=0)] = 12,
) -> None:
    """Write one HTML page with all scores, to sort and to look behind: pictures, sounds and answers included."""
    from mmgpt.reports.leaderboard import write_leaderboard

    page = write_leaderboard(folders, out, samples=samples)
    out_console.print(f"leaderboard: {page}", markup=False, highlight=False, soft_wrap=True)

"""`mmgpt score`: scores of results files that any system wrote."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from mmgpt.cli.console import out_console

app = typer.Typer(help="Score results files in the official layouts of VQA and of COCO captions.", no_args_is_help=True)

Results = Annotated[Path, typer.Option(help="The results file, JSON, gzip or not.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Partial = Annotated[bool, typer.Option("--partial", help="Score results for a part, and say of how many.")]


@app.command()
def vqa(
    questions: Annotated[Path, typer.Option(help="The official questions file.", show_default=False)],
    annotations: Annotated[Path, typer.Option(help="The official annotations file.", show_default=False)],
    results: Results,
    per_question: Annotated[bool, typer.Option("--per-question", help="Also the score of each question.")] = False,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """VQA accuracy in percent, as the official tool computes it."""
    from mmgpt.evaluation.official_scores import score_vqa

    found = score_vqa(questions, annotations, results, partial=partial)
    if not per_question:
        del found["per_question"]
    if as_json:
        _print_json(found)
        return
    rows = [("overall", found["overall"])]
    for name in ("per_answer_type", "per_question_type", "per_question"):
        rows += [
            (f"{name.removeprefix('per_').replace('_', ' ')}: {key}", one) for key, one in found.get(name, {}).items()
        ]
    _print_table(f"VQA accuracy in %, {found['scored']:,} questions", [(key, f"{one:.2f}") for key, one in rows])
    _print_notes(found["notes"])


@app.command()
def captions(
    references: Annotated[Path, typer.Option(help="References in the COCO captions layout.", show_default=False)],
    results: Results,
    partial: Partial = False,
    meteor_jar: Annotated[Path | None, typer.Option(help="meteor-1.5.jar, for METEOR; needs Java.")] = None,
    spice_jar: Annotated[Path | None, typer.Option(help="spice-1.0.jar, for SPICE; needs Java.")] = None,
    as_json: AsJson = False,
) -> None:
    """BLEU, ROUGE-L and CIDEr-D as the COCO caption evaluation computes them, without Java."""
    from mmgpt.evaluation.official_scores import score_captions

    found = score_captions(references, results, partial=partial, meteor_jar=meteor_jar, spice_jar=spice_jar)
    if as_json:
        _print_json(found)
        return
    scores = [(name, one) for name, one in found.items() if name not in ("scored", "images", "notes")]
    shown = [(name, "absent" if one is None else _written(name, one)) for name, one in scores]
    _print_table(f"captions of {found['scored']:,} images; in %, but CIDEr", shown)
    _print_notes(found["notes"])


@app.command()
def evaluation(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `mmgpt eval --out` wrote, or one of its samples files.")
    ],
    metrics: Annotated[str, typer.Option(help="Others than the file's own, with commas between them.")] = "",
    as_json: AsJson = False,
) -> None:
    """Scores of an evaluation's samples, computed again from their answers without the model."""
    from mmgpt.evaluation.metrics import metric_named
    from mmgpt.evaluation.official_scores import score_evaluation

    found = score_evaluation(folder, [name.strip() for name in metrics.split(",") if name.strip()])
    if as_json:
        _print_json(found)
        return
    rows = []
    for file, scores in found.items():
        for name, score in scores.items():
            metric, (low, high) = metric_named(name), score["ci95"]
            half = metric.written((high - low) / 2)
            rows.append((f"{file}: {name}", f"{metric.written(score['value'])} \u00b1{half}{metric.unit}"))
    _print_table(f"{folder}", rows)


def _written(name: str, value: float) -> str:
    """A caption score by its official name, as our metric of that name is written everywhere."""
    from mmgpt.evaluation.metrics import metric_named

    return metric_named({"METEOR": "rouge_l", "SPICE": "rouge_l"}.get(name, name.lower())).written(value)


def _print_json(found: dict[str, Any]) -> None:
    out_console.print(json.dumps(found, ensure_ascii=False, indent=1), markup=False, highlight=False, soft_wrap=True)


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("score", justify="right")
    for name, score in rows:
        table.add_row(name, score)
    out_console.print(table)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        out_console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)

"""`mmgpt data`: what a recipe's data will be to the model."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmgpt.cli.console import out_console
from mmgpt.config import UserError, find_config

if TYPE_CHECKING:
    from mmgpt.inspection.check import Check, Finding
    from mmgpt.inspection.stats import Record

app = typer.Typer(help="Look at a recipe's data as the model will get it.", no_args_is_help=True)
SHOWN_KEYS = 3  # of a group of findings

Recipe = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with mmgpt.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted keys, as in model.decoder.context=256.")]
Stage = Annotated[str | None, typer.Option(help="Only this stage.")]
DataRoot = Annotated[Path, typer.Option(help="Folder that the paths in the recipe are relative to.")]
Run = Annotated[Path | None, typer.Option(help="A run of this recipe, to take its tokenizer; else one is trained.")]


@app.command()
def stats(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Stage = None,
    data_root: DataRoot = Path("."),
    run: Run = None,
    limit: Annotated[int, typer.Option(help="The most samples of a source, spread over it.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of which samples these are.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for stats.json and lengths.png.")] = None,
) -> None:
    """Lengths, targets, media, what is lost, and how fast the data comes, of each stage and source."""
    from mmgpt.inspection.recipe_data import open_data
    from mmgpt.inspection.stats import data_stats, write_stats

    data = open_data(recipe, overrides=overrides or (), stage=stage, data_root=data_root, run=run)
    with _progress() as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        found = data_stats(data, limit=limit, seed=seed, on_progress=show)
    if out:
        write_stats(found, out)
    if as_json:
        out_console.print_json(json.dumps(found))
        return
    for table in stats_tables(found):
        out_console.print(table)
    for one in found:
        if "fault" in one["stream"]:
            _say(f"{one['stage']}: the training would stop: {one['stream']['fault']}", "red")
        for source in one["sources"]:
            for reason, message in source["first_faults"].items():
                _say(f"{one['stage']}: {source['source']}: first {reason.replace('_', ' ')}: {message}", "yellow")


@app.command()
def shard(
    source: Annotated[str, typer.Argument(help="A file of one source, such as configs/data/fsdd.yaml, or its name.")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards and their index.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys of the source, as in split=test.")] = None,
    data_root: DataRoot = Path("."),
    max_size: Annotated[str, typer.Option(help="The most bytes of a shard, as in 256MB.")] = "256MB",
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if not given.", min=1)] = None,
    part: Annotated[str, typer.Option(help="Write one part of the work, as in 3/64; join them with --merge.")] = "1/1",
    merge: Annotated[bool, typer.Option("--merge", help="Join what the parts wrote to one index.")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of a tokenizer, to count tokens in the index.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out media that cannot be decoded.")] = False,
    min_characters: Annotated[int, typer.Option(help="Drop shorter texts.", min=0)] = 0,
    max_characters: Annotated[int | None, typer.Option(help="Drop longer texts.", min=1)] = None,
    near_copies: Annotated[float | None, typer.Option(help="Drop texts as similar as this to one before.")] = None,
) -> None:
    """Write a source as webdataset shards with an index. A run that was stopped goes on with the same command."""
    from mmgpt.datasets.readers.registry import load_source
    from mmgpt.datasets.shard_writer import Job, deduplicate, merge_shards, write_shards

    if merge:
        _say_shards(merge_shards(out), out)
        return
    numbers = part.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(f"--part {part}: write K/N, as in 3/64")
    job = Job(
        load_source(find_config(source, "data"), overrides or ()),
        data_root,
        out,
        _bytes_of(max_size),
        skip_bad=skip_bad,
    )
    if tokenizer is not None:
        from mmgpt.inputs.tokenizer import Tokenizer

        job = replace(job, count_tokens=Tokenizer.load(tokenizer).count)
    if min_characters or max_characters or near_copies:
        rules = {"min_characters": min_characters, "max_characters": max_characters, "similarity": near_copies}
        job, dropped = deduplicate(job, rules)
        _say(f"dropped: {', '.join(f'{count:,} {reason}' for reason, count in dropped.items()) or 'none'}")
    with _progress() as bars:
        task = bars.add_task("blocks", total=None)
        index = write_shards(
            job,
            part=(int(numbers[0]), int(numbers[1])),
            workers=workers or os.cpu_count() or 1,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if index:
        _say_shards(index, out)
    else:
        _say(f"part {part} is written; when all are:  mmgpt data shard {source} {out} --merge")


def _bytes_of(size: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMG]?)i?B?", size)
    if not found:
        raise UserError(f"--max-size {size}: write a number and a unit, as in 256MB")
    return int(float(found.group(1)) * 1000 ** " kMG".index(found.group(2).replace("K", "k") or " "))


def _say_shards(index: "Record", out: Path) -> None:
    totals = ", ".join(f"{count:,.10g} {name.replace('_', ' ')}" for name, count in index["totals"].items())
    shards, size = len(index["shards"]), index["bytes"] / 1e6
    _say(f"{index['num_samples']:,} samples in {shards:,} shards, {size:,.1f} MB: {totals}", "green")
    _say(f"read them with:  {{reader: shards, path: {out}}}")


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Stage = None,
    data_root: DataRoot = Path("."),
    run: Run = None,
    limit: Annotated[int, typer.Option(help="The most samples of a source, spread over it.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Of which samples these are.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("data.html"),
) -> None:
    """Write a page of samples with their pictures and sounds, token by token: what is read, and what is learned."""
    from mmgpt.inspection.page import write_data_page
    from mmgpt.inspection.recipe_data import open_data

    data = open_data(recipe, overrides=overrides or (), stage=stage, data_root=data_root, run=run)
    _say(f"page:  {write_data_page(data, out, limit=limit, seed=seed)}")


@app.command()
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Stage = None,
    data_root: DataRoot = Path("."),
    run: Run = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples of each source.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if not given, 0 for none.", min=0)] = None,
    near: Annotated[int, typer.Option(help="Bits of 64 in which copies' fingerprints may differ.", min=0, max=16)] = 4,
    out: Annotated[Path | None, typer.Option(help="File for all findings, a line of JSON each.")] = None,
) -> None:
    """Look at every sample: decodable, fitting, with targets, no copy of another, none of the tasks' test data.

    Exits with 1 if there is a fault. Warnings are no faults.
    """
    from mmgpt.inspection.check import check_data
    from mmgpt.inspection.recipe_data import open_data

    data = open_data(recipe, overrides=overrides or (), stage=stage, data_root=data_root, run=run)
    processes = os.cpu_count() or 1 if workers is None else workers
    with _progress() as bars:
        task = bars.add_task("checked", total=None)
        found = check_data(
            data,
            limit=limit,
            workers=processes,
            near=near,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if out:
        found.write(out)
    if found.findings:
        out_console.print(findings_table(found))
    warnings = len(found.findings) - len(found.faults)
    left = f", {found.left_out:,} left out by --limit" if found.left_out else ""
    _say(
        f"{found.samples:,} samples of {found.sources} sources with {found.media:,} media in {found.seconds:.1f} s "
        f"({found.samples / found.seconds:,.0f} a second){left}; faults: {len(found.faults):,}, warnings: {warnings:,}",
        "red" if found.faults else "green",
    )
    raise typer.Exit(1 if found.faults else 0)


def _progress() -> Progress:
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_interactive)


def _say(text: str, style: str | None = None) -> None:
    out_console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, columns: str, left: Sequence[str], caption: str | None = None) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption)
    table.title_justify = table.caption_justify = "left"
    table.title_style = "bold"
    for name in columns.split(", "):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def stats_tables(found: Sequence["Record"]) -> list[Table]:
    """The mixture, the lengths of rows, the media, and the stream of each stage; all fit 80 letters."""
    ends = ("stage", "source", "medium", "objective")
    mixture = _table(
        "mixture",
        "stage, source, samples, share, epochs, of targets, lost",
        ends,
        "of targets: share of what the stage learns; lost: trimmed + unused",
    )
    lengths = _table("tokens", "stage, source, mean, p50, p95, max, learned", ends, "learned: those that are targets")
    media = _table("media", "stage, source, medium, each, tokens, most, size, largest", ends, "each: in each sample")
    stream = _table(
        "stream, in one process",
        "stage, objective, samples/s, tokens/s, tokens/step, batches/step, full",
        ends,
        "full: share of the micro-batches that is no padding",
    )
    for stage in found:
        for number, source in enumerate(stage["sources"]):
            names = ("" if number else stage["stage"], escape(source["source"]))
            is_last = number + 1 == len(stage["sources"])
            mixture.add_row(*names, *_mixture_cells(source), end_section=is_last)
            lengths.add_row(*names, *_length_cells(source), end_section=is_last)
            for kind, one in source["media"].items():
                media.add_row(stage["stage"], names[1], kind, *_media_cells(source, kind, one))
        if "fault" not in stage["stream"]:
            stream.add_row(stage["stage"], stage["objective"], *_stream_cells(stage["stream"]))
    return [table for table in (mixture, lengths, media, stream) if table.row_count]


def _mixture_cells(source: "Record") -> list[str]:
    share = source["share_of_targets"]
    unused = source["too_long"] + source["bad_media"] + source["wrong"]
    return [
        f"{source['samples']:,}",
        f"{source['share']:.1%}",
        f"{source['epochs']:.3g}",
        f"{share:.1%}" if share is not None else "-",
        f"{source['trimmed']:,} + {unused:,}" if source["trimmed"] or unused else "-",
    ]


def _length_cells(source: "Record") -> list[str]:
    tokens = source["tokens"]
    lengths = [f"{tokens[name]:,.0f}" if tokens else "-" for name in ("mean", "p50", "p95", "max")]
    return [*lengths, f"{source['supervised']:.1%}"]


def _stream_cells(stream: "Record") -> list[str]:
    speeds = [f"{stream[name]:,.0f}" for name in ("samples_per_second", "tokens_per_second", "tokens_per_step")]
    return [*speeds, f"{stream['micro_batches_per_step']:.1f}", f"{stream['fill']:.0%}"]


def _media_cells(source: "Record", kind: str, one: "Record") -> list[str]:
    unit = {"image": "pixels", "audio": "seconds"}.get(kind, "")
    size = source.get(unit) or {}
    written = [
        f"{size[name]:,.0f} px" if kind == "image" else f"{size[name]:.2f} s" for name in ("mean", "max") if size
    ]
    return [f"{one['per_sample']:.2f}", f"{one['tokens']['mean']:,.1f}", f"{one['tokens']['max']:,.0f}", *written]


def findings_table(found: "Check") -> Table:
    """Faults, then warnings, grouped by reason and source, with the first of each."""
    from mmgpt.inspection.check import MEANING

    table = _table("findings", "reason, source, count, first", ("reason", "source", "first"))
    table.columns[-1].no_wrap = False
    groups: dict[tuple[bool, str, str, str], list[Finding]] = {}
    for one in found.findings:
        groups.setdefault((not one.is_fault, one.reason, one.source, one.where), []).append(one)
    for (is_warning, reason, source, where), group in sorted(groups.items()):
        colour = "yellow" if is_warning else "red"
        first = "\n".join(f"{one.key}: {one.message}" for one in group[:SHOWN_KEYS])
        named = f"[{colour}]{reason}[/{colour}]\n[dim]{MEANING[group[0].reason]}[/dim]"
        table.add_row(named, f"{escape(source)}\n[dim]{escape(where)}[/dim]", f"{len(group):,}", escape(first))
    table.columns[0].no_wrap = False
    return table

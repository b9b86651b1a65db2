"""Figures of a recipe's data as the model will get it: lengths, targets, media, losses, and how fast it comes."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Media, MediaError
from mmgpt.datasets.source import Source
from mmgpt.files import write_file
from mmgpt.inputs.batch import PADDING
from mmgpt.inputs.dataloader import StepDataset, iterate_steps
from mmgpt.inputs.objectives import rows_of
from mmgpt.inputs.rendered import IGNORED, Rendered
from mmgpt.inputs.trimming import TooLong
from mmgpt.inspection.recipe_data import RecipeData, stratified_indexes
from mmgpt.training.data_mix import open_stream, steps_of
from mmgpt.training.recipe import StageConfig
from mmgpt.training.stage import dropout_seed

MAX_STEPS = 20  # of a stage, drawn to measure how fast they come

Record = dict[str, Any]
OnProgress = Callable[[str, int, int], None]


def data_stats(
    data: RecipeData,
    *,
    limit: int = 1000,
    seed: int = 0,
    on_progress: OnProgress = lambda name, done, total: None,
) -> list[Record]:
    """A record a stage: its name, objective, `sources` with a record each, and its `stream`.

    Lengths are counted on rows as rendered: samples, or where a stage does not learn to respond, their branches apart.

    Args:
        data: the opened recipe.
        limit: the most samples of a source that are looked at, spread over it.
        seed: of which these are.
        on_progress: called with stage and source, the samples done and their number.
    """
    return [_stage(data, stage, limit, seed, on_progress) for stage in data.stages]


def _stage(data: RecipeData, stage: StageConfig, limit: int, seed: int, on_progress: OnProgress) -> Record:
    sources = data.sources[stage.name]
    steps = steps_of(stage, sources)
    stream = open_stream(stage, sources, data.renderer, dropout_seed(data.recipe, stage, 0))
    drawn = stream.order.counts(steps * stage.batch_size)
    records = []
    for item, source, count in zip(stage.data, sources, drawn, strict=True):
        record = _source(data, stage, source, limit, seed, on_progress)
        share, epochs = count / sum(drawn), count / len(source)
        records.append({"source": source.name, "split": item.split, "share": share, "epochs": epochs, **record})
    learned = [record["share"] * record["targets_per_sample"] for record in records]
    for record, targets in zip(records, learned, strict=True):
        record["share_of_targets"] = targets / sum(learned) if sum(learned) else None
    return {
        "stage": stage.name,
        "objective": stage.objective,
        "context": data.renderer.context,
        "sources": records,
        "stream": _speed(stream, min(steps, MAX_STEPS, math.ceil(limit / stage.batch_size))),
    }


@dataclass
class _Tally:
    """What has been seen of a source."""

    tokens: list[int] = field(default_factory=list)  # of each row
    targets: int = 0
    media: dict[str, list[int]] = field(default_factory=dict)  # tokens of each, by modality
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # message of the first sample of each count

    def add(self, row: Rendered) -> None:
        self.tokens.append(len(row.ids))
        self.targets += sum(label != IGNORED for label in row.labels)
        self.counts["trimmed"] += row.is_trimmed
        for medium in row.media:
            self.media.setdefault(medium.modality, []).append(medium.num_tokens)

    def refuse(self, error: UserError) -> None:
        reason = {MediaError: "bad_media", TooLong: "too_long"}.get(type(error), "wrong")
        self.counts[reason] += 1
        self.first.setdefault(reason, str(error))


def _source(
    data: RecipeData, stage: StageConfig, source: Source, limit: int, seed: int, on_progress: OnProgress
) -> Record:
    tally, sizes = _Tally(), dict[str, list[float]]()
    indexes = stratified_indexes(len(source), limit, seed)
    for done, index in enumerate(indexes, start=1):
        try:
            sample = source[index]
            for row in rows_of(sample, stage.objective):
                tally.add(data.renderer.render(row, stage.objective))
            for medium in sample.media:
                for unit, value in _extent(medium).items():
                    sizes.setdefault(unit, []).append(value)
        except UserError as error:
            tally.refuse(error)
        on_progress(f"{stage.name}: {source.name}", done, len(indexes))
    tokens = sum(tally.tokens)
    return {
        "samples": len(source),
        "looked_at": len(indexes),
        "rows": len(tally.tokens),
        "tokens": summary(tally.tokens),
        "supervised": tally.targets / tokens if tokens else 0.0,
        "targets_per_sample": tally.targets / len(indexes),
        "media": {
            kind: {"per_sample": len(found) / len(indexes), "tokens": summary(found)}
            for kind, found in tally.media.items()
        },
        **{unit: summary(values) for unit, values in sizes.items()},
        **{name: tally.counts[name] for name in ("trimmed", "too_long", "bad_media", "wrong")},
        "first_faults": tally.first,
        "lengths": sorted(tally.tokens),
    }


def _extent(medium: Media) -> dict[str, float]:
    """How large a medium is before it is prepared."""
    if isinstance(medium, Image):
        picture = medium.load()
        return {"pixels": picture.width * picture.height}
    return {"seconds": medium.load().seconds} if isinstance(medium, Audio) else {}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum; of no values, nothing."""
    if not values:
        return {}
    p50, p95 = np.percentile(values, [50, 95])
    return {"mean": float(np.mean(values)), "p50": float(p50), "p95": float(p95), "max": float(max(values))}


def _speed(stream: StepDataset, steps: int) -> Record:
    """How fast steps come in this process, and how full their micro-batches are; or why they do not come.

    The first step, which opens files, is not timed.
    """
    steps_data, tokens, cells, batches, samples = iterate_steps(stream, 0), 0, 0, 0, 0
    try:
        next(steps_data)
        started = time.perf_counter()
        for data in islice(steps_data, steps):
            tokens += sum(int((batch.documents != PADDING).sum()) for batch in data.batches)
            cells += sum(batch.ids.numel() for batch in data.batches)
            batches += len(data.batches)
            samples += sum(counts["samples"] for counts in data.counts.values())
    except UserError as error:
        return {"fault": str(error)}
    seconds = time.perf_counter() - started
    return {
        "steps": steps,
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / steps,
        "micro_batches_per_step": batches / steps,
        "fill": tokens / cells if cells else 0.0,
    }


def write_stats(stats: Sequence[Record], folder: Path) -> None:
    """Write stats.json and lengths.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "stats.json", json.dumps(stats, indent=1))
    plot_lengths(stats, folder / "lengths.png")


def plot_lengths(stats: Sequence[Record], file: Path) -> None:
    """Draw how long the rows of each source are: a panel a stage, with the 95th percentiles and the context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 + 2.3 * len(stats)), layout="constrained")
    panels = figure.subplots(len(stats), 1, squeeze=False)[:, 0]
    for panel, stage in zip(panels, stats, strict=True):
        context = stage["context"]
        edges = np.linspace(0, context, 65)
        for number, source in enumerate(stage["sources"]):
            lengths, colour = source["lengths"], f"C{number % 10}"
            if not lengths:
                continue
            counts, _ = np.histogram(lengths, edges)
            p95, name = source["tokens"]["p95"], source["source"]
            label = f"{name}: mean {source['tokens']['mean']:,.0f}, p95 {p95:,.0f}"
            panel.stairs(counts / len(lengths), edges, color=colour, fill=True, alpha=0.25)
            panel.stairs(counts / len(lengths), edges, color=colour, linewidth=1.4, label=label)
            panel.axvline(p95, color=colour, linewidth=1, linestyle=":")
        panel.axvline(context, color="0.4", linewidth=1, linestyle="--")
        panel.set_xlim(0, context * 1.02)
        panel.set_ylim(0)
        panel.yaxis.set_major_formatter("{x:.0%}")
        panel.set_title(f"{stage['stage']} ({stage['objective']})", loc="left", fontsize=10, fontweight="bold")
        panel.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(0.97, 1.0))
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"tokens of a row (dotted: 95th percentiles; dashed: the context, {context:,})")
    panels[0].set_ylabel("share of rows")
    figure.savefig(file, dpi=150)

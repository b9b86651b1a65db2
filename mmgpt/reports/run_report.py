"""A run as one HTML page that needs nothing else: scores, curves, what trained, samples, the recipe."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgpt.config import UserError, read_yaml
from mmgpt.evaluation.metrics import Metric, metric_named
from mmgpt.evaluation.results import environment
from mmgpt.files import write_file
from mmgpt.reports.charts import Point, Series, line_chart, short
from mmgpt.reports.gallery import gallery, size
from mmgpt.reports.html import Markup, html_page, tag
from mmgpt.run_log import read_log

MAX_HEADLINES = 8

Record = dict[str, Any]


@dataclass(frozen=True)
class _Stage:
    """What the log and the recipe know of one stage."""

    name: str
    objective: str
    planned: int
    parts: list[Record]
    steps: list[Record]

    @property
    def done(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def seconds(self) -> float:
        return float(sum(record.get("seconds", 0.0) for record in self.steps))

    def values(self, name: str) -> list[Point]:
        return [(r["step"], r[name]) for r in self.steps if isinstance(r.get(name), int | float)]


@dataclass(frozen=True)
class _Run:
    """A run's files, read."""

    folder: Path
    recipe: Record
    text: str
    stages: list[_Stage]
    evaluation: Path
    results: Record

    @property
    def parameters(self) -> int:
        tables = [stage.parts for stage in self.stages if stage.parts]
        return sum(row["parameters"] for row in tables[-1]) if tables else 0


def write_report(run: Path, evaluation: Path | None = None) -> Path:
    """Write `report.html` into a run's folder, with the scores of an evaluation if there is one.

    Args:
        run: the folder of a run, finished or not.
        evaluation: the folder of an evaluation; `eval` inside the run if not given, which need not exist.
    Raises:
        UserError: if `run` holds no run, or `evaluation` is given and holds no results.
    """
    page = _page(_read(Path(run), evaluation))
    file = Path(run) / "report.html"
    write_file(file, "<!doctype html>\n" + page + "\n", errors="replace")
    return file


def _read(run: Path, evaluation: Path | None) -> _Run:
    config, log = run / "config.yaml", run / "log.jsonl"
    if not config.is_file() and not log.is_file():
        raise UserError(f"{run}: neither config.yaml nor log.jsonl; give the folder of a run")
    folder = evaluation or run / "eval"
    results = folder / "results.json"
    if evaluation and not results.is_file():
        raise UserError(f"{evaluation}: no results.json; give the folder that `mmgpt eval --out` wrote")
    recipe = read_yaml(config) if config.is_file() else {}
    return _Run(
        folder=run,
        recipe=recipe,
        text=config.read_text(encoding="utf-8") if config.is_file() else "",
        stages=_stages(read_log(log), recipe),
        evaluation=folder,
        results=json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {},
    )


def _stages(log: Sequence[Record], recipe: Record) -> list[_Stage]:
    planned = {stage["name"]: stage for stage in recipe.get("stages", [])}
    stages = []
    for name in dict.fromkeys([*planned, *(record["stage"] for record in log)]):
        lines = [record for record in log if record["stage"] == name]
        started: Record = next((r for r in reversed(lines) if r.get("event") == "stage"), {})
        config = planned.get(name, {})
        objective = started.get("objective", config.get("objective", ""))
        steps = [r for r in lines if "event" not in r and "step" in r]
        stages.append(
            _Stage(name, objective, started.get("of") or config.get("steps") or 0, started.get("parts", []), steps)
        )
    return stages


def _page(run: _Run) -> Markup:
    name = run.folder.resolve().name
    sections = (_scores(run), _curves(run), _freeze_tables(run), _samples(run), _recipe(run))
    return html_page(f"{name} - mmgpt run report", _header(run, name), tag("main", *sections), _footer(run))


def _section(title: str, *children: str | None, hint: str = "") -> Markup:
    return tag("section", tag("h2", title), tag("p", hint, cls="hint") if hint else None, *children)


def _note(*children: str) -> Markup:
    return tag("p", *children, cls="note")


def _header(run: _Run, name: str) -> Markup:
    done = sum(stage.done for stage in run.stages)
    names = " \N{RIGHTWARDS ARROW} ".join(stage.name for stage in run.stages)
    facts = [
        names,
        f"{done:,} steps",
        f"{short(run.parameters)} parameters" if run.parameters else "",
        f"{_duration(sum(stage.seconds for stage in run.stages))} of training",
    ]
    recipe = run.recipe.get("name", name)
    facts += [f"recipe {recipe}"] if recipe != name else []
    results = run.results.get("results", [])[:MAX_HEADLINES]
    summary = tag("p", *(tag("span", fact) for fact in facts if fact), cls="summary")
    heading = tag("div", tag("p", "mmgpt run report", cls="eyebrow"), _state(run), cls="top")
    cards = tag("div", *(_headline(result) for result in results), cls="headlines") if results else None
    return tag("header", heading, tag("h1", name), summary, cards)


def _state(run: _Run) -> Markup:
    if (run.folder / "final" / "config.json").is_file():
        return tag("span", "finished", cls="state good")
    begun = [stage for stage in run.stages if stage.steps]
    if not begun:
        return tag("span", "not finished: no step logged", cls="state bad")
    last = begun[-1]
    of = f" of {last.planned:,}" if last.planned else ""
    return tag("span", f"not finished: {last.name}, step {last.done:,}{of}", cls="state bad")


def _guesses(result: Record, metric: str) -> dict[str, Record]:
    """The scores that need no media: of the best text-only guess, and of the model without them."""
    blind = result.get("blind") or {}
    both = {"text-only guess": blind.get("text_only", {}).get(metric), "blind": blind.get(metric)}
    return {name: score for name, score in both.items() if score}


def _headline(result: Record) -> Markup:
    name = next(iter(result["metrics"]))
    metric, score, guesses = metric_named(name), result["metrics"][name], _guesses(result, name)
    rows = {"model": score, **guesses}
    bars = [
        tag(
            "li",
            tag("span", whose),
            tag("span", tag("i", style=f"width:{_width(one['value'])}"), cls="track") if metric.in_percent else None,
            tag("b", _figure(metric, one["value"])),
            cls="ours" if one is score else "guess",
        )
        for whose, one in rows.items()
    ]
    unit = tag("small", metric.unit.strip()) if metric.unit else None
    number = tag("p", metric.written(score["value"]), unit, cls="number")
    lower = "" if metric.higher_is_better else ", lower is better"
    title = tag("h3", _words(result["task"]), tag("small", _words(name) + _shots(result) + lower))
    return tag("article", title, number, _verdict(metric, score, guesses), tag("ul", *bars, cls="bars"), cls="headline")


def _shots(result: Record) -> str:
    count = result.get("shots", 0)
    return f", {count} shot{'s' if count != 1 else ''}" if count else ""


def _verdict(metric: Metric, score: Record, guesses: Mapping[str, Record]) -> Markup:
    if not guesses:
        return tag("p", "no score without media to compare with", cls="verdict")
    best = metric.best(guess["value"] for guess in guesses.values())
    gain = metric.written(score["value"] - best, signed=True) + (" points" if metric.in_percent else "")
    if min(metric.gain(end, best) for end in score["ci95"]) > 0:
        return tag("p", f"{gain} from the media", cls="verdict good")
    return tag("p", f"{gain}: not clearly above guessing", cls="verdict bad")


def _scores(run: _Run) -> Markup:
    results = run.results.get("results", [])
    if not results:
        tasks = ",".join(run.recipe.get("tasks", [])) or "TASK"
        command = [
            "mmgpt",
            "eval",
            str(run.folder),
            "--tasks",
            tasks,
            "--out",
            str(run.evaluation),
            "--blind",
        ]
        return _section("Scores", _note("Not evaluated yet."), tag("pre", shlex.join(command), cls="command"))
    rows = []
    for result in results:
        for name, score in result["metrics"].items():
            metric, guesses = metric_named(name), _guesses(result, name)
            cells = [guesses.get(whose) for whose in ("blind", "text-only guess")]
            low, high = map(metric.written, score["ci95"])
            rows.append(
                tag(
                    "tr",
                    tag("th", _words(result["task"]), tag("small", _words(name) + _shots(result)), scope="row"),
                    tag("td", f"{result['n']:,}", cls="n"),
                    tag("td", tag("b", _figure(metric, score["value"])), cls="n"),
                    tag("td", f"{low} \N{EN DASH} {high}", cls="n soft"),
                    *(tag("td", _figure(metric, c["value"]) if c else "\N{EN DASH}", cls="n") for c in cells),
                    tag("td", _duration(result["seconds"]), cls="n soft"),
                )
            )
    names = ["task", "n", "score", "95 % interval", "blind", "text-only", "time"]
    hint = (
        "Blind: the same prompts with the media removed. Text-only: the best answer to each question's "
        "words, found in training data. Only a score better than both shows that the media are used."
    )
    return _section("Scores", _table(names, tag("tbody", *rows)), hint=hint)


def _table(names: Sequence[str], *bodies: Markup) -> Markup:
    """A table whose first column holds words and the rest numbers."""
    heads = (tag("th", name, scope="col", cls="n" if number else None) for number, name in enumerate(names))
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), *bodies), cls="wide")


def _curves(run: _Run) -> Markup:
    keys = dict.fromkeys(key for stage in run.stages for record in stage.steps for key in record)
    colours = {key: n for n, key in enumerate((key for key in keys if key.startswith("loss/")), start=1)}
    stages = [_stage_curves(number, stage, colours) for number, stage in enumerate(run.stages, start=1)]
    return _section("Curves", *stages)


def _stage_curves(number: int, stage: _Stage, colours: Mapping[str, int]) -> Markup:
    planned = f" of {stage.planned:,}" if stage.planned > stage.done else ""
    facts = [stage.objective, f"{stage.done:,}{planned} steps", _duration(stage.seconds) if stage.steps else ""]
    small = tag("small", " · ".join(filter(None, facts)))
    title = tag("h3", tag("span", str(number), cls="count"), stage.name, small)
    if not stage.steps:
        return tag("div", title, _note("No step logged."), cls="stage")
    sources = [Series(key.removeprefix("loss/"), stage.values(key), number) for key, number in colours.items()]
    sources = [source for source in sources if source.points]
    lines = [Series("all", stage.values("loss")), *(sources if len(sources) > 1 else [])]
    loss = line_chart("loss", lines, is_tall=True, write=lambda value: f"{value:.3f}")
    rates = line_chart("learning rate", [Series("rate", stage.values("learning_rate"))], scale="zero")
    norms = line_chart("gradient norm", [Series("norm", stage.values("grad_norm"))])
    speeds = line_chart("tokens a second", [Series("tokens", stage.values("tokens_per_second"))], scale="zero")
    return tag(
        "div",
        title,
        tag("div", loss, tag("div", rates, norms, speeds, cls="small"), cls="charts"),
        cls="stage",
    )


def _freeze_tables(run: _Run) -> Markup:
    bodies = []
    for stage in run.stages:
        rows = [tag("tr", tag("th", stage.name, scope="rowgroup", colspan=5), cls="group")]
        for part in stage.parts:
            share = part["trained"] / part["parameters"] if part["parameters"] else 0.0
            track = tag("span", tag("i", style=f"width:{_width(share)}"), cls="track")
            cells = (
                tag("td", f"{part['parameters']:,}", cls="n"),
                tag("td", tag("div", track, _trained(share), cls="trained"), cls="n"),
                tag("td", short(part["learning_rate"]) if share else "\N{EN DASH}", cls="n"),
                tag("td", size(part["bytes"]), cls="n"),
            )
            name = tag("th", part["part"], scope="row")
            rows.append(tag("tr", name, *cells, cls=None if share else "soft"))
        if stage.parts:
            bodies.append(tag("tbody", *rows))
    if not bodies:
        return _section("What trained", _note("No stage has begun."))
    names = ["part", "parameters", "trained", "peak learning rate", "memory"]
    hint = "Memory: weights, gradients and optimizer states, without activations."
    return _section("What trained", _table(names, *bodies), hint=hint)


def _trained(share: float) -> str:
    return tag("span", f"{100 * share:.0f} %" if share else "frozen")


def _samples(run: _Run) -> Markup:
    groups = []
    for result in run.results.get("results", []):
        task, shots = result["task"], result.get("shots", 0)
        file = run.evaluation / result.get("samples", f"samples-{task}-{shots}.jsonl")
        groups.append(gallery(file, _words(task) + _shots(result)))
    if not groups:
        return _section("Samples", _note("None yet: the run has not been evaluated."))
    return _section("Samples", *groups, hint="Wrong ones first, then right ones, spread over the whole task.")


def _recipe(run: _Run) -> Markup:
    again = ["mmgpt", "train", str(run.folder / "config.yaml"), "--out", f"{run.folder}-again"]
    known = run.results.get("environment")
    where = "Environment of the evaluation" if known else "Environment in which this page was written"
    named = (known or environment()).items()
    facts = [item for name, value in named for item in (tag("dt", _words(name)), tag("dd", str(value)))]
    yaml = tag("details", tag("summary", "config.yaml, with every default"), tag("pre", run.text), cls="yaml")
    return _section(
        "Recipe",
        tag("h3", "The command that repeats this run"),
        tag("pre", tag("code", shlex.join(again)), cls="command"),
        yaml if run.text else _note("The run holds no config.yaml."),
        tag("h3", where),
        tag("dl", *facts, cls="facts"),
    )


def _footer(run: _Run) -> Markup:
    log = run.folder / "log.jsonl"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(log.stat().st_mtime)) if log.is_file() else ""
    return tag("footer", f"{run.folder}" + (f" · last step logged {when}" if when else ""))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(metric: Metric, value: float) -> str:
    return metric.written(value) + metric.unit


def _width(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

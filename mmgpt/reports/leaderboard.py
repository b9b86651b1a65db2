"""Several evaluations as one HTML page that needs nothing else: a table to sort, and the answers behind each score."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmgpt.config import UserError
from mmgpt.evaluation.metrics import metric_named
from mmgpt.evaluation.results import Folder, open_folder
from mmgpt.files import write_file
from mmgpt.reports.gallery import MAX_CARDS, gallery
from mmgpt.reports.html import Markup, html_page, tag

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th[aria-sort]")];
  for (const head of heads) head.querySelector("button").addEventListener("click", () => {
    const first = head.dataset.first, now = head.getAttribute("aria-sort");
    const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
    const at = Number(head.dataset.column), sign = next === "ascending" ? 1 : -1, body = table.tBodies[0];
    const value = row => row.cells[at].dataset.value ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (head.dataset.words ? x.localeCompare(y, undefined, {numeric: true}) : x - y);
    });
    body.append(...rows);
  });
}
"""

Record = dict[str, Any]


class Column(NamedTuple):
    """What can be compared over models: a metric of a version of a task with so many shots."""

    task: str
    version: int
    shots: str
    metric: str


@dataclass(frozen=True)
class Cell:
    """A model's score in a column, and the result that it is part of."""

    score: Record
    result: Record
    panel: str  # the id of the answers behind it


@dataclass(frozen=True)
class Board:
    """What the page shows; `majority_prompt_hash` is of the prompts that most models were asked in a column."""

    folders: list[Folder]
    labels: list[str]
    columns: list[Column]
    cells: dict[tuple[int, Column], Cell]
    majority_prompt_hash: dict[Column, str]

    def of(self, column: Column) -> Iterator[Cell]:
        """The cells of a column."""
        return (self.cells[row, column] for row in range(len(self.folders)) if (row, column) in self.cells)

    def best(self, column: Column) -> float:
        """The best value of the models that were asked the usual prompts."""
        values = [cell.score["value"] for cell in self.of(column) if not self.has_other_prompts(column, cell)]
        return metric_named(column.metric).best(values)

    def has_other_prompts(self, column: Column, cell: Cell) -> bool:
        """Whether this model was asked something else than most."""
        return bool(cell.result["prompt_sha256"] != self.majority_prompt_hash[column])


def write_leaderboard(folders: Sequence[str | Path], out: str | Path, *, samples: int = MAX_CARDS) -> Path:
    """Write the page.

    Args:
        folders: of evaluations, as `mmgpt eval --out` writes them.
        out: the file.
        samples: the most answers shown behind each score.
    Raises:
        UserError: if a folder holds no results.
    """
    board = _board([open_folder(folder) for folder in dict.fromkeys(map(Path, folders))])
    page = html_page(
        "mmgpt leaderboard", _header(board), tag("main", _table(board), *_panels(board, samples)), script=SCRIPT
    )
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, "<!doctype html>\n" + page + "\n", errors="replace")
    return file


def _board(folders: list[Folder]) -> Board:
    cells: dict[tuple[int, Column], Cell] = {}
    hashes: dict[Column, Counter[str]] = {}
    for row, folder in enumerate(folders):
        for number, result in enumerate(folder.results):
            for metric, score in result["metrics"].items():
                if not isinstance(score, dict) or not isinstance(score.get("value"), int | float):
                    continue  # a metric that is reported as absent
                column = Column(result["task"], result["version"], str(result["shots"]), metric)
                cells[row, column] = Cell(score, result, f"m{row}-{number}")
                hashes.setdefault(column, Counter())[result["prompt_sha256"]] += 1
    if not cells:
        raise UserError("the evaluations hold no scores; evaluate with at least one task and metric")
    majority_prompt_hash = {column: counted.most_common(1)[0][0] for column, counted in hashes.items()}
    return Board(folders, _labels(folders), list(hashes), cells, majority_prompt_hash)


def _labels(folders: list[Folder]) -> list[str]:
    """Names of models, with the folder's where two have the same."""
    counts = Counter(folder.model for folder in folders)
    return [f"{f.model} ({f.path})" if counts[f.model] > 1 else f.model for f in folders]


def _header(board: Board) -> Markup:
    tasks = {(column.task, column.version) for column in board.columns}
    asked = sum(result["n"] for folder in board.folders for result in folder.results)
    facts = [f"{len(board.folders)} models", f"{len(tasks)} tasks", f"{asked:,} answers"]
    return tag(
        "header",
        tag("div", tag("p", "mmgpt evaluation", cls="eyebrow"), cls="top"),
        tag("h1", "Leaderboard"),
        tag("p", *(tag("span", fact) for fact in facts), cls="summary"),
    )


def _table(board: Board) -> Markup:
    tops, heads = [tag("th", "", scope="col")], [_head("model", 0, words=True)]
    for number, column in enumerate(board.columns, start=1):
        before = board.columns[number - 2] if number > 1 else None
        if before is None or before[:3] != column[:3]:
            width = sum(other[:3] == column[:3] for other in board.columns)
            tops.append(tag("th", _task_words(column), tag("small", _shots(column)), scope="colgroup", colspan=width))
        heads.append(_head(_words(column.metric), number, higher=metric_named(column.metric).higher_is_better))
    rows = [_row(board, row) for row in sorted(range(len(board.folders)), key=lambda row: _place(board, row))]
    guesses = _guesses(board)
    table = tag(
        "table",
        tag("thead", tag("tr", *tops, cls="tasks"), tag("tr", *heads)),
        tag("tbody", *rows),
        tag("tfoot", guesses) if guesses else None,
        cls="sortable board",
    )
    hint = (
        "Under each score its 95 % interval. The best of a column is bold; marked with a dot are those whose interval "
        "reaches it. Choose a score to see the answers behind it, wrong ones first."
    )
    odd = any(board.has_other_prompts(column, cell) for column in board.columns for cell in board.of(column))
    note = "† asked other prompts or other samples than most in this column: not to be compared."
    return tag(
        "section",
        tag("h2", "Scores"),
        tag("p", hint, cls="hint"),
        tag("div", table, cls="wide"),
        tag("p", note, cls="hint odd") if odd else None,
        id="scores",
    )


def _place(board: Board, row: int) -> tuple[bool, float]:
    """The best of the first column first; last who has no score there that can be compared."""
    column = board.columns[0]
    cell = board.cells.get((row, column))
    if cell is None or board.has_other_prompts(column, cell):
        return True, 0.0
    return False, -metric_named(column.metric).gain(cell.score["value"], 0.0)


def _head(name: str, column: int, *, words: bool = False, higher: bool = True) -> Markup:
    arrow = None if words or higher else tag("small", "lower is better")
    return tag(
        "th",
        tag("button", name, type="button"),
        arrow,
        scope="col",
        cls=None if words else "n",
        aria_sort="none",
        data_column=column,
        data_words="1" if words else None,
        data_first="ascending" if words or not higher else "descending",
    )


def _row(board: Board, row: int) -> Markup:
    folder, label = board.folders[row], board.labels[row]
    small = tag("small", str(folder.path), title=str(folder.path))
    cells = [_score(board, column, board.cells.get((row, column))) for column in board.columns]
    return tag("tr", tag("th", tag("b", label), small, scope="row", data_value=label), *cells)


def _score(board: Board, column: Column, cell: Cell | None) -> Markup:
    if cell is None:
        return tag("td", "\N{EN DASH}", cls="n soft")
    value, (low, high) = cell.score["value"], cell.score["ci95"]
    is_odd, best = board.has_other_prompts(column, cell), board.best(column)
    kind = "odd" if is_odd else "best" if value == best else "near" if low <= best <= high else ""
    marks = tag("sup", "†") if is_odd else None
    interval = f"{_figure(column.metric, low)} \N{EN DASH} {_figure(column.metric, high)}"
    said = f"{cell.result['n']:,} samples, {interval}"
    link = tag("a", tag("b", _figure(column.metric, value)), marks, href=f"#{cell.panel}", title=said)
    bar = _bar(low, value, high) if metric_named(column.metric).in_percent else None
    shown = value if math.isfinite(value) else ""
    return tag("td", link, bar, tag("small", interval), cls=f"n {kind}".strip(), data_value=shown)


def _bar(*ends: float) -> Markup:
    """From 0 to 100 %: the interval as a band, the value as a tick in it; error rates may be above."""
    low, value, high = (min(max(end, 0.0), 1.0) for end in ends)
    band = f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"
    return tag(
        "span", tag("i", style=band), tag("u", style=f"left:{100 * value:.1f}%"), cls="range", aria_hidden="true"
    )


def _guesses(board: Board) -> Markup | None:
    """The best text-only guess of each column, as the line that a model has to be above."""
    cells = []
    for column in board.columns:
        blinds = ((cell.result.get("blind") or {}).get("text_only", {}) for cell in board.of(column))
        found = [blind[column.metric]["value"] for blind in blinds if column.metric in blind]
        best = metric_named(column.metric).best(found) if found else None
        cells.append(tag("td", "\N{EN DASH}" if best is None else _figure(column.metric, best), cls="n"))
    if all("\N{EN DASH}" in cell for cell in cells):
        return None
    small = tag("small", "best answer to the same words in training data")
    return tag("tr", tag("th", "no media: guess from the words", small, scope="row"), *cells)


def _panels(board: Board, samples: int) -> Iterator[Markup]:
    """The answers behind the scores of a model on a task, hidden until their score is chosen."""
    for row, folder in enumerate(board.folders):
        panels = {cell.panel: column for (at, column), cell in board.cells.items() if at == row}
        for panel, column in panels.items():
            result = next(cell.result for (at, _), cell in board.cells.items() if at == row and cell.panel == panel)
            title = f"{_task_words(column)}, {_shots(column)}"
            file = folder.samples_file(column.task, result["shots"])
            back = tag("a", "back to the scores", href="#scores", cls="back")
            heading = tag("div", tag("h2", board.labels[row]), back, cls="top")
            answers = gallery(file, title, samples) if samples else None
            yield tag("section", heading, _facts(result), answers, id=panel, cls="panel")


def _facts(result: Record) -> Markup:
    """All scores of a result, and those with the media removed."""
    blind = result.get("blind") or {}
    facts = []
    for metric, score in result["metrics"].items():
        if isinstance(score, dict) and "value" in score:
            removed = f", {_figure(metric, blind[metric]['value'])} with the media removed" if metric in blind else ""
            facts.append(f"{_words(metric)} {_figure(metric, score['value'])}{removed}")
    return tag("p", " · ".join([*facts, f"{result['n']:,} samples"]), cls="hint")


def _task_words(column: Column) -> str:
    return _words(column.task) + (f" v{column.version}" if column.version != 1 else "")


def _shots(column: Column) -> str:
    return f"{column.shots} shot{'' if column.shots == '1' else 's'}"


def _figure(metric: str, value: float) -> str:
    return metric_named(metric).written(value)


def _words(name: str) -> str:
    return name.replace("_", " ")

"""What a training shows: the freeze table of each stage, and in a terminal a bar with the loss.

Where there is no terminal (a pipe, a file, a scheduler), each line of the log is a plain line instead of the bar.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mmgpt.training.warm_start import describe


class TrainingDisplay:
    """A context manager whose `on_record` is given to `train`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or error_console()
        self.is_plain = not self.console.is_interactive
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}
        self.paces: dict[str, _Pace] = {}

    def __enter__(self) -> Self:
        return self  # bars start with the first task: an error before it is to stand alone

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars.tasks:
            self.bars.stop()

    def on_record(self, record: dict[str, Any]) -> None:
        """Show one line of the log, or a tick."""
        event, stage = record.get("event"), record["stage"]
        if event == "stage":
            self.bars.console.print(parameter_table_view(stage, record))
        elif event == "pretrained":
            for part, origin in record["parts"].items():
                told = f"{part} begins from {origin['from']}: {origin['parameters']:,} parameters"
                self.bars.console.print(told, markup=False, highlight=False)
        elif event == "start":
            self.bars.console.print(describe(record), markup=False, highlight=False)
        elif event == "skipped":
            told = f"{stage}: skipped a sample: {record['reason']}"
            self.bars.console.print(told, style="yellow", markup=False, highlight=False)
        elif event == "tick":
            self._tick(stage, record)
        elif stage in self.paces:
            self.console.print(self.paces[stage].told(stage, record), markup=False, highlight=False, soft_wrap=True)
        elif stage in self.tasks:
            told = f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s"
            self.bars.update(self.tasks[stage], told=told)

    def _tick(self, stage: str, record: dict[str, Any]) -> None:
        if self.is_plain:
            self.paces.setdefault(stage, _Pace(record["of"], record["step"] - 1))
            return
        if stage not in self.tasks:
            self.bars.start()
            self.tasks[stage] = self.bars.add_task(stage, total=record["of"], told="")
        self.bars.update(self.tasks[stage], completed=record["step"])


def error_console() -> Console:
    """Standard error; a file or a pipe is no narrow terminal."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=120)


@dataclass
class _Pace:
    """How long the steps of a stage take, since this process began with it."""

    of: int
    begun: int  # steps before
    seconds: float = 0.0

    def told(self, stage: str, record: dict[str, Any]) -> str:
        """A line of the log in words."""
        step = record["step"]
        self.seconds += record["seconds"]
        left = self.seconds / (step - self.begun) * (self.of - step)
        speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        return f"{stage}  step {step:,}/{self.of:,}  loss {record['loss']:.3f}  {speed}  {in_clock(left)} left"


def in_clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 5:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def parameter_table_view(stage: str, record: dict[str, Any]) -> Table:
    """What trains in a stage: part, parameters, peak learning rate, memory of weights, gradients and optimizer."""
    title = f"{stage} ({record['objective']})"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("part", "parameters", "trained", "learning rate", "memory"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in record["parts"]:
        trained = (
            "all" if row["trained"] == row["parameters"] else f"{row['trained']:,}" if row["trained"] else "frozen"
        )
        rate = f"{row['learning_rate']:g}" if row["trained"] else "-"
        if row["trained"] and row["lowest_rate"] < row["learning_rate"]:
            rate = f"{row['lowest_rate']:.3g} to {rate}"
        style = None if row["trained"] else "dim"
        table.add_row(
            row["part"],
            f"{row['parameters']:,}",
            trained,
            rate,
            f"{row['bytes'] / 2**20:.1f} MB",
            style=style,
        )
    return table

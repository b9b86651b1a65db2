"""What a training shows in the terminal: the freeze table of each stage and a bar with the loss."""

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

from mmgpt.training.warm_start import told_in_words


class TrainingDisplay:
    """A context manager whose `on_record` is given to `train`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
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
            self.bars.console.print(freeze_table(stage, record))
        elif event == "pretrained":
            for part, origin in record["parts"].items():
                told = f"{part} begins from {origin['from']}: {origin['parameters']:,} parameters"
                self.bars.console.print(told, markup=False, highlight=False)
        elif event == "start":
            self.bars.console.print(told_in_words(record), markup=False, highlight=False)
        elif event == "skipped":
            told = f"{stage}: skipped a sample: {record['reason']}"
            self.bars.console.print(told, style="yellow", markup=False, highlight=False)
        elif event == "tick":
            if stage not in self.tasks:
                self.bars.start()
                self.tasks[stage] = self.bars.add_task(stage, total=record["of"], told="")
            self.bars.update(self.tasks[stage], completed=record["step"])
        elif stage in self.tasks:
            told = f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s"
            self.bars.update(self.tasks[stage], told=told)


def freeze_table(stage: str, record: dict[str, Any]) -> Table:
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

"""`mmgpt data`: what a recipe's data will be to the model."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from mmgpt.evaluation.data_check import Check
    from mmgpt.evaluation.data_stats import Record

app = typer.Typer(help="Look at a recipe's data as the model will get it.", no_args_is_help=True)
out_console = Console()
SHOWN_KEYS = 3  # of a group of findings

Recipe = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with mmgpt.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted keys, as in model.decoder.context=256.")]
Stage = Annotated[str | None, typer.Option(help="Only this stage.")]
DataRoot = Annotated[Path, typer.Option(help="Folder that the paths in the recipe are relative to.")]
Run = Annotated[Path | None, typer.Option(help="A run of this recipe, to take its tokenizer; else one is trained.")]

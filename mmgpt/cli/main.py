"""The command line: arguments in, one public function called, a table out.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong, 130 stopped by Ctrl-C with everything saved.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from typer.core import TyperCommand

from mmgpt.cli import compare, data, score
from mmgpt.cli.console import out_console
from mmgpt.cli.eval import Bars, DataRoot, Device, PlainBars, evaluate, score_table
from mmgpt.config import UserError

if TYPE_CHECKING:
    from mmgpt.applications.pipeline import Finished

app = typer.Typer(
    help="Train, evaluate and prompt multimodal models: text, pictures and sounds in, text out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(score.app, name="score")
app.command()(compare.compare)
app.command()(compare.leaderboard)

Checkpoint = Annotated[
    Path, typer.Argument(help="A run, a checkpoint, or an exported model folder.", show_default=False)
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit of the hub.")]
DType = Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, or auto for what is stored.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens of an answer.")]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/quickstart"),
    device: Device = "auto",
) -> None:
    """Train a small model that sees and hears, in minutes on two cores: stages, scores, answers and a report."""
    finished = _run_recipe("quickstart", [], out, Path("."), device)
    _show_answers(finished)
    _show_where(finished)
    if finished.examples:
        richest = max(finished.examples, key=lambda one: len(one.files))
        out_console.print(f"ask it:  {richest.command(finished.folder)}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one that comes with mmgpt.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Dotted keys, as in stages.instruct.steps=10.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the run goes; runs/NAME if not given.")] = None,
    data_root: DataRoot = Path("."),
    device: Device = "auto",
) -> None:
    """Train a recipe's stages, score its tasks and write a report. The same command goes on where it was stopped."""
    _show_where(_run_recipe(config, overrides or [], out, data_root, device))


app.command(name="eval")(evaluate)


class _Typed(TyperCommand):
    """A command that keeps the names of its options in the order in which they were typed, in `ctx.meta["typed"]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        *_, typed = self.make_parser(ctx).parse_args(list(args))
        ctx.meta["typed"] = [parameter.name for parameter in typed]
        return super().parse_args(ctx, args)


@app.command(cls=_Typed)
def ask(
    context: typer.Context,
    checkpoint: Checkpoint,
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    image: Annotated[
        list[str] | None,
        typer.Option(help="A picture, a file or an http(s) address; repeat for several. Media go in the order typed."),
    ] = None,
    audio: Annotated[list[str] | None, typer.Option(help="A sound; repeat for several.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="A video; repeat for several.")] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(help='Answer with one of these: "yes, no", a comma within double quotes; or repeat it for each.'),
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Device = "auto",
) -> None:
    """Ask one question about pictures, sounds and videos, several in any order, or about nothing but itself."""
    from mmgpt.datasets.media import MEDIA
    from mmgpt.datasets.sample import Message
    from mmgpt.generation.assistant import load
    from mmgpt.inputs.choices import parse_choices

    given = {kind: iter(paths or []) for kind, paths in (("image", image), ("audio", audio), ("video", video))}
    media: list[Any] = [MEDIA[kind](next(given[kind])) for kind in context.meta["typed"] if kind in given]
    assistant = load(checkpoint, device=device)
    if choices:
        options = parse_choices(choices)
        choice = assistant.choose([Message.of("user", *media, question)], options)
        for option, logprob in zip(options, choice.logprobs, strict=True):
            out_console.print(
                f"{'>' if option == choice.text else ' '} {option}  {logprob:.3f}",
                markup=False,
                highlight=False,
            )
        return
    reply = assistant.ask(*media, question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    out_console.print(reply.text, markup=False, highlight=False)


@app.command()
def chat(
    checkpoint: Checkpoint,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    device: Device = "auto",
) -> None:
    """Talk to a model about pictures, sounds and videos.

    /image PATH, /audio PATH or /video PATH adds one to the next question, /system TEXT says how to answer, /save FILE
    adds the talk to a file of messages, /new starts over, /quit or Ctrl-D ends.
    """
    from mmgpt.cli.chat import talk
    from mmgpt.generation.assistant import load

    talk(load(checkpoint, device=device), out_console, max_new_tokens=max_new_tokens, temperature=temperature)


@app.command()
def convert(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    to: Annotated[str, typer.Option(help="mmgpt, hf-lm, hf-llava, hf-smolvlm or hf-qwen2-audio.")] = "mmgpt",
    source: Annotated[
        str | None, typer.Option("--from", help="The form it has now; found by itself if not given.")
    ] = None,
    revision: Revision = None,
    dtype: DType = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Write weights in few bits: int8, int4 or int8-dynamic (inputs too).")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="The linear layers to quantise, as globs with commas between them.")
    ] = "decoder.blocks.*",
) -> None:
    """Write a model in a form that others read, or one of theirs in ours. The result is verified before it is there.

    hf-lm: a language model in its family's files. hf-llava, hf-smolvlm (Idefics3), hf-qwen2-audio: for transformers and
    vLLM. What a form has no place for is refused, with the forms that have.
    """
    from mmgpt.checkpoints.convert import convert as run

    folder = run(
        checkpoint,
        out,
        to=to,
        source=source,
        revision=revision,
        dtype=dtype,
        quantize=quantize,
        layers=layers.split(","),
    )
    out_console.print(f"{to}: {folder}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def push(
    checkpoint: Checkpoint,
    repository: Annotated[str, typer.Argument(help="organisation/name on the Hugging Face hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Revision = None,
) -> None:
    """Upload a model with its card to the Hugging Face hub, where mmgpt.load("organisation/name") finds it."""
    from mmgpt.checkpoints.hub import push as run
    from mmgpt.checkpoints.save_load import find_model

    address = run(find_model(checkpoint), repository, private=private, revision=revision)
    out_console.print(address, markup=False, highlight=False, soft_wrap=True)


def _run_recipe(config: str, overrides: list[str], out: Path | None, data_root: Path, device: str) -> "Finished":
    from mmgpt.applications.pipeline import run_recipe
    from mmgpt.cli.training_display import TrainingDisplay
    from mmgpt.distributed import is_main

    out_console.quiet = not is_main()
    with TrainingDisplay() as display:
        finished = run_recipe(
            config,
            overrides=overrides,
            out=out,
            data_root=data_root,
            device=device,
            on_record=display.on_record,
            on_progress=(progress := PlainBars(display.console) if display.is_plain else Bars(display.bars)),
            on_score=progress.score,
        )
    if finished.evaluation:
        out_console.print(score_table(finished.evaluation))
    return finished


def _show_answers(finished: "Finished") -> None:
    """A few of the questions just scored: the files of their pictures and sounds, and what the model answered."""
    if not finished.examples:
        return
    out_console.print("[bold]answers about pictures and sounds it never saw or heard[/bold]\n", highlight=False)
    for one in finished.examples:
        files = "  ".join(map(str, one.files))
        out_console.print(f"  {files}", style="dim", markup=False, highlight=False, soft_wrap=True)
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_row("asked", escape(one.question), style="dim")
        lines.add_row("[green]right[/green]" if one.is_right else "[red]wrong[/red]", escape(one.prediction))
        if not one.is_right:
            lines.add_row("truth", escape(one.reference))
        out_console.print(Padding(lines, (0, 0, 1, 2)))


def _show_where(finished: "Finished") -> None:
    out_console.print(
        f"model:   {finished.folder / 'final'}\nreport:  {finished.report}", highlight=False, soft_wrap=True
    )


def _show_warning(
    terminal: Console, usual: Callable[..., None], message: Any, kind: type[Warning], *where: Any
) -> None:
    """A warning of ours as a note; any other as Python shows it, with the place that it came from."""
    if not kind.__module__.startswith("mmgpt."):
        usual(message, kind, *where)
        return
    terminal.print(f"note: {message}", style="yellow", markup=False, highlight=False)


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    from mmgpt.training.interrupt import Interrupted

    errors = Console(stderr=True, soft_wrap=True)
    warnings.showwarning = partial(_show_warning, errors, warnings.showwarning)
    try:
        app()
    except UserError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:
        errors.print(f"failed: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except Interrupted as stopped:
        errors.quiet = out_console.quiet
        errors.print(str(stopped), style="yellow", markup=False, highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()

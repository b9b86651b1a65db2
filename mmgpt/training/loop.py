"""The training loop: a recipe's stages, one after the other, resumable at any step."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmgpt.arguments import place
from mmgpt.checkpoints.pretrained_parts import embedding_rows, load_parts
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError, to_yaml
from mmgpt.datasets.readers.registry import open_source
from mmgpt.distributed import ProcessGroup, init_distributed
from mmgpt.files import read_json, write_file, write_folder
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.locking import hold
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.processor import warn_of_slow_bf16
from mmgpt.run_log import OnRecord, Record, RunLog
from mmgpt.training import lora, train_state
from mmgpt.training.data_mix import steps_of
from mmgpt.training.distill import open_teachers
from mmgpt.training.recipe import Recipe, open_recipe
from mmgpt.training.run_tokenizer import make_tokenizer, new_tokens
from mmgpt.training.same_data import same_data
from mmgpt.training.stage import StageRun
from mmgpt.training.warm_start import ChatSettings, chat_settings, warm_start


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    recipe: Recipe


def train(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | Path = ".",
    device: str = "auto",
    on_record: OnRecord = lambda record: None,
) -> Run:
    """Train a recipe's stages, or go on where the run in `out` stopped.

    The processes of a torchrun train together, to the weights of one; the first of them writes and tells.

    Args:
        recipe: a YAML file, the name of a recipe that comes with mmgpt, or a Recipe.
        overrides: dotted keys, as in `stages.instruct.steps=10`.
        out: the run's folder; `runs/NAME` if not given.
        data_root: the folder that paths in the recipe are relative to.
        device: `cpu`, `cuda`, or `auto`.
        on_record: called with every line of log.jsonl, and with a `tick` after every step.
    Raises:
        UserError: if recipe or data are wrong, `out` holds another recipe's run, another process trains there, or the
            data are no longer those that the run stopped with.
        OSError: if the disk is full or refuses; the run goes on from its last checkpoint when there is room again.
        Interrupted: after Ctrl-C or SIGTERM, when the run is saved.
    """
    recipe = open_recipe(recipe, overrides)
    run = Path("runs") / recipe.name if out is None else place("out", out)
    data_root = place("data_root", data_root)
    train_state.check_same_recipe(run, recipe)
    if not train_state.is_finished(run, [stage.name for stage in recipe.stages]):
        with init_distributed(device) as ranks, contextlib.ExitStack() as held:
            ranks.on_main(lambda: held.enter_context(hold(run / ".lock")))
            _train(recipe, run, data_root, ranks, on_record)
    return Run(run, recipe)


def _check_stages(recipe: Recipe, ranks: ProcessGroup) -> None:
    for stage in recipe.stages:
        if stage.batch_size < ranks.world_size:
            raise UserError(
                f"stage {stage.name}: batch_size={stage.batch_size} is less than the {ranks.world_size} processes that "
                "share each step; start fewer, or raise it"
            )
        if stage.lora:
            lora.import_peft()  # or say now that it is not installed
        if stage.precision == "bfloat16" and ranks.is_main:
            warn_of_slow_bf16(f"stages.{stage.name}.precision bfloat16", ranks.device, "write float32")


def _train(recipe: Recipe, run: Path, data_root: str | Path, ranks: ProcessGroup, on_record: OnRecord) -> None:
    _check_stages(recipe, ranks)
    names = [stage.name for stage in recipe.stages]
    start = train_state.newest(run, names)
    chat = chat_settings(recipe, start.folder if start else None)
    sources = {stage.name: [open_source(item, data_root) for item in stage.data] for stage in recipe.stages}
    data = same_data(sources, start, ranks)
    for stage in recipe.stages:
        steps_of(stage, sources[stage.name])  # data that end too soon are told now
    _keep_freed_memory()
    log = RunLog(run)

    def begin() -> None:
        made = None if (run / "tokenizer.json").is_file() else make_tokenizer(recipe, chat, sources)
        run.mkdir(parents=True, exist_ok=True)
        write_file(run / "config.yaml", to_yaml(recipe))
        if made:
            write_file(run / "tokenizer.json", made.core.to_str(pretty=True))
        log.cut(names, start.stage if start else 0, start.step if start else -1)

    ranks.on_main(begin)
    bundle = _make_model(recipe, run, chat, start)
    left = recipe.stages[start.stage if start else 0 :]
    paths = {stage.name: (stage.teacher, stage.distill) for stage in left if stage.teacher}
    teachers = open_teachers(paths, bundle, ranks.device)  # all now, so that one that does not suit is refused now
    for origin in [] if start else _load_origins(bundle, recipe):
        if ranks.is_main:
            told = {"stage": names[0], "step": 0, **origin}
            log.write(told)
            on_record(told)
    bundle.model.to(ranks.device)
    for number, stage in enumerate(left):
        at = start if number == 0 else None
        teacher = teachers.pop(stage.name, None)
        StageRun(recipe, stage, bundle, sources[stage.name], run, log, ranks, on_record, data, teacher).run(at)
    ranks.on_main(lambda: write_folder(run / "final", lambda draft: save_bundle(bundle, draft)))


def _make_model(recipe: Recipe, run: Path, chat: ChatSettings, start: train_state.ResumePoint | None) -> ModelBundle:
    """A model of the recipe's parts with random weights, and all that goes with it."""
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.load(run)
    known = read_json(start.folder / "config.json") if start else {}
    rows = known["vocab_size"] if start else embedding_rows(recipe.model, tokenizer)
    bundle = new_bundle(recipe.model, tokenizer, chat.template, rows)
    bundle.system, bundle.media_markup = chat.system, chat.media_markup
    bundle.new_tokens = tuple(known["new_tokens"]) if start else new_tokens(recipe, tokenizer)
    bundle.card, bundle.limits = recipe.card(), recipe.limits
    return bundle


def _load_origins(bundle: ModelBundle, recipe: Recipe) -> Iterator[Record]:
    """Give a fresh model the weights of the checkpoints and the model that the recipe begins from; a line for each."""
    parts = load_parts(bundle.model, bundle.new_tokens)
    if parts:
        yield {"event": "pretrained", "parts": parts, "new_tokens": len(bundle.new_tokens)}
    if recipe.init_from:
        yield warm_start(bundle, recipe.init_from)


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: given back, each step faults them in again and takes 15 % longer on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(2**31 - 1))  # M_MMAP_THRESHOLD
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD

"""The training loop: a recipe's stages, one after the other, resumable at any step."""

import contextlib
import ctypes
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from torch.optim import Optimizer

from mmgpt.arguments import place
from mmgpt.checkpoints.pretrained_parts import load_parts, rows_for
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError, to_yaml
from mmgpt.datasets.mixture import Position
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.source import Source
from mmgpt.distributed import Ranks, join_ranks
from mmgpt.files import read_json, write_file, write_folder
from mmgpt.inputs.dataloader import StepData, StepStream, load_steps
from mmgpt.inputs.rendered import HeadKind
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.locking import hold
from mmgpt.model.bundle import Bundle, new_bundle
from mmgpt.processor import warn_of_slow_bf16
from mmgpt.run_log import OnRecord, Record, RunLog
from mmgpt.training import checkpoint, lora
from mmgpt.training.distill import open_teacher
from mmgpt.training.ema import Average
from mmgpt.training.interrupt import Interrupted, stop_signals
from mmgpt.training.mixing import open_stream, steps_of
from mmgpt.training.optim import freeze_except, freeze_table, make_optimizers, set_rates, share_of_peak
from mmgpt.training.recipe import Recipe, StageConfig, open_recipe
from mmgpt.training.rows import hold_old_rows
from mmgpt.training.same_data import Data, same_data
from mmgpt.training.step import StepStats, train_step
from mmgpt.training.vocabulary import make_tokenizer, new_tokens
from mmgpt.training.warm_start import talk_of, warm_start

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, by name of the device
COUNTS = ("samples", "skipped", "trimmed")


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
    checkpoint.check_same_recipe(run, to_yaml(recipe))
    if not checkpoint.is_finished(run, [stage.name for stage in recipe.stages]):
        with join_ranks(device) as ranks, contextlib.ExitStack() as held:
            ranks.on_main(lambda: held.enter_context(hold(run / ".lock")))
            _train(recipe, run, data_root, ranks, on_record)
    return Run(run, recipe)


def _check_stages(recipe: Recipe, ranks: Ranks) -> None:
    for stage in recipe.stages:
        if stage.batch_size < ranks.world:
            raise UserError(
                f"stage {stage.name}: batch_size={stage.batch_size} is less than the {ranks.world} processes that "
                "share each step; start fewer, or raise it"
            )
        if stage.lora:
            lora.import_peft()  # or say now that it is not installed
        if stage.precision == "bfloat16" and ranks.is_main:
            warn_of_slow_bf16(f"stages.{stage.name}.precision bfloat16", ranks.device, "write float32")


def _train(recipe: Recipe, run: Path, data_root: str | Path, ranks: Ranks, on_record: OnRecord) -> None:
    _check_stages(recipe, ranks)
    names = [stage.name for stage in recipe.stages]
    start = checkpoint.newest(run, names)
    talk_of(recipe, start.folder if start else None)  # a start that is not there is told now
    sources = {stage.name: [open_source(item, data_root) for item in stage.data] for stage in recipe.stages}
    data = same_data(sources, start, ranks)
    for stage in recipe.stages:
        steps_of(stage, sources[stage.name])  # data that end too soon are told now
    _keep_freed_memory()
    log = RunLog(run)

    def begin() -> None:
        made = None if (run / "tokenizer.json").is_file() else make_tokenizer(recipe, sources)
        run.mkdir(parents=True, exist_ok=True)
        write_file(run / "config.yaml", to_yaml(recipe))
        if made:
            write_file(run / "tokenizer.json", made.core.to_str(pretty=True))
        log.cut(names, start.stage if start else 0, start.step if start else -1)

    ranks.on_main(begin)
    bundle = _make_model(recipe, run, start)
    for stage in recipe.stages:
        if stage.teacher:
            open_teacher(stage.teacher, stage.distill, bundle)  # one that does not suit is told now
    for origin in [] if start else _load_origins(bundle, recipe):
        if ranks.is_main:
            told = {"stage": names[0], "step": 0, **origin}
            log.write(told)
            on_record(told)
    bundle.model.to(ranks.device)
    for number, stage in enumerate(recipe.stages):
        if start and number < start.stage:
            continue
        at = start if start and number == start.stage else None
        _Stage(recipe, stage, bundle, sources[stage.name], run, log, ranks, on_record, data).run(at)
    ranks.on_main(lambda: write_folder(run / "final", lambda draft: save_bundle(bundle, draft)))


def _make_model(recipe: Recipe, run: Path, start: checkpoint.Position | None) -> Bundle:
    """A model of the recipe's parts with random weights, and all that goes with it."""
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.load(run)
    known = read_json(start.folder / "config.json") if start else {}
    template, system, wraps = talk_of(recipe, start.folder if start else None)
    rows = known["vocab_size"] if start else rows_for(recipe.model, tokenizer)
    bundle = new_bundle(recipe.model, tokenizer, template, rows)
    bundle.system, bundle.wraps = system, wraps
    bundle.new_tokens = tuple(known["new_tokens"]) if start else new_tokens(recipe, tokenizer)
    bundle.card, bundle.limits = recipe.card(), recipe.limits
    return bundle


def _load_origins(bundle: Bundle, recipe: Recipe) -> Iterator[Record]:
    """Give a fresh model the weights of the checkpoints and the model that the recipe begins from; a line for each."""
    parts = load_parts(bundle.model, bundle.new_tokens)
    if parts:
        yield {"event": "pretrained", "parts": parts, "new_tokens": len(bundle.new_tokens)}
    if recipe.start:
        yield warm_start(bundle, recipe.start)


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: given back, each step faults them in again and takes 15 % longer on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(2**31 - 1))  # M_MMAP_THRESHOLD
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD


@dataclass
class _Interval:
    """What has gathered since the last line of the log."""

    stats: list[StepStats] = field(default_factory=list)
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class _Stage:
    """One stage of a run."""

    def __init__(
        self,
        recipe: Recipe,
        stage: StageConfig,
        bundle: Bundle,
        sources: Sequence[Source],
        run: Path,
        log: RunLog,
        ranks: Ranks,
        on_record: OnRecord,
        data: Data,
    ) -> None:
        self.stage, self.bundle, self.folder = stage, bundle, run / stage.name
        self.log, self.ranks, self.on_record = log, ranks, on_record
        self.seed, self.noise = noise_seed(recipe, stage, 0), noise_seed(recipe, stage, ranks.rank)
        self.sources, self.data = sources, data
        self.totals: Counter[str] = Counter()
        self.position: Position | None = None  # of the next step's draws
        self.faults: list[str] = []
        self.steps = steps_of(stage, sources)
        self.share = share_of_peak(stage.schedule, self.steps)
        weights = stage.head_weights
        self.heads = {head.name: weights[head.kind] for head in recipe.model.heads if head.kind in weights}
        self.teacher = open_teacher(stage.teacher, stage.distill, bundle, ranks.device) if stage.teacher else None
        freeze_except(bundle.model, stage.train)
        self.held = hold_old_rows(bundle.model, stage.train, bundle.new_tokens)
        if stage.lora:
            torch.manual_seed(self.seed)
            lora.add_adapters(bundle.model, stage.lora)
        self.optimizers: list[Optimizer] = make_optimizers(bundle.model, stage)

    def run(self, at: checkpoint.Position | None) -> None:
        """Train from `at`, or from the start with the weights as they are."""
        averages = None
        if at:
            averages = checkpoint.load_checkpoint(self.bundle, self.optimizers, at.folder)
            state = read_json(at.folder / "trainer_state.json")
            self.totals.update(state["counts"])
            self.position = state["position"]
        self.ranks.share_weights(self.bundle.model)
        lora.check_magnitudes(self.bundle.model)
        self.average = Average(self.bundle.model, self.stage.ema, averages) if self.stage.ema else None
        step = at.step if at else 0
        if step < self.steps:
            self._train(step)
        self._finish()

    def _train(self, step: int) -> None:
        if step == 0:
            self._record(
                {
                    "event": "stage",
                    "step": 0,
                    "objective": self.stage.objective,
                    "of": self.steps,
                    "parts": freeze_table(self.bundle.model, self.stage, self.held, self.bundle.new_tokens),
                }
            )
        steps = load_steps(self._stream(step), self.stage.workers)
        interval = _Interval()
        with stop_signals() as asked_to_stop:
            while step < self.steps:
                before = time.perf_counter()
                data, learns = self._draw(steps)
                self.position = data.position
                interval.data_seconds += time.perf_counter() - before
                if learns:
                    interval.stats.append(self._update(data, step))
                    if self.average:
                        self.average.update()
                step += 1
                self._tell({"event": "tick", "step": step, "of": self.steps})
                stops = self.ranks.any(bool(asked_to_stop))
                if interval.stats and (step % self.stage.log_every == 0 or step == self.steps):
                    self._log(interval, data, step)
                    interval = _Interval()
                if stops or step % self.stage.save_every == 0 or step == self.steps:
                    self._save(step)
                if stops:
                    where = self.folder / f"checkpoint-{step}"
                    raise Interrupted(
                        f"stopped after step {step} of {self.stage.name}, saved {where}; the same command goes on"
                    )

    def _finish(self) -> None:
        """Leave a plain model behind, also where the last step was taken before a stop."""
        if self.average:
            self.average.become_weights()
        for hook in self.held.values():
            hook.remove()
        if self.stage.lora:
            self.ranks.on_main(lambda: lora.save_adapters(self.bundle, self.folder))
            lora.merge_adapters(self.bundle)

    def _stream(self, start: int) -> StepStream:
        ranks = self.ranks
        return open_stream(
            self.stage, self.sources, self.bundle.renderer, self.seed, start, ranks.rank, ranks.world, self.position
        )

    def _update(self, data: StepData, step: int) -> StepStats:
        torch.manual_seed(self.noise + step)
        set_rates(self.optimizers, self.share(step))
        self.bundle.model.train()
        return train_step(
            self.bundle.model,
            self.optimizers,
            data.batches,
            max_norm=self.stage.max_grad_norm,
            precision=self.stage.precision,
            step=step,
            ranks=self.ranks,
            sources=[source.name for source in self.sources],
            heads=self.heads,
            teacher=self.teacher,
        )

    def _draw(self, steps: Iterator[StepData]) -> tuple[StepData, bool]:
        """This rank's share of the next step, and whether any rank's share holds something to learn from."""
        data, error = StepData([], {}, {}), None
        try:
            data = next(steps)
        except UserError as found:
            error = found
        own = sum(data.counts.values(), Counter[str]())
        wrong, batches, *counts = self.ranks.sum(
            [error is not None, len(data.batches), *(own[name] for name in COUNTS)]
        )
        if wrong:
            self.ranks.raise_together(error)
        self._count(dict(zip(COUNTS, map(int, counts), strict=True)), data.faults)
        return data, batches > 0

    def _count(self, counts: dict[str, int], own_faults: list[str]) -> None:
        self.totals.update(counts)
        if counts["skipped"] and len(self.faults) < 3:
            faults = list(chain(*self.ranks.gather(own_faults)))
            if not self.faults:
                self._record({"event": "skipped", "step": 0, "reason": faults[0]})
            self.faults += faults[: 3 - len(self.faults)]
        skipped, samples = self.totals["skipped"], self.totals["samples"]
        if skipped > self.stage.max_skipped * max(samples, 1 / max(self.stage.max_skipped, 1e-9)):
            raise UserError(
                f"stage {self.stage.name}: {skipped} of {samples} samples could not be used, over "
                f"max_skipped={self.stage.max_skipped}; first: {'; '.join(self.faults)}"
            )

    def _log(self, interval: _Interval, data: StepData, step: int) -> None:
        seconds = time.perf_counter() - interval.started
        stats = interval.stats
        targets = sum(s.num_targets for s in stats)
        tokens = sum(s.num_tokens for s in stats)
        per_source: dict[str, list[float]] = {}
        for one in stats:
            for name, loss in (*one.source_losses.items(), *one.head_losses.items()):
                per_source.setdefault(name, []).append(loss)
        self._record(
            {
                "step": step,
                "loss": sum(s.loss * s.num_targets for s in stats) / targets,
                "grad_norm": stats[-1].grad_norm,
                "learning_rate": self.stage.learning_rate * self.share(step - 1),
                "epoch": {name: round(epochs, 3) for name, epochs in data.epochs.items()},
                "tokens_per_second": round(tokens / seconds, 1),
                "media_per_second": round(sum(s.num_media for s in stats) / seconds, 1),
                "seconds": round(seconds, 3),
                "data_time": round(interval.data_seconds / seconds, 4),
                "mfu": self._mfu(tokens / seconds),
                "skipped": self.totals["skipped"],
                "trimmed": self.totals["trimmed"],
                **{f"loss/{name}": sum(losses) / len(losses) for name, losses in per_source.items()},
            }
        )

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' bf16 peak, counting 6 FLOPs a decoder parameter and token; None where it is unknown."""
        if self.bundle.model.device.type != "cuda" or self.stage.objective in get_args(HeadKind):
            return None
        peaks = [peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()]
        parameters = sum(p.numel() for p in self.bundle.model.decoder.parameters())
        return round(6 * parameters * tokens_per_second / (peaks[0] * self.ranks.world), 4) if peaks else None

    def _record(self, record: Record) -> None:
        if self.ranks.is_main:
            self.log.write({"stage": self.stage.name, **record})
        self._tell(record)

    def _tell(self, record: Record) -> None:
        if self.ranks.is_main:
            self.on_record({"stage": self.stage.name, **record})

    def _save(self, step: int) -> None:
        folder = self.folder / f"checkpoint-{step}"
        state = {"stage": self.stage.name, "global_step": step, "counts": dict(self.totals), "position": self.position}
        state["data"] = self.data

        def write() -> None:
            averages = self.average.values if self.average else {}
            checkpoint.save_checkpoint(self.bundle, self.optimizers, folder, state, averages)
            checkpoint.keep_last(self.folder, self.stage.keep_last)

        self.ranks.on_main(write)


def noise_seed(recipe: Recipe, stage: StageConfig, rank: int) -> int:
    """What a rank's dropout and masks depend on in a stage: no two ranks may drop the same units in each step."""
    return zlib.crc32(f"{recipe.seed}/{stage.name}{f'/{rank}' if rank else ''}".encode())

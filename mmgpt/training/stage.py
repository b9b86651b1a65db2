"""One stage of a training: its data, what learns, its steps, its lines of the log and its checkpoints."""

import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch
from torch.optim import Optimizer

from mmgpt.checkpoints.feature_cache import cache_features
from mmgpt.config import UserError
from mmgpt.datasets.mixture import SamplerState
from mmgpt.datasets.source import Source
from mmgpt.distributed import ProcessGroup
from mmgpt.files import read_json
from mmgpt.inputs.dataloader import StepBatches, StepDataset, iterate_steps
from mmgpt.inputs.rendered import HeadKind
from mmgpt.model.bundle import ModelBundle
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.run_log import OnRecord, Record, RunLog
from mmgpt.training import lora, train_state
from mmgpt.training.data_mix import open_stream, steps_of
from mmgpt.training.distill import Teacher
from mmgpt.training.ema import EMA
from mmgpt.training.interrupt import Interrupted, stop_signals
from mmgpt.training.new_token_rows import freeze_old_rows
from mmgpt.training.optim import freeze_except, lr_schedule, make_optimizers, parameter_table, set_learning_rates
from mmgpt.training.recipe import Recipe, StageConfig
from mmgpt.training.same_data import Data
from mmgpt.training.step import StepStats, train_step

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, by name of the device
AUGMENTATIONS = ("augment", "warp", "speed", "noise_snr", "time_masks", "band_masks")  # fields of encoders
COUNTS = ("samples", "skipped", "trimmed")


@dataclass
class LogWindow:
    """What has gathered since the last line of the log."""

    stats: list[StepStats] = field(default_factory=list)
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class StageRun:
    """One stage of a run."""

    def __init__(
        self,
        recipe: Recipe,
        stage: StageConfig,
        bundle: ModelBundle,
        sources: Sequence[Source],
        run: Path,
        log: RunLog,
        ranks: ProcessGroup,
        on_record: OnRecord,
        data: Data,
        teacher: Teacher | None,
    ) -> None:
        self.stage, self.bundle, self.folder = stage, bundle, run / stage.name
        self.log, self.ranks, self.on_record = log, ranks, on_record
        self.seed, self.noise = dropout_seed(recipe, stage, 0), dropout_seed(recipe, stage, ranks.rank)
        self.sources, self.data = sources, data
        self.totals: Counter[str] = Counter()
        self.position: SamplerState | None = None  # of the next step's draws
        self.faults: list[str] = []
        self.steps = steps_of(stage, sources)
        self.share = lr_schedule(stage.schedule, self.steps)
        weights = stage.head_weights
        self.heads = {head.name: weights[head.kind] for head in recipe.model.heads if head.kind in weights}
        self.teacher = teacher
        freeze_except(bundle.model, stage.train)
        self.held = freeze_old_rows(bundle.model, stage.train, bundle.new_tokens)
        cache_features(bundle.model, _cached_modalities(bundle.model, stage))
        if stage.lora:
            torch.manual_seed(self.seed)
            lora.add_adapters(bundle.model, stage.lora)
        self.optimizers: list[Optimizer] = make_optimizers(bundle.model, stage)

    def run(self, at: train_state.ResumePoint | None) -> None:
        """Train from `at`, or from the start with the weights as they are."""
        averages = None
        if at:
            averages = train_state.load_checkpoint(self.bundle, self.optimizers, at.folder)
            state = read_json(at.folder / "trainer_state.json")
            self.totals.update(state["counts"])
            self.position = state["position"]
        self.ranks.broadcast_weights(self.bundle.model)
        lora.check_magnitudes(self.bundle.model)
        self.average = EMA(self.bundle.model, self.stage.ema, averages) if self.stage.ema else None
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
                    "parts": parameter_table(self.bundle.model, self.stage, self.held, self.bundle.new_tokens),
                }
            )
        steps = iterate_steps(self._stream(step), self.stage.workers)
        interval = LogWindow()
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
                    interval = LogWindow()
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
            self.average.copy_to_model()
        for hook in self.held.values():
            hook.remove()
        if self.stage.lora:
            self.ranks.on_main(lambda: lora.save_adapters(self.bundle, self.folder))
            lora.merge_adapters(self.bundle)

    def _stream(self, start: int) -> StepDataset:
        ranks = self.ranks
        return open_stream(
            self.stage,
            self.sources,
            self.bundle.renderer,
            self.seed,
            start,
            ranks.rank,
            ranks.world_size,
            self.position,
        )

    def _update(self, data: StepBatches, step: int) -> StepStats:
        torch.manual_seed(self.noise + step)
        set_learning_rates(self.optimizers, self.share(step))
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

    def _draw(self, steps: Iterator[StepBatches]) -> tuple[StepBatches, bool]:
        """This rank's share of the next step, and whether any rank's share holds something to learn from."""
        data, error = StepBatches([], {}, {}), None
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

    def _log(self, interval: LogWindow, data: StepBatches, step: int) -> None:
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
        return round(6 * parameters * tokens_per_second / (peaks[0] * self.ranks.world_size), 4) if peaks else None

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
            train_state.save_checkpoint(self.bundle, self.optimizers, folder, state, averages)
            train_state.keep_last(self.folder, self.stage.keep_last)

        self.ranks.on_main(write)


def _cached_modalities(model: MultimodalModel, stage: StageConfig) -> list[str]:
    """The modalities whose encoders' features a stage keeps: those of frozen encoders, if it keeps any.

    Raises:
        UserError: if it asks for it and no encoder is frozen, or one that is gets other media at each showing.
    """
    if not stage.cache_features:
        return []
    frozen = [m for m, encoder in model.encoders.items() if not any(p.requires_grad for p in encoder.parameters())]
    if not frozen:
        raise UserError(f"stage {stage.name}: cache_features: true, and no encoder is frozen; leave one out of train")
    for modality in frozen:
        config: Any = model.config.encoders[modality]
        for name in AUGMENTATIONS:
            if getattr(config, name, None):
                raise UserError(
                    f"stage {stage.name}: cache_features: true, and encoder {modality} has {name}, which makes other "
                    "media of a sample at each showing; leave one of the two out"
                )
    return frozen


def dropout_seed(recipe: Recipe, stage: StageConfig, rank: int) -> int:
    """What a rank's dropout and masks depend on in a stage: no two ranks may drop the same units in each step."""
    return zlib.crc32(f"{recipe.seed}/{stage.name}{f'/{rank}' if rank else ''}".encode())

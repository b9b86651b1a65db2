"""The stream of training steps: samples drawn in order, rendered, and cut into micro-batches.

Step k holds draws k * batch_size to (k + 1) * batch_size, whatever the number of ranks and workers, so the position
of a training in its data is one integer. Of W ranks, rank r takes every W-th draw of each step, from its r-th on.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.mixture import Order
from mmgpt.datasets.source import Source
from mmgpt.inputs.batch import Batch, collate, split_by_tokens
from mmgpt.inputs.chat import Objective, Renderer, TooLong


@dataclass(frozen=True)
class StepData:
    """What one optimizer step learns from, or a rank's share of it.

    Attributes:
        batches: micro-batches of similar lengths.
        counts: samples drawn, skipped and trimmed, by source: `{"easy_vqa": {"samples": 64, "skipped": 1}}`.
        epochs: how often each source has been gone through.
        faults: reasons of what was skipped.
    """

    batches: list[Batch]
    counts: dict[str, Counter[str]]
    epochs: dict[str, float]
    faults: list[str] = field(default_factory=list)


class StepStream(IterableDataset[StepData | UserError]):
    """StepData from step `start` on, endlessly; a fault of the user's data comes as the error itself, and ends it."""

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        renderer: Renderer,
        *,
        objective: Objective,
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        start: int = 0,
        word_dropout: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sources, self.renderer, self.objective = list(sources), renderer, objective
        self.order = Order([len(source) for source in sources], weights, seed)
        self.batch_size, self.micro_batch_tokens, self.start = batch_size, micro_batch_tokens, start
        self.word_dropout, self.rank, self.world = word_dropout, rank, world

    def __iter__(self) -> Iterator[StepData | UserError]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        draws = self.order.draw(self.start * self.batch_size)
        for step in range(self.start, 1 << 62):
            drawn = list(islice(draws, self.batch_size))
            if (step - self.start) % workers == mine:
                try:
                    data: StepData | UserError = self._step(drawn, step)
                except UserError as error:  # handed on as a value: torch wraps what a worker raises into its traceback
                    data = error
                yield data

    def _step(self, drawn: list[tuple[int, int]], step: int) -> StepData:
        rendered, faults = [], []
        counts = {source.name: Counter[str]() for source in self.sources}
        numbered = list(enumerate(drawn, start=step * self.batch_size))
        for number, (which, index) in numbered[self.rank :: self.world]:
            source = self.sources[which]
            counts[source.name]["samples"] += 1
            try:
                sample = source[index]
                for part in [sample] if self.objective == "respond" else sample.unbranched():
                    rendered.append(self.renderer.render(part, self.objective, number, self.word_dropout))
                    counts[source.name]["trimmed"] += rendered[-1].is_trimmed
            except (MediaError, TooLong) as error:
                counts[source.name]["skipped"] += 1
                faults.append(str(error))
        groups = split_by_tokens(rendered, self.micro_batch_tokens)
        batches = [collate(group, self.objective) for group in groups]
        return StepData(batches, counts, self._epochs(step + 1), faults)

    def _epochs(self, steps: int) -> dict[str, float]:
        samples = steps * self.batch_size
        shares = zip(self.sources, self.order.shares, strict=True)
        return {source.name: samples * share / len(source) for source, share in shares}


def load_steps(stream: StepStream, workers: int) -> Iterator[StepData]:
    """Iterate over a stream in `workers` processes (0: in this one), in the same order for any number of them.

    Raises:
        UserError: when it comes to a sample that is wrong, other than by a medium or its length.
    """
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    for data in loader:
        if isinstance(data, UserError):
            raise data
        yield data


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A shell's Ctrl-C and torchrun's SIGTERM go to a group of processes; the main one needs its workers to the end."""
    os.setpgrp()

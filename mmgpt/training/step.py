"""One optimizer update over micro-batches."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmgpt.distributed import SINGLE_PROCESS, ProcessGroup
from mmgpt.inputs.batch import Batch
from mmgpt.model.loss import Loss
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.training.distill import Teacher
from mmgpt.training.optim import check_finite


@dataclass(frozen=True)
class StepStats:
    """What a step tells, of all ranks together.

    Attributes:
        loss: what is optimised, in nats a target token, the weighted losses of heads included.
        head_losses: nats a pair, or a byte for ctc; `distill`: T^2 KL(teacher || student), nats a target.
        num_targets: target tokens; under an encoder's objective what its loss is divided by.
    """

    loss: float
    grad_norm: float
    source_losses: dict[str, float]
    head_losses: dict[str, float]
    num_targets: int
    num_tokens: int
    num_media: int


def train_step(
    model: MultimodalModel,
    optimizers: Sequence[Optimizer],
    batches: Sequence[Batch],
    *,
    max_norm: float,
    precision: str = "float32",
    step: int = 0,
    ranks: ProcessGroup = SINGLE_PROCESS,
    sources: Sequence[str] = (),
    heads: Mapping[str, float] | None = None,
    teacher: Teacher | None = None,
) -> StepStats:
    """Run one update over `batches` (gradient accumulation); all ranks call it, some perhaps without a batch.

    The loss is a sum over target tokens, divided once by the targets of the whole step: a mean for each
    micro-batch would make a token in a short answer weigh more than one in a long answer. To it are added the
    losses of `heads`, by name, each a sum over the pairs of the step divided by what they count, times its weight.
    `sources` names those that any rank's batches can hold. A `teacher` changes what a target token adds.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are left as they were.
    """
    heads = heads or {}
    counted = [sum(model.head_count(name, batch) for batch in batches) for name in heads]
    targets, *counted = map(int, ranks.sum([sum(batch.num_targets for batch in batches), *counted]))
    if targets == 0 and not any(counted):
        raise ValueError(f"no target tokens in {len(batches)} micro-batches; are all turns user turns?")
    counts = dict(zip(heads, counted, strict=True))
    figures = StepTotals([*heads, *(["distill"] if teacher else [])], sources)
    for batch in batches:
        with _autocast(model.device, precision):
            batch = batch.to(model.device)
            loss = model(batch, heads, teacher.targets(batch) if teacher else None)
            objective = loss.total / max(1, targets)
            for name, nats in loss.heads.items():
                objective = objective + nats * (heads[name] / counts[name])
        objective.backward()
        figures.add(batch, loss, objective.detach())
    ranks.all_reduce_gradients(model.parameters())
    learning = [p for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
    check_finite(model, grad_norm, step)  # before clipping, which would spread one NaN over all gradients
    torch.nn.utils.clip_grads_with_norm_(learning, max_norm, grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)
    total = figures.over(ranks)
    if teacher:
        counts["distill"] = targets
    return StepStats(
        loss=total["objective", ""],
        grad_norm=float(grad_norm),
        source_losses={name: total["nats", name] / n for name in figures.sources if (n := total["targets", name])},
        head_losses={name: total["head", name] / n for name, n in counts.items() if n},
        num_targets=targets or sum(counted),
        num_tokens=int(total["tokens", ""]),
        num_media=int(total["media", ""]),
    )


class StepTotals:
    """Sums over the micro-batches of a step, by kind and name, which are the same on every rank.

    What a micro-batch gives stays on the device until all are through: reading a number waits for the device.
    """

    def __init__(self, heads: Iterable[str], sources: Iterable[str]) -> None:
        self.sources = list(sources)
        names = [("head", name) for name in heads]
        names += [(kind, name) for name in self.sources for kind in ("nats", "targets")]
        self.sums = dict.fromkeys([("objective", ""), ("tokens", ""), ("media", ""), *names], 0.0)
        self.unread: list[Callable[[], None]] = []

    def add(self, batch: Batch, loss: Loss, objective: Tensor) -> None:
        """Count a micro-batch; its media and its graph are let go."""
        self.sums["media", ""] += sum(len(media.names) for media in batch.media.values())
        heads = {name: nats.detach() for name, nats in loss.heads.items()}
        targets = loss.nll_N, loss.sources_N, batch.source_names
        self.unread.append(partial(self._read, objective, batch.documents, heads, loss.distilled_N, targets))

    def _read(
        self,
        objective: Tensor,
        documents_BT: Tensor,
        heads: Mapping[str, Tensor],
        distilled_N: Tensor | None,
        targets: tuple[Tensor, Tensor, Sequence[str]],
    ) -> None:
        self.sums["objective", ""] += float(objective)
        self.sums["tokens", ""] += int((documents_BT >= 0).sum())
        for name, nats in heads.items():
            self.sums["head", name] += float(nats)
        if distilled_N is not None:
            self.sums["head", "distill"] += float(distilled_N.sum())
        nll_N, sources_N, names = targets
        for number, name in enumerate(names):
            own_N = nll_N[sources_N == number]
            if name not in self.sources:
                self.sources.append(name)
            for kind, value in (("nats", float(own_N.sum())), ("targets", len(own_N))):
                self.sums[kind, name] = self.sums.get((kind, name), 0.0) + value

    def over(self, ranks: ProcessGroup) -> dict[tuple[str, str], float]:
        """The sums over all ranks."""
        for read in self.unread:
            read()
        self.unread.clear()
        return dict(zip(self.sums, ranks.sum(list(self.sums.values())), strict=True))


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)

"""One optimizer update over micro-batches."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from mmgpt.inputs.batch import Batch
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.training.optim import check_finite


@dataclass(frozen=True)
class StepStats:
    """What a step tells: losses are nats a target token; a head's are those of a pair, or of a byte for ctc.

    Attributes:
        loss: what is optimised, the weighted losses of heads included.
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
    heads: Mapping[str, float] | None = None,
) -> StepStats:
    """Run one update over `batches` (gradient accumulation).

    The loss is a sum over target tokens, divided once by the targets of the whole step: a mean for each
    micro-batch would make a token in a short answer weigh more than one in a long answer. To it are added the
    losses of `heads`, by name, each a sum over the pairs of the step divided by what they count, times its weight.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are left as they were.
    """
    heads = heads or {}
    targets = sum(batch.num_targets for batch in batches)
    counts = {name: sum(model.head_count(name, batch) for batch in batches) for name in heads}
    if targets == 0 and not any(counts.values()):
        raise ValueError(f"no target tokens in {len(batches)} micro-batches; are all turns user turns?")
    total = 0.0
    head_losses: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    for batch in batches:
        moved = batch.to(model.device)
        with _autocast(model.device, precision):
            loss = model(moved, heads)
            own_losses = {name: nats / counts[name] for name, nats in loss.heads.items()}
            objective = loss.total / max(1, targets) + sum(heads[name] * own for name, own in own_losses.items())
        objective.backward()
        total += float(objective.detach())
        for name, share in own_losses.items():
            head_losses[name] = head_losses.get(name, 0.0) + float(share.detach())
        for number, name in enumerate(batch.source_names):
            own = loss.nll_N[loss.sources_N == number]
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(own.sum())
            entry[1] += len(own)
    learning = [p for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
    check_finite(model, grad_norm, step)  # before clipping, which would spread one NaN over all gradients
    torch.nn.utils.clip_grads_with_norm_(learning, max_norm, grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return StepStats(
        loss=total,
        grad_norm=float(grad_norm),
        source_losses={name: nats / count for name, (nats, count) in sums.items() if count},
        head_losses=head_losses,
        num_targets=targets or sum(counts.values()),
        num_tokens=sum(int((batch.documents >= 0).sum()) for batch in batches),
        num_media=sum(len(media.names) for batch in batches for media in batch.media.values()),
    )


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)

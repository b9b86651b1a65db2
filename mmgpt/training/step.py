"""One optimizer update over micro-batches."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch.optim import Optimizer

from mmgpt.inputs.batch import Batch
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.training.optim import check_finite
from mmgpt.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class StepStats:
    """What a step tells, of all ranks together: losses are nats a target token."""

    loss: float
    grad_norm: float
    source_losses: dict[str, float]
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
    ranks: Ranks = ALONE,
    sources: Sequence[str] = (),
) -> StepStats:
    """Run one update over `batches` (gradient accumulation); all ranks call it, some perhaps without a batch.

    The loss is a sum over target tokens, divided once by the targets of the whole step: a mean for each
    micro-batch would make a token in a short answer weigh more than one in a long answer. `sources` names those
    that any rank's batches can hold.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are left as they were.
    """
    (targets,) = ranks.sum([sum(batch.num_targets for batch in batches)])
    if targets == 0:
        raise ValueError(f"no target tokens in {len(batches)} micro-batches; are all turns user turns?")
    total = 0.0
    sums = {name: [0.0, 0.0] for name in sources}  # nats and targets
    for batch in batches:
        moved = batch.to(model.device)
        with _autocast(model.device, precision):
            loss = model(moved)
        (loss.total / targets).backward()
        total += float(loss.total.detach())
        for number, name in enumerate(batch.source_names):
            own = loss.nll_N[loss.sources_N == number]
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(own.sum())
            entry[1] += len(own)
    ranks.sum_gradients(model.parameters())
    learning = [p for p in model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
    check_finite(model, grad_norm, step)  # before clipping, which would spread one NaN over all gradients
    torch.nn.utils.clip_grads_with_norm_(learning, max_norm, grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)
    num_tokens = sum(int((batch.documents >= 0).sum()) for batch in batches)
    num_media = sum(len(media.names) for batch in batches for media in batch.media.values())
    total, tokens, media, *by_source = ranks.sum([total, num_tokens, num_media, *chain(*sums.values())])
    per_source = zip(sums, by_source[::2], by_source[1::2], strict=True)
    return StepStats(
        loss=total / targets,
        grad_norm=float(grad_norm),
        source_losses={name: nats / count for name, nats, count in per_source if count},
        num_targets=int(targets),
        num_tokens=int(tokens),
        num_media=int(media),
    )


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)

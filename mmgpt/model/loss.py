"""Cross-entropy over target positions only, in chunks, so that the logits of a long batch never exist at once.

The gradients are computed with the loss, chunk by chunk (the idea: Hsu et al. 2024, arXiv:2410.10989).
Shape letters: N targets, D width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 22  # logits that exist at a time: 16 MiB in float32


@dataclass(frozen=True)
class Loss:
    """Summed cross-entropy in nats, to be divided by the targets of the whole step.

    Attributes:
        total: scalar, differentiable.
        nll_N: each target's own, detached.
        sources_N: index of each target's source, in the batch's `source_names`.
        heads: the summed loss of each head that found pairs; to be divided by what the step's pairs count.
    """

    total: Tensor
    nll_N: Tensor
    sources_N: Tensor
    heads: dict[str, Tensor] = field(default_factory=dict)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        nll_N = torch.empty(len(targets_N), device=hidden_ND.device)
        step = max(1, CHUNK_LOGITS // len(weight_VD))
        for at in range(0, len(targets_N), step):
            chunk = slice(at, at + step)
            targets_n1 = targets_N[chunk, None]
            logits_nV = (hidden_ND[chunk] @ weight_VD.T).float()
            if cap is not None:
                bent_nV = logits_nV.div_(cap).tanh_()
                logits_nV = cap * bent_nV
            norm_n1 = logits_nV.logsumexp(dim=-1, keepdim=True)
            nll_N[chunk] = (norm_n1 - logits_nV.gather(1, targets_n1)).squeeze(1)
            if hidden_grad is None and weight_grad is None:
                continue
            slope_nV = logits_nV.sub_(norm_n1).exp_()  # the softmax; less one at the target is the slope of the loss
            slope_nV.scatter_add_(1, targets_n1, slope_nV.new_full(targets_n1.shape, -1.0))
            if cap is not None:
                slope_nV *= 1 - bent_nV.square_()
            slope_nV = slope_nV.to(hidden_ND.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = slope_nV @ weight_VD
            if weight_grad is not None:
                weight_grad += slope_nV.T @ hidden_ND[chunk]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(nll_N)
        ctx.weight_dtype = weight_VD.dtype
        return nll_N.sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        return (
            None if hidden_grad is None else hidden_grad * scale,
            None if weight_grad is None else (weight_grad * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def cross_entropy_sum(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `hidden @ weight.T` against `targets`, and each target's own (detached).

    With a `cap`, of the softly capped logits: cap tanh(logit / cap).
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        total, nll_N = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, cap)
    return total, nll_N

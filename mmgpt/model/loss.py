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
        distilled_N: each target's T^2 KL(teacher || student), detached; None without a teacher.
    """

    total: Tensor
    nll_N: Tensor
    sources_N: Tensor
    heads: dict[str, Tensor] = field(default_factory=dict)
    distilled_N: Tensor | None = None


@dataclass(frozen=True)
class TeacherTargets:
    """Another model's view of the same targets, to learn from beside them (Hinton et al. 2015, arXiv:1503.02531).

    The loss of a target becomes (1 - weight) cross-entropy + weight T^2 KL(teacher || student), both at temperature T
    in the latter and over the first `num_tokens` of the rows, for tables of one tokenizer are padded differently.

    Attributes:
        hidden_ND: its hidden states; D may be another than the student's.
        weight_VD: its output layer.
        softcap: of its logits.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    softcap: float | None
    num_tokens: int
    weight: float
    temperature: float

    def compare(self, logits_nV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        """T^2 KL (n,) of a chunk of the targets, and its slope over the logits of tokens (n, num_tokens)."""
        weight_VD = self.weight_VD[: self.num_tokens]
        theirs_nV = (self.hidden_ND[chunk].to(weight_VD.dtype) @ weight_VD.T).float()
        if self.softcap is not None:
            theirs_nV = self.softcap * torch.tanh(theirs_nV / self.softcap)
        theirs_nV = (theirs_nV / self.temperature).log_softmax(dim=1)
        ours_nV = (logits_nV[:, : self.num_tokens] / self.temperature).log_softmax(dim=1)
        share_nV = theirs_nV.exp()
        divergence_n = (share_nV * theirs_nV.sub_(ours_nV)).sum(dim=1) * self.temperature**2
        return divergence_n, ours_nV.exp_().sub_(share_nV).mul_(self.temperature)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        softcap: float | None,
        teacher: TeacherTargets | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        nll_N = torch.empty(len(targets_N), device=hidden_ND.device)
        distilled_N = torch.zeros(len(targets_N) if teacher else 0, device=hidden_ND.device)
        step = max(1, CHUNK_LOGITS // len(weight_VD))
        for at in range(0, len(targets_N), step):
            chunk = slice(at, at + step)
            targets_n1 = targets_N[chunk, None]
            logits_nV = (hidden_ND[chunk] @ weight_VD.T).float()
            if softcap is not None:
                bent_nV = logits_nV.div_(softcap).tanh_()
                logits_nV = softcap * bent_nV
            norm_n1 = logits_nV.logsumexp(dim=-1, keepdim=True)
            nll_N[chunk] = (norm_n1 - logits_nV.gather(1, targets_n1)).squeeze(1)
            if teacher is not None:
                distilled_N[chunk], pull_nV = teacher.compare(logits_nV, chunk)
            if hidden_grad is None and weight_grad is None:
                continue
            slope_nV = logits_nV.sub_(norm_n1).exp_()  # the softmax; less one at the target is the slope of the loss
            slope_nV.scatter_add_(1, targets_n1, slope_nV.new_full(targets_n1.shape, -1.0))
            if teacher is not None:
                slope_nV *= 1 - teacher.weight
                slope_nV[:, : teacher.num_tokens] += teacher.weight * pull_nV
            if softcap is not None:
                slope_nV *= 1 - bent_nV.square_()
            slope_nV = slope_nV.to(hidden_ND.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = slope_nV @ weight_VD
            if weight_grad is not None:
                weight_grad += slope_nV.T @ hidden_ND[chunk]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(nll_N, distilled_N)
        ctx.weight_dtype = weight_VD.dtype
        if teacher is None:
            return nll_N.sum(), nll_N, distilled_N
        return (1 - teacher.weight) * nll_N.sum() + teacher.weight * distilled_N.sum(), nll_N, distilled_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        return (
            None if hidden_grad is None else hidden_grad * scale,
            None if weight_grad is None else (weight_grad * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float | None = None,
    teacher: TeacherTargets | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The summed loss of the logits `hidden @ weight.T` against targets.

    Args:
        hidden_ND: states at the positions before the targets.
        weight_VD: the output layer.
        targets_N: token ids.
        softcap: caps the logits softly: cap tanh(logit / cap).
        teacher: whose probabilities are learned beside the targets.
    Returns:
        The sum, differentiable; each target's cross-entropy; and its T^2 KL, None without a teacher (both detached).
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        total, nll_N, distilled_N = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, softcap, teacher)
    return total, nll_N, distilled_N if teacher else None

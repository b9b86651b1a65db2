"""Muon over stacks: matrices of one shape are orthogonalised together, which is faster than one after another.

Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as torch.optim.Muon with adjust_lr_fn="original" has it.
Shape letters: K matrices of one shape, R rows, C columns, R <= C where a matrix is orthogonalised.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmgpt.processor import fast_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at zero
ITERATIONS = 5
WIDE = 1.5  # columns to a row from which iterating on Gram matrices alone takes fewer products


class Muon(Optimizer):
    """Momentum, orthogonalised: for the matrices inside a network; no other parameter may be given.

    Args:
        params: matrices, or groups of them with `lr` and `weight_decay` of their own; a convolution's kernel counts as
            a matrix of its outputs by the rest.
        lr: of an update whose singular values are about one, times sqrt(max(1, rows / columns)).
        momentum: share of the running mean that stays (Nesterov's form).
        weight_decay: decoupled, times lr.
        interval: steps from one update of a matrix to its next, which is `interval` times as large; the mean takes
            every gradient. The shapes take turns, so that steps cost alike.
        dtype: of the orthogonalisation; None is float32 on a CPU, elsewhere bfloat16 where the device has units for it.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        interval: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.interval, self.dtype = interval, dtype
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim < 2]
        if shapes:
            raise ValueError(f"Muon is for matrices; {len(shapes)} parameters are none, the first of shape {shapes[0]}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient and whose turn it is."""
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in (p for p in group["params"] if p.grad is not None):
                alike[parameter.shape, parameter.dtype, parameter.device, self._count(parameter)].append(parameter)
            for number, ((*_, step), parameters) in enumerate(alike.items()):
                is_due = (step + number) % self.interval == 0
                self._update(parameters, group["lr"] * self.interval, group["momentum"], group["weight_decay"], is_due)

    def _count(self, parameter: Tensor) -> int:
        """Steps that a matrix has taken before this one; not kept where each step is an update."""
        if self.interval == 1:
            return 0
        step = self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.int64))
        step += 1
        return int(step) - 1

    def _update(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float, is_due: bool) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, memory_format=torch.preserve_format))
            for p in parameters
        ]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        if not is_due:
            return
        ahead_KRC = torch.stack(gradients).lerp(torch.stack(means), momentum).flatten(2)
        dtype = self.dtype or fast_dtype(ahead_KRC.device)
        updates_KRC = orthogonalise(ahead_KRC.to(dtype)).to(ahead_KRC.dtype)
        rows, columns = ahead_KRC.shape[1:]
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        updates = [update_RC.view(parameters[0].shape) for update_RC in updates_KRC]
        torch._foreach_add_(parameters, updates, alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices_KRC: Tensor) -> Tensor:
    """Each matrix with its singular values brought near one (Newton-Schulz), down to a five hundredth of its norm."""
    is_tall = matrices_KRC.shape[-2] > matrices_KRC.shape[-1]
    x_KRC = matrices_KRC.mT if is_tall else matrices_KRC
    x_KRC = x_KRC / x_KRC.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    is_wide = x_KRC.shape[-1] > WIDE * x_KRC.shape[-2]
    x_KRC = _by_gram(x_KRC) if is_wide and x_KRC.dtype == torch.float32 else _by_products(x_KRC)
    return x_KRC.mT if is_tall else x_KRC


def _by_products(x_KRC: Tensor) -> Tensor:
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_KRR = x_KRC @ x_KRC.mT
        factor_KRR = torch.baddbmm(gram_KRR, gram_KRR, gram_KRR, beta=second, alpha=third)
        x_KRC = torch.baddbmm(x_KRC, factor_KRR, x_KRC, beta=first)
    return x_KRC


def _by_gram(x_KRC: Tensor) -> Tensor:
    """The same by products of (R, R) matrices, which commute; in bfloat16 the small eigenvalues would be lost."""
    gram_KRR = x_KRC @ x_KRC.mT
    first, second, third = COEFFICIENTS
    whole_KRR = None
    for number in range(1, ITERATIONS + 1):
        factor_KRR = torch.baddbmm(gram_KRR, gram_KRR, gram_KRR, beta=second, alpha=third)
        factor_KRR.diagonal(dim1=-2, dim2=-1).add_(first)
        whole_KRR = factor_KRR if whole_KRR is None else factor_KRR @ whole_KRR
        if number < ITERATIONS:
            gram_KRR = factor_KRR @ (factor_KRR @ gram_KRR)
    assert whole_KRR is not None
    return whole_KRR @ x_KRC

"""Muon over stacks: matrices of one shape are orthogonalised together, which is faster than one after another.

Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), as torch.optim.Muon with adjust_lr_fn="original" has it.
Shape letters: K matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at zero
ITERATIONS = 5


class Muon(Optimizer):
    """Momentum, orthogonalised: for the matrices inside a network; no other parameter may be given.

    Args:
        params: matrices, or groups of them with `lr` and `weight_decay` of their own; a convolution's kernel counts as
            a matrix of its outputs by the rest.
        lr: of an update whose singular values are about one, times sqrt(max(1, rows / columns)).
        momentum: share of the running mean that stays (Nesterov's form).
        weight_decay: decoupled, times lr.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim < 2]
        if shapes:
            raise ValueError(f"Muon is for matrices; {len(shapes)} parameters are none, the first of shape {shapes[0]}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in (p for p in group["params"] if p.grad is not None):
                alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, memory_format=torch.preserve_format))
            for p in parameters
        ]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead_KRC = torch.stack(gradients).lerp(torch.stack(means), momentum).flatten(2)
        updates_KRC = orthogonalise(ahead_KRC).to(ahead_KRC.dtype)
        rows, columns = ahead_KRC.shape[1:]
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        updates = [update_RC.view(parameters[0].shape) for update_RC in updates_KRC]
        torch._foreach_add_(parameters, updates, alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices_KRC: Tensor) -> Tensor:
    """Each matrix with its singular values brought near one (Newton-Schulz), in bfloat16."""
    first, second, third = COEFFICIENTS
    x_KRC = matrices_KRC.bfloat16()
    is_tall = x_KRC.shape[-2] > x_KRC.shape[-1]
    x_KRC = x_KRC.mT if is_tall else x_KRC
    x_KRC = x_KRC / x_KRC.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above one
    for _ in range(ITERATIONS):
        gram_KRR = x_KRC @ x_KRC.mT
        x_KRC = torch.baddbmm(
            x_KRC, torch.baddbmm(gram_KRR, gram_KRR, gram_KRR, beta=second, alpha=third), x_KRC, beta=first
        )
    return x_KRC.mT if is_tall else x_KRC

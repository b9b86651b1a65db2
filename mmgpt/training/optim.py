"""What trains, how fast: freezing by globs, parameter groups, optimizers and schedules as plain functions."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mmgpt.config import UserError, did_you_mean
from mmgpt.training.muon import Muon
from mmgpt.training.recipe import ScheduleConfig, StageConfig


def matches(name: str, pattern: str) -> bool:
    """True if a glob names a parameter or a part that holds it: `decoder`, `encoders.*`, `*.norm.weight`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def freeze_except(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let exactly the parameters that match a pattern learn.

    Raises:
        UserError: if a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    check_patterns(names, patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(matches(name, pattern) for pattern in patterns))


def check_patterns(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Refuse globs that match no parameter."""
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(f"pattern {pattern!r} matches no parameter; {did_you_mean(pattern, parts)}")


def make_optimizers(model: nn.Module, stage: StageConfig) -> list[Optimizer]:
    """The optimizers of a stage; each group carries its `peak` rate and its `part` for the freeze table."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    check_patterns([name for name, _ in model.named_parameters()], list(stage.learning_rates))
    matrices = _matrices(model, stage.optimizer.muon_convolutions)
    groups: dict[str, list[dict[str, Any]]] = {"muon": [], "rest": []}
    by_rate: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in learning:
        scale = rate_of(name, stage) / stage.learning_rate
        kind = "muon" if stage.optimizer.kind == "muon" and name in matrices else "rest"
        by_rate.setdefault((kind, scale, name in matrices), []).append(parameter)
    for (kind, scale, decays), parameters in by_rate.items():
        peak = scale * (stage.optimizer.muon_learning_rate if kind == "muon" else stage.learning_rate)
        decay = stage.optimizer.weight_decay if decays else 0.0
        groups[kind].append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
    options = stage.optimizer
    optimizers: list[Optimizer] = []
    if groups["muon"]:
        optimizers.append(Muon(groups["muon"], momentum=options.momentum))
    if groups["rest"]:
        rest = groups["rest"]
        sgd = options.kind == "sgd"
        optimizers.append(SGD(rest, momentum=options.momentum) if sgd else AdamW(rest, betas=options.betas, fused=True))
    return optimizers


def rate_of(name: str, stage: StageConfig) -> float:
    """The peak AdamW rate of a parameter: the last glob that names it, else the stage's."""
    rates = [rate for pattern, rate in stage.learning_rates.items() if matches(name, pattern)]
    return rates[-1] if rates else stage.learning_rate


def _matrices(model: nn.Module, convolutions: bool) -> set[str]:
    """Names of the weights of linear layers inside the network, and of convolutions; not embeddings, not outputs."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if not name.endswith("head")
        and not name.startswith("heads.")
        and (isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d) and module.groups == 1))
    }


def share_of_peak(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """The schedule: step (from 0) -> share of the peak learning rate."""

    def share(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        if config.kind == "constant":
            return 1.0
        if config.kind == "cosine":
            progress = (step - config.warmup) / max(1, steps - config.warmup)
            return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        left = (steps - step) / max(1, config.decay * steps)
        return config.floor + (1 - config.floor) * min(1.0, left)

    return share


def set_rates(optimizers: Sequence[Optimizer], share: float) -> None:
    """Set every group to a share of its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def check_finite(model: nn.Module, grad_norm: torch.Tensor, step: int) -> None:
    """Stop on gradients that are not finite.

    Raises:
        FloatingPointError: names the first such tensor and counts the rest.
    """
    if torch.isfinite(grad_norm):
        return
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    raise FloatingPointError(
        f"step {step}: the gradient of {bad[0] if bad else 'all parameters together'} is not finite "
        f"({len(bad)} tensors in all); lower learning_rate or max_grad_norm, or look at this step's samples"
    )

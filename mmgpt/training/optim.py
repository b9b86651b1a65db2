"""What trains, how fast: freezing by globs, parameter groups, optimizers and schedules as plain functions."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mmgpt.config import UserError, did_you_mean
from mmgpt.training.muon import Muon
from mmgpt.training.recipe import OptimizerConfig, ScheduleConfig, StageConfig
from mmgpt.weight_names import names_part

NEW_ROWS = "[new]"  # ends a pattern of `train` that names a table of tokens of which only added rows learn
Group = dict[str, Any]  # of parameters, as torch.optim takes them
OPTIMIZERS: dict[str, Callable[[list[Group], OptimizerConfig], Optimizer]] = {
    "adamw": lambda groups, options: AdamW(groups, betas=options.betas, fused=True),
    "sgd": lambda groups, options: SGD(groups, momentum=options.momentum),
    "muon": lambda groups, options: Muon(groups, momentum=options.momentum, interval=options.muon_interval),
}
BLOCK = re.compile(r"(.+?\.\w*(?:blocks|layers)\.\d+)\.")  # a block of a stack, in the name of a parameter


def matches(name: str, pattern: str) -> bool:
    """True if a glob names a parameter or a part that holds it: `decoder`, `encoders.*`, `*.norm.weight`."""
    return names_part(name, pattern.removesuffix(NEW_ROWS))


def freeze_except(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let exactly the parameters that match a pattern learn.

    Raises:
        UserError: if a pattern matches nothing.
    """
    check_patterns([name for name, _ in model.named_parameters()], patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(matches(name, pattern) for pattern in patterns))


def check_patterns(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Refuse globs that match no parameter."""
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(f"pattern {pattern!r} matches no parameter; {did_you_mean(pattern, parts)}")


def make_optimizers(model: nn.Module, stage: StageConfig) -> list[Optimizer]:
    """The optimizers of a stage; each group carries its `peak` rate."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rates = learning_rates_of(model, stage)
    matrices = _matrices(model, stage.optimizer.muon_convolutions)
    rest: str = "adamw" if stage.optimizer.kind == "muon" else stage.optimizer.kind
    groups: dict[str, list[Group]] = {"muon": [], rest: []}
    by_rate: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in learning:
        scale = rates[name] / stage.learning_rate
        by_muon = stage.optimizer.kind == "muon" and name in matrices and ".lora_" not in name  # too narrow a matrix
        kind = "muon" if by_muon else rest
        by_rate.setdefault((kind, scale, name in matrices), []).append(parameter)
    for (kind, scale, decays), parameters in by_rate.items():
        peak = scale * (stage.optimizer.muon_learning_rate if kind == "muon" else stage.learning_rate)
        decay = stage.optimizer.weight_decay if decays else 0.0
        groups[kind].append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
    return [OPTIMIZERS[kind](some, stage.optimizer) for kind, some in groups.items() if some]


def learning_rates_of(model: nn.Module, stage: StageConfig) -> dict[str, float]:
    """The peak AdamW rate of each parameter: the last glob that names it, else the stage's; less in lower layers.

    Raises:
        UserError: if a glob names nothing, or layer_decay finds no blocks.
    """
    plain = {name: name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}  # without adapters
    check_patterns(list(plain.values()), list(stage.learning_rates))
    shares = layerwise_lr_decay(list(plain), stage.layer_decay) if stage.layer_decay else {}
    rates: dict[str, float] = {}
    for name, known_as in plain.items():
        own = [rate for pattern, rate in stage.learning_rates.items() if matches(known_as, pattern)]
        rates[name] = (own[-1] if own else stage.learning_rate) * shares.get(name, 1.0)
    return rates


def layerwise_lr_decay(names: Sequence[str], decay: float) -> dict[str, float]:
    """The share of its rate at which each parameter of decoder and encoders learns (BEiT, arXiv:2106.08254).

    What stands above a part's blocks has all of it, the last block `decay`, each one below `decay` times as much as
    the next, and what stands below the first (embeddings, stems) once more.

    Args:
        names: of a model's parameters, in its order.
        decay: from one layer to the next below.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(("decoder.", "encoders.")):
            parts.setdefault(part_of(name), []).append(name)
    shares: dict[str, float] = {}
    for own in parts.values():
        blocks = list(dict.fromkeys(found[1] for name in own if (found := BLOCK.match(name))))
        level = 0 if blocks else 1
        for name in own:
            found = BLOCK.match(name)
            if found:
                level = blocks.index(found[1]) + 1
            elif level == len(blocks):
                level += 1
            shares[name] = decay ** (len(blocks) + 1 - level)
    return shares


def part_of(name: str) -> str:
    """The part of a model that holds a parameter: `decoder`, `encoders.image`, `adapters.image`."""
    return ".".join(name.split(".")[: 1 if name.startswith("decoder") else 2])


def _matrices(model: nn.Module, convolutions: bool) -> set[str]:
    """Names of the weights of linear layers inside the network, and of convolutions; not embeddings, not outputs."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if not name.endswith("head")
        and not name.startswith("heads.")
        and (isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d) and module.groups == 1))
    }


def parameter_table(
    model: nn.Module, stage: StageConfig, held: Collection[str] = (), new_tokens: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """A row a part: parameters, how many learn, their peak rates, and bytes of weights, gradients and states.

    Args:
        model: with what learns chosen.
        stage: for the rates.
        held: the weights of which the rows of `new_tokens` alone learn.
        new_tokens: ids of the added tokens.
    """
    rates = learning_rates_of(model, stage)
    rows: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        row = rows.setdefault(part, {"part": part, "parameters": 0, "trained": 0, "learning_rate": 0.0, "bytes": 0})
        row["parameters"] += parameter.numel()
        row["bytes"] += parameter.nbytes
        if parameter.requires_grad:
            row["trained"] += len(new_tokens) * parameter.shape[1] if name in held else parameter.numel()
            row["bytes"] += parameter.nbytes * (2 if stage.optimizer.kind == "sgd" else 3)
            row["learning_rate"] = max(row["learning_rate"], rates[name])
            row["lowest_rate"] = min(row.get("lowest_rate", rates[name]), rates[name])
    return list(rows.values())


def lr_schedule(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
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


def set_learning_rates(optimizers: Sequence[Optimizer], share: float) -> None:
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

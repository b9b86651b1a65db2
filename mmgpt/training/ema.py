"""A running average of the weights that learn, which a stage can end with (Polyak and Juditsky 1992)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average: after each step, average = decay x average + (1 - decay) x weight.

    It begins at the weights before the first step, and reaches back over about 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float, values: Mapping[str, Tensor] | None = None) -> None:
        """Begin, or go on from the `values` of a checkpoint, by the names of parameters."""
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decay, self.weights = decay, list[Tensor](learning.values())
        self.values = {name: (values or learning)[name].detach().clone() for name in learning}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        torch._foreach_lerp_(list(self.values.values()), self.weights, 1 - self.decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averages in the place of the weights."""
        torch._foreach_copy_(self.weights, list(self.values.values()))

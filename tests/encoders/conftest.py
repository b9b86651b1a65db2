from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch import nn

from mmgpt.config import build
from mmgpt.encoders import ENCODERS


@pytest.fixture
def randomise() -> Callable[[nn.Module], Any]:
    """Gives every parameter of a module a spread that shows it, norms about one."""

    def randomise(module: nn.Module) -> Any:
        torch.manual_seed(0)
        for name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
            nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
        return module.eval()

    return randomise


@pytest.fixture
def read_tower() -> Callable[..., Any]:
    """Makes the encoder of a checkpoint's folder, built on the meta device as a saved model is."""

    def read(folder: Path, kind: str = "timm", **options: Any) -> Any:
        make = ENCODERS[kind]
        assert make.fields
        assert make.weights
        config: Any = build(make.config, {"kind": kind, **make.fields(folder), **options}, "x")
        with torch.device("meta"):
            encoder = make.module(config)
        encoder.load_state_dict(make.weights(folder, config), assign=True)
        return encoder.eval()

    return read


@pytest.fixture
def photograph() -> Callable[[int, int], PIL.Image.Image]:
    """Makes a picture with edges and slopes."""
    return lambda w, h: PIL.Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 60).convert("RGB").resize((w, h))

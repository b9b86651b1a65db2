import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from mmgpt.config import build
from mmgpt.encoders.registry import ENCODERS


@pytest.fixture
def sound() -> Callable[..., np.ndarray]:
    def make(seconds: float, silence: bool = True) -> np.ndarray:
        """Tones that come and go over a little noise, with a stretch of zeros, 16,000 samples a second."""
        rng = np.random.default_rng(0)
        time = np.arange(int(seconds * 16_000)) / 16_000
        tones = sum(np.sin(2 * np.pi * f * time + f) * np.sin(7 * time + f) for f in rng.uniform(80, 5000, 6))
        samples = 0.1 * tones + 0.003 * rng.normal(size=len(time))
        if silence:
            samples[len(time) // 3 : len(time) // 2] = 0
        return samples.astype(np.float32)

    return make


@pytest.fixture
def randomise() -> Callable[[torch.nn.Module], Any]:
    def fill(model: torch.nn.Module) -> Any:
        """Weights and batch statistics that all show in what the model gives."""
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                torch.nn.init.normal_(buffer, std=0.3)
            elif name.endswith("running_var"):
                torch.nn.init.uniform_(buffer, 0.3, 2.0)
        return model.eval()

    return fill


@pytest.fixture
def edit() -> Callable[[Path, dict], None]:
    def change(file: Path, changes: dict) -> None:
        """Set keys of a JSON file; None takes a key out."""
        content = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in content.items() if changes.get(key, 0) is not None}))

    return change


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

"""Modules built without weights, to be given those that were read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (Tensor.normal_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _FillsNothing(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build modules on the meta device, where there is nothing to fill.

    Drawing normal numbers there would import torch's compiler first: most of a second, and 150 MB.
    """
    with torch.device("meta"), _FillsNothing():
        yield

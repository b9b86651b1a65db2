"""What this machine computes fast: the one place where a precision is chosen, or judged where a user chose it.

Products in bfloat16 or int8 pay where the processor has units for them (AVX512-BF16 or AMX, VNNI; ARM's; a GPU's).
Elsewhere libraries emulate them, number by number: on an AVX2 processor without units bfloat16 takes 3 to 50 times as
long as float32, int8 3 to 26 times. Restricting a processor (ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2) makes
it one of the other kind here as well.
"""

import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mmgpt.config import UserError, did_you_mean

PROBE = (32, 256, 256)  # rows, inputs and outputs of the product that is timed: large enough that its units show
TIMES = 5


class SlowPrecision(UserWarning):
    """A precision that was asked for and that this machine computes slowly; told once."""


def has_bf16_units(device: torch.device) -> bool:
    """True where products in bfloat16 are at least as fast as in float32; elsewhere float32 is to be chosen."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # builds for macOS come without oneDNN
        return _slowdown("bfloat16", device) <= 1
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # which heeds ONEDNN_MAX_CPU_ISA
        return False
    return not _is_x86() or (
        _has_avx512() and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_int8_units(device: torch.device) -> bool:
    """True where products of int8 numbers are worth their rounding; elsewhere weights become float32 before them."""
    if device.type != "cpu":
        return False
    return _has_avx512() and torch.cpu._is_vnni_supported() if _is_x86() else _slowdown("int8", device) <= 1


def fast_dtype(device: torch.device) -> torch.dtype:
    """The type for products in which bfloat16 is precise enough; on all CPUs float32, so that a recipe learns alike."""
    return torch.bfloat16 if device.type != "cpu" and has_bf16_units(device) else torch.float32


def warn_of_slow_bf16(what: str, device: torch.device, remedy: str) -> None:
    """Say once what bfloat16 costs here, where a user asked for it and the device has no units for it.

    Args:
        what: the setting, as the user wrote it.
        device: where it runs.
        remedy: what to write instead.
    """
    if not has_bf16_units(device):
        _warn_once(what, device, remedy)


@lru_cache
def _warn_once(what: str, device: torch.device, remedy: str) -> None:
    factor = _slowdown("bfloat16", device)
    message = (
        f"{what}: this {device.type} has no units for bfloat16, a product takes {factor:.0f} x as long as in "
        f"float32; {remedy}"
    )
    warnings.warn(message, SlowPrecision, stacklevel=3)


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def _has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()  # which heeds ATEN_CPU_CAPABILITY


@lru_cache
def _slowdown(kind: str, device: torch.device) -> float:
    """How many times as long a product takes in a type as in float32, measured once."""
    rows, inputs, outputs = PROBE
    x_NI, weight_OI = torch.ones(rows, inputs, device=device), torch.ones(outputs, inputs, device=device)
    if kind == "int8":
        x8_NI, weight8_IO = x_NI.to(torch.int8), weight_OI.to(torch.int8).T
        seconds = _seconds(lambda: torch._int_mm(x8_NI, weight8_IO), device)
    else:
        x16_NI, weight16_IO = x_NI.bfloat16(), weight_OI.bfloat16().T
        seconds = _seconds(lambda: x16_NI @ weight16_IO, device)
    return seconds / _seconds(lambda: x_NI @ weight_OI.T, device)


def _seconds(product: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        product()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first one also prepares


def pick_dtype(name: str) -> torch.dtype | None:
    """The type of a name; None for `auto`, which leaves weights as they are stored.

    Raises:
        UserError: if it is none of those here.
    """
    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if str(name) not in known:
        raise UserError(f"dtype {name}: is not known; {did_you_mean(name, known)}")
    return known[name]


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    if not isinstance(name, str | torch.device) or str(name).startswith("meta"):
        raise UserError(f"device={name!r}: is no device; give cpu, cuda or auto")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name}: cannot be used here ({reason}); give cpu, cuda or auto") from None

"""The processor that a benchmark runs on: restricted to AVX2 on demand, and described in each line of results.

Figures are of two kinds: of processors with units for bfloat16 (AMX, AVX-512), and of those without. `--processor avx2`
measures the second kind on the first. What torch, oneDNN, MKL and compiled code may use is read from the environment
when they are loaded, so the script starts once more with it set.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

LIMITS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels, and what torch.compile vectorises for
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",  # what the C++ compiler may use beside: that level ends with AVX2
}
FEATURES = {"amx": "amx_tile", "avx512_bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2"}  # by Linux's flags
CPUINFO = Path("/proc/cpuinfo")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a benchmark with `--processor` among them; under avx2 this process starts anew, once."""
    parser.add_argument(
        "--processor",
        choices=("native", "avx2"),
        default="native",
        help="avx2: without the instructions that came after it",
    )
    options = parser.parse_args()
    if options.processor == "avx2" and not is_restricted():
        restart({**os.environ, **LIMITS})
    return options


def is_restricted() -> bool:
    """Whether the environment keeps every library to AVX2."""
    return all(os.environ.get(name) == value for name, value in LIMITS.items())


def restart(environment: dict[str, str]) -> None:
    """Run the same command in this process's place, under another environment."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def hardware(threads: int) -> dict[str, object]:
    """The processor's name, its features that matter, the threads of a run, and what it was restricted to, if at all.

    Outside of Linux the features are not known, and are None.
    """
    told = dict(
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in _first_core().splitlines())
    )
    flags = set(told.get("flags", "").split())
    name = told.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in told:  # a virtual machine's name alone may be that of a dozen kinds
        name += f", family {told['cpu family']}, model {told.get('model')}"
    return {
        "processor": name,
        "features": [feature for feature, flag in FEATURES.items() if flag in flags] if flags else None,
        "threads": threads,
        "restricted_to": "avx2" if is_restricted() else None,
    }


def _first_core() -> str:
    return CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0] if CPUINFO.is_file() else ""


def tell(found: dict[str, object], threads: int, *packages: str) -> None:
    """Print a comparison as one line of JSON, with the hardware and the versions of torch, Python and some packages."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}}
    print(json.dumps({**found, "hardware": hardware(threads), "versions": versions}), flush=True)

"""The fuzzer tells apart what may become of a file, and is the same for a seed."""

import importlib.util
import os
import random
import signal
import time
from pathlib import Path

import pytest

from mmgpt.datasets.media import Image, MediaError

pytest.importorskip("av")
FILE = Path(__file__).resolve().parent.parent / "scripts" / "fuzz_media.py"
SPEC = importlib.util.spec_from_file_location("fuzz_media", FILE)
fuzz_media = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz_media)
MEMORY = 1 << 36  # bytes of address space: torch, loaded here, takes more than the script does


def refuse(content: bytes) -> None:
    raise MediaError("no good")


@pytest.mark.parametrize(
    ("decode", "fate", "told"),
    [
        (len, "decoded", ""),
        (refuse, "refused", "no good"),
        (lambda content: 1 / 0, "crashed", "ZeroDivisionError"),
        (lambda content: os.kill(os.getpid(), signal.SIGSEGV), "crashed", "killed by SIGSEGV"),
        (lambda content: time.sleep(60), "hung", "killed by SIGALRM"),
        (lambda content: bytearray(2 * MEMORY), "over_memory", ""),
    ],
    ids=["decoded", "refused", "raised", "killed", "hung", "over-memory"],
)
def test_the_fate_of_a_file_is_told(decode, fate, told):
    found, said = fuzz_media.decode_apart(decode, b"x", MEMORY, seconds=1)
    assert found == fate
    assert told in said


def test_the_seeds_are_good_files_and_damage_differs_with_the_seed_and_with_nothing_else():
    for kind, contents in fuzz_media.seeds().items():
        for content in contents:
            assert fuzz_media.DECODERS[kind][0](content) is not None
    png = fuzz_media.seeds()["png"][0]
    damaged = [fuzz_media.damage(png, png, random.Random(seed)) for seed in (1, 1, 2)]
    assert damaged[0] == damaged[1] != damaged[2]
    assert Image(png).load().size == (32, 24)

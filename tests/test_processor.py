import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from mmgpt import processor

CPU = torch.device("cpu")


@pytest.fixture
def x86(monkeypatch):
    """An x86 processor whose units a test names; oneDNN runs bfloat16 on all of them but the restricted one."""

    def make(capability, *, bf16=False, amx=False, vnni=False, onednn=True):
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: vnni)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)

    return make


@pytest.mark.parametrize(
    ("capability", "units", "bf16", "int8"),
    [
        ("AVX2", {"onednn": False}, False, False),  # Zen 3, most laptops
        ("AVX512", {}, False, False),  # Skylake-X: oneDNN emulates
        ("AVX512", {"vnni": True}, False, True),  # Cascade Lake
        ("AVX512", {"vnni": True, "bf16": True}, True, True),  # Cooper Lake, Zen 4
        ("AVX512", {"vnni": True, "bf16": True, "amx": True}, True, True),  # Sapphire Rapids
        ("AVX2", {"vnni": True, "bf16": True, "amx": True}, False, False),  # the same, restricted for torch
        ("AVX512", {"vnni": True, "amx": True, "onednn": False}, False, True),  # restricted for oneDNN
    ],
)
def test_precisions_follow_the_units_of_the_processor(capability, units, bf16, int8, x86):
    x86(capability, **units)
    assert processor.has_bf16_units(CPU) is bf16
    assert processor.has_int8_units(CPU) is int8
    assert processor.fast_dtype(CPU) == torch.float32


@pytest.mark.parametrize(("factor", "is_fast"), [(0.6, True), (7.0, False)])
def test_a_processor_of_which_nothing_is_known_is_measured(factor, is_fast, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr(processor, "_slowdown", lambda kind, device: factor)
    assert processor.has_int8_units(CPU) is is_fast
    assert processor.has_bf16_units(torch.device("meta")) is is_fast


def test_a_build_without_onednn_is_measured(monkeypatch):
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    for factor in (0.5, 3.0):
        monkeypatch.setattr(processor, "_slowdown", lambda kind, device, factor=factor: factor)
        assert processor.has_bf16_units(CPU) is (factor < 1)


def test_a_restricted_processor_is_one_without_units():
    program = (
        "import json, torch; from mmgpt import processor as p; cpu = torch.device('cpu');"
        "print(json.dumps([p.has_bf16_units(cpu), p.has_int8_units(cpu)]))"
    )
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]


def test_a_slow_choice_is_told_once_with_its_factor(x86, monkeypatch):
    x86("AVX2", onednn=False)
    monkeypatch.setattr(processor, "_slowdown", lambda kind, device: 21.7)
    processor._warn_once.cache_clear()
    with pytest.warns(processor.SlowPrecision, match=r"^stages\.a\.precision .* takes 22 x .*; write float32$"):
        processor.warn_of_slow_bf16("stages.a.precision bfloat16", CPU, "write float32")
    with warnings.catch_warnings(action="error"):
        processor.warn_of_slow_bf16("stages.a.precision bfloat16", CPU, "write float32")
    processor._warn_once.cache_clear()


def test_a_machine_with_units_is_told_nothing(x86):
    x86("AVX512", bf16=True)
    with warnings.catch_warnings(action="error"):
        processor.warn_of_slow_bf16("dtype bfloat16", CPU, "write float32")


def test_products_are_timed_in_both_types():
    assert 0.01 < processor._slowdown("bfloat16", CPU) < 1000
    assert 0.01 < processor._slowdown("int8", CPU) < 1000

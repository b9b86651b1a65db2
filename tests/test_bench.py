"""Benchmarks: the processor they tell of and restrict, and the train step that both sides take alike."""

import importlib
import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
cpu family\t: 6
model\t\t: 143
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: another
"""
ZEN = "model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t: 1\nflags\t: avx avx2 fma\n"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == SCRIPTS:
            del sys.modules[name]


@pytest.fixture
def processor(load, monkeypatch):
    module = load("processor")
    for name in module.LIMITS:
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (XEON, "Intel(R) Xeon(R) Processor, family 6, model 143", ["amx", "avx512_bf16", "avx512", "avx2"]),
        (ZEN, "AMD EPYC, family 25, model 1", ["avx2"]),
        ("model name : Some Atom\nflags : sse4_2\n", "Some Atom", []),
    ],
    ids=["amx", "avx2", "neither"],
)
def test_the_hardware_is_named_with_what_matters(processor, monkeypatch, tmp_path, text, name, features):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.CPUINFO.write_text(text)
    assert processor.hardware(2) == {"processor": name, "features": features, "threads": 2, "restricted_to": None}


def test_without_a_description_the_features_are_unknown_not_absent(processor, monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    told = processor.hardware(1)
    assert told["features"] is None
    assert told["processor"] == (platform.processor() or platform.machine())


def test_avx2_starts_the_same_command_once_more(processor, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--processor", "avx2"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "scripts/bench.py", "--processor", "avx2"])
    assert processor.parse(ArgumentParser()).processor == "avx2"
    ((program, command, environment),) = started
    assert (program, command) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert processor.LIMITS.items() <= environment.items()
    for name, value in processor.LIMITS.items():
        monkeypatch.setenv(name, value)
    processor.parse(ArgumentParser())
    assert len(started) == 1
    assert processor.hardware(1)["restricted_to"] == "avx2"


def test_a_process_that_is_restricted_in_part_is_restarted_and_not_called_restricted(processor, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert processor.hardware(1)["restricted_to"] is None
    assert not processor.is_restricted()


def test_native_starts_nothing(processor, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    assert processor.parse(ArgumentParser()).processor == "native"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86")
def test_a_restricted_process_has_no_kernels_beyond_avx2(processor, tmp_path):
    script = tmp_path / "bench_nothing.py"
    script.write_text(
        "import argparse, processor, torch\n"
        "processor.parse(argparse.ArgumentParser())\n"
        "processor.tell({'capability': torch.backends.cpu.get_cpu_capability()}, 1)\n"
    )
    command = [sys.executable, str(script), "--processor", "avx2"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["hardware"]["restricted_to"] == "avx2"
    assert told["capability"] in ("AVX2", "DEFAULT")
    assert told["versions"].keys() == {"python", "torch"}


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("bench*.py")), ids=lambda path: path.stem)
def test_every_benchmark_restricts_and_tells_the_processor(script):
    text = script.read_text(encoding="utf-8")
    if "ArgumentParser" in text:
        assert "options = parse(parser)" in text
        assert "tell(found, " in text


@pytest.fixture
def tiny(load, monkeypatch):
    """The benchmark of a train step, with a model of three layers."""
    pytest.importorskip("transformers")
    llava, train = load("bench_llava"), load("bench_train")
    for name, value in {"width": 32, "depth": 2, "heads": 2, "ffn_width": 48}.items():
        monkeypatch.setitem(llava.DECODER, name, value)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    for name, value in {**sizes, "image_size": 32, "patch_size": 8}.items():
        monkeypatch.setitem(llava.TOWER, name, value)
    monkeypatch.setitem(llava.PIXELS, "size", {"shortest_edge": 32})
    monkeypatch.setitem(llava.PIXELS, "crop_size", {"height": 32, "width": 32})
    monkeypatch.setattr(llava, "IMAGE_TOKENS", 16)
    monkeypatch.setattr(llava, "ROW_TOKENS", 300)
    monkeypatch.setattr(llava, "GROUP_TOKENS", 300)
    return train


OPTIONS = {"rounds": 1, "talks": 4, "threads": 1, "ways": ["padded", "by length", "packed"]}


@pytest.mark.parametrize("layer", [-2, -1])
def test_both_sides_take_the_same_train_step_in_every_way(tiny, layer):
    found = list(tiny.bench_speed(Namespace(**OPTIONS, layer=layer)))  # ends with an error where they differ
    assert [one["way"] for one in found] == OPTIONS["ways"]
    assert len({one["shapes"]["targets"] for one in found}) == 1
    padded, sorted_, packed = (one["shapes"]["rows"] for one in found)
    assert padded == [found[0]["shapes"]["their_rows"]]
    assert len(sorted_) > 1
    assert packed[0][0] < 4
    for one in found:
        assert one["ratio"] == pytest.approx(one["ours"] / one["theirs"], rel=0.05)
        assert one["largest_logit_gap"] <= 1e-5


def test_nothing_is_timed_where_the_sides_differ(tiny, tmp_path):
    from mmgpt.checkpoints.save_load import load_bundle

    sys.modules["bench_llava"].write_model(tmp_path / "llava", 8192, -2)
    talks = tiny.make_talks(2, tiny.slot_of(tmp_path / "llava"))
    ours, theirs = tiny.Ours(tmp_path / "llava", talks, "padded"), tiny.Theirs(tmp_path / "llava", talks)
    ours.model.decoder.norm.weight.data[0] += 1
    with pytest.raises(SystemExit, match=r"logits of up to .* differ by .*; nothing was timed"):
        tiny.logit_gap(ours, theirs, talks)
    with pytest.raises(SystemExit, match=r"padded: loss .*, theirs .*; nothing was timed"):
        tiny.in_turns({"theirs": theirs.step, "padded": ours.step}, 1)
    assert load_bundle(tmp_path / "llava").model.config.encoders["image"].layer == -2


def test_memory_is_told_with_and_without_imports(tiny, monkeypatch):
    jobs = []
    told = {"theirs": {"imports": 500, "peak": 3000}, "padded": {"imports": 700, "peak": 1500}}
    monkeypatch.setattr(tiny, "in_a_process", lambda options, folder, job: jobs.append(job) or told.get(job, {}))
    (found,) = tiny.bench_memory(Namespace(**{**OPTIONS, "ways": ["padded"]}, layer=-2))
    assert jobs == ["write", "theirs", "padded"]
    assert (found["ratio"], found["ratio_without_imports"]) == (2.0, 3.125)
    assert found["imports"] == {"ours": 700, "theirs": 500}


def test_a_process_of_its_own_tells_its_memory(tiny, monkeypatch, tmp_path, capsys):
    sys.modules["bench_llava"].write_model(tmp_path / "llava", 8192, -2)
    for side in ("theirs", "packed"):
        tiny.work(Namespace(work=side, folder=tmp_path / "llava", talks=2, layer=-2))
        told = json.loads(capsys.readouterr().out)
        assert 0 < told["imports"] <= told["peak"]

"""Figures that need a GPU, one JSON line each; `docs/gpu-backlog.md` lists them.

python scripts/gpu_report.py --only pretrain-1b
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from mmgpt.applications.pipeline import run_recipe
from mmgpt.generation.compiled_step import compiled_step
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import new_bundle
from mmgpt.model.config import ModelConfig
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.optim import make_optimizers
from mmgpt.training.recipe import Recipe, StageConfig
from mmgpt.training.stage import PEAK_FLOPS
from mmgpt.training.step import train_step

Record = dict[str, Any]


def pretrain_1b(steps: int = 20, rows: int = 16, length: int = 2048) -> Record:
    """Train steps of a 1 B decoder on random text in bf16, and the share of the device's peak they reach."""
    sizes = {"width": 2048, "depth": 16, "heads": 32, "kv_heads": 8, "ffn_width": 8192, "context": length, "tied": True}
    config = ModelConfig.model_validate({"decoder": sizes})
    bundle = new_bundle(config, Tokenizer.train(["text"], 300), "plain")
    model = bundle.model.cuda()
    data = [{"reader": "world", "name": "stories"}]
    stage = StageConfig.model_validate({"name": "pretrain", "data": data, "steps": steps, "precision": "bfloat16"})
    optimizers = make_optimizers(model, stage)
    ids = torch.randint(0, 290, (rows, length)).tolist()
    rendered = [
        Rendered(row, [-100, *row[1:]], [0] * length, list(range(length)), [], "random", "random") for row in ids
    ]
    batches = [collate([one]) for one in rendered]
    for _ in range(3):
        train_step(model, optimizers, batches, max_norm=1.0, precision="bfloat16")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        train_step(model, optimizers, batches, max_norm=1.0, precision="bfloat16")
    torch.cuda.synchronize()
    tokens_per_second = steps * rows * length / (time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters())
    attention = 6 * sizes["depth"] * sizes["width"] * length  # FLOPs a token, causal
    achieved = tokens_per_second * (6 * parameters + attention)
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()]
    return {
        "parameters": parameters,
        "tokens_per_second": round(tokens_per_second),
        "mfu": round(achieved / peaks[0], 4) if peaks else None,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }


def quickstart_gpu() -> Record:
    """Wall time and scores of the quickstart."""
    started = time.perf_counter()
    finished = run_recipe("quickstart", out=Path(tempfile.mkdtemp()) / "run", device="cuda")
    assert finished.evaluation is not None
    scores = {row["task"]: row["metrics"]["exact_match"]["value"] for row in finished.evaluation.results}
    return {"seconds": round(time.perf_counter() - started, 1), **scores}


def loader_wait(steps: int = 60, device: str = "cuda", width: int = 1024, workers: int = 8) -> Record:
    """Share of a training step that waits for data: photographs of 500 x 375 from shards, 64 a step, 8 workers."""
    import webdataset  # of the extra dev

    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    with webdataset.ShardWriter(f"{folder}/shard-%06d.tar", maxcount=200, verbose=0) as writer:
        for number in range(1000):
            buffer = io.BytesIO()
            noise = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(noise).resize((500, 375), PIL.Image.Resampling.BICUBIC).save(buffer, format="JPEG")
            writer.write({"__key__": f"{number:06d}", "jpg": buffer.getvalue(), "txt": f"picture {number}"})
    tree = {
        "name": "loader",
        "tokenizer": {"vocab_size": 300, "num_samples": 50},
        "model": {
            "decoder": {"width": width, "depth": 16, "heads": width // 64, "context": 512},
            "encoders": {"image": {"kind": "vit"}},
            "adapters": {"image": {"kind": "mlp"}},
        },
        "stages": [
            {
                "name": "train",
                "data": [{"reader": "shards", "path": "."}],
                "steps": steps,
                "batch_size": 64,
                "micro_batch_tokens": 16384,
                "workers": workers,
                "precision": "bfloat16",
            }
        ],
    }
    run = train(Recipe.model_validate(tree), out=folder / "run", data_root=folder, device=device)
    lines = [line for line in read_log(run.folder / "log.jsonl") if line.get("step", 0) > steps // 2]
    seconds = sum(line["seconds"] for line in lines)
    waited = sum(line["data_time"] * line["seconds"] for line in lines)  # data_time is a share
    return {"wait_share": round(waited / seconds, 4), "seconds": round(seconds, 2), "workers": workers}


def decode_1b(steps: int = 128, device: str = "cuda", width: int = 2048, depth: int = 16) -> Record:
    """Tokens a second of a 1 B decoder in bf16 after 512 tokens, one row: plain, compiled, and transformers' compiled.

    The bound is the memory's bandwidth, measured by a copy of 1 GB, over the bytes that a token reads: all weights.
    """
    sizes = {"width": width, "depth": depth, "heads": width // 64, "kv_heads": width // 256, "ffn_width": 4 * width}
    config = ModelConfig.model_validate({"decoder": {**sizes, "context": 2048, "tied": True}})
    model = MultimodalModel(config, 128_256, {}).to(device, torch.bfloat16).eval()
    prompt = Rendered([1] * 512, [-100] * 512, [0] * 512, list(range(512)), [], "prompt", "")

    def speed(step: Callable[[], object]) -> float:
        for _ in range(8):
            step()
        _wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        return round(steps / (time.perf_counter() - started), 1)

    with torch.inference_mode():
        cache, logits_BV = prefill(model, [prompt], 2 * steps + 64)
        ids_B, before = logits_BV.argmax(dim=-1), cache.lengths_B.clone()
        found: Record = {}
        for name, step in {"plain": decode_one, "compiled": compiled_step(model)}.items():
            cache.lengths_B = before.clone()
            found[name] = speed(lambda step=step: step(model, cache, ids_B))
    found["transformers_compiled"] = _their_speed(sizes, steps, device)
    weights = sum(weight.nbytes for weight in model.parameters())
    return {**found, "bound": round(_bandwidth(device) / weights, 1), "weights_gb": round(weights / 1e9, 2)}


def _their_speed(sizes: dict[str, int], steps: int, device: str) -> float:
    """New tokens a second of transformers' Llama of the shape, with its static cache, which it compiles for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["ffn_width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        vocab_size=128_256,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(device, torch.bfloat16).eval()
    ids = torch.ones(1, 512, dtype=torch.long, device=device)
    seconds = {}
    for count in (1, steps + 1, 1, steps + 1):  # the first two compile
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, cache_implementation="static")
        _wait(device)
        seconds[count] = time.perf_counter() - started
    return round(steps / (seconds[steps + 1] - seconds[1]), 1)


def _bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(1 << 29, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    _wait(device)
    started = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    _wait(device)
    return 20 * 2 * source.nbytes / (time.perf_counter() - started)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


FIGURES = {
    "decode-1b": decode_1b,
    "loader-wait": loader_wait,
    "pretrain-1b": pretrain_1b,
    "quickstart-gpu": quickstart_gpu,
}


def main() -> None:
    """Measure the figures asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(FIGURES), action="append")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "no GPU here: these figures are measured on one\n")
    for name in arguments.only or sorted(FIGURES):
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        print(json.dumps({"figure": name, **FIGURES[name](), **device}), flush=True)


if __name__ == "__main__":
    main()

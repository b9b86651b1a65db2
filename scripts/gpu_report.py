"""Figures that need a GPU, one JSON line each; `docs/gpu-backlog.md` lists them.

python scripts/gpu_report.py --only pretrain-1b
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import webdataset

from mmgpt.evaluation.pipeline import run_recipe
from mmgpt.inputs.batch import collate
from mmgpt.inputs.chat import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import new_bundle
from mmgpt.model.multimodal import ModelConfig
from mmgpt.training.log import read_log
from mmgpt.training.loop import PEAK_FLOPS, train
from mmgpt.training.optim import make_optimizers
from mmgpt.training.recipe import Recipe, StageConfig
from mmgpt.training.step import train_step

Record = dict[str, Any]


def pretrain_1b(steps: int = 20, rows: int = 16, length: int = 2048) -> Record:
    """Train steps of a 1 B decoder on random text in bf16, and the share of the device's peak they reach."""
    sizes = {"width": 2048, "depth": 16, "heads": 32, "kv_heads": 8, "inner": 8192, "context": length, "tied": True}
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


FIGURES = {"loader-wait": loader_wait, "pretrain-1b": pretrain_1b, "quickstart-gpu": quickstart_gpu}


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

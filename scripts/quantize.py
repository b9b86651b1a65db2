"""What weights in few bits cost and save: size, memory, speed, logits and scores, a line of Markdown a form.

python scripts/quantize.py [CHECKPOINT] [--tasks easy_vqa,scene_questions] [--limit 200] [--data-root DIR] [--rounds 3]

Without a checkpoint, a random decoder of SmolLM2-135M's shape. Each form is written by `mmgpt convert` and measured
in a process of its own, in turns; speeds are the best round's. Memory is the peak of resident memory while it loads and
answers, less what the process held before. The gap is the largest of any logit after any of the prompts, as a share of
float32's largest; `same` is the share of prompts after which the likeliest token is float32's.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgpt.checkpoints.convert import convert
from mmgpt.checkpoints.golden import golden_logits
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import build
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Message, parse_messages
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.evaluation.run import evaluate
from mmgpt.files import read_json, write_folder
from mmgpt.generation.assistant import Assistant, load
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import new_bundle
from mmgpt.model.config import ModelConfig

FORMAT_OF_MODEL_TYPE = {
    "float32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantize": "int8"},
    "int4": {"dtype": "float32", "quantize": "int4"},
    "int8-dynamic": {"dtype": "float32", "quantize": "int8-dynamic"},
}
SHAPE = {"width": 576, "depth": 30, "heads": 9, "kv_heads": 3, "ffn_width": 1536, "context": 2048, "tied": True}
ROWS = 49_152
TEXTS = ["What is red?", "How many are there?", "Once upon a time", "Name a colour.", "Where is the circle?", "Why?"]
PREFILL = 512  # tokens of the long prompt


def write_random(folder: Path) -> None:
    """A decoder of SmolLM2-135M's shape; blocks do not begin as the identity."""
    stories = open_source(WorldConfig(reader="world", name="stories"))
    tokenizer = Tokenizer.train((stories[i].turns[-1].text for i in range(200)), 1000).extended(
        TEMPLATES["chatml"].tokens
    )
    torch.manual_seed(0)
    config = build(ModelConfig, {"decoder": {**SHAPE, "zero_init": False}}, "135M")
    bundle = new_bundle(config, tokenizer, "chatml", ROWS)
    write_folder(folder, lambda draft: save_bundle(bundle, draft))


@torch.inference_mode()
def speeds(assistant: Assistant, tokens: int) -> dict[str, float]:
    """Tokens a second after a short prompt, one at a time, and of reading a long one."""
    model, renderer = assistant.model.eval(), assistant.renderer
    prompt = renderer.prompt((Message.of("user", TEXTS[0]),))
    room = min(tokens, renderer.context - len(prompt.ids) - 1)
    cache, logits_BV = prefill(model, [prompt], room + 1)
    begun = time.perf_counter()
    for _ in range(room):
        logits_BV = decode_one(model, cache, logits_BV.argmax(dim=1))
    decoding = room / (time.perf_counter() - begun)
    length = min(PREFILL, renderer.context)
    ids, positions = torch.full((1, length), prompt.ids[-1]), torch.arange(length)[None]
    begun = time.perf_counter()
    model.decoder(model.decoder.embed(ids), positions)
    return {"decode": decoding, "prefill": length / (time.perf_counter() - begun)}


def measure(options: argparse.Namespace) -> None:
    """One form, in this process: a JSON line."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux); a child inherits its parent's
    before = megabytes("VmRSS")
    assistant = load(options.checkpoint, device="cpu", verify=True)
    speeds(assistant, 4)
    told: dict[str, Any] = speeds(assistant, options.tokens)
    told["memory"] = megabytes("VmHWM") - before
    prompts = [parse_messages(read_json(Path(options.checkpoint) / "golden.json")["messages"])]
    prompts += [(Message.of("user", text),) for text in TEXTS]
    np.save(options.logits, torch.stack([golden_logits(assistant.bundle, one) for one in prompts]).numpy())
    if options.tasks:
        found = evaluate(assistant, options.tasks.split(","), limit=options.limit, data_root=options.data_root)
        told["scores"] = {
            f"{one['task']} {name}": 100 * score["value"]
            for one in found.results
            for name, score in one["metrics"].items()
        }
    print(json.dumps(told))


def megabytes(name: str) -> float:
    """A line of this process's memory status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1000


def run_form(folder: Path, logits: Path, options: argparse.Namespace, with_tasks: bool) -> dict[str, Any]:
    """Measure a folder in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--logits", str(logits), "--tokens", str(options.tokens)]
    command += ["--data-root", str(options.data_root)]
    if with_tasks and options.tasks:
        command += ["--tasks", options.tasks, *(["--limit", str(options.limit)] if options.limit else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name} failed: {done.stderr}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def compare(root: Path, options: argparse.Namespace) -> None:
    """Write every form, measure them in turns, print the table."""
    source = options.checkpoint
    if source is None:
        source = root / "random"
        write_random(source)
    for name, how in FORMAT_OF_MODEL_TYPE.items():
        convert(source, root / name, **how)  # type: ignore[arg-type]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMAT_OF_MODEL_TYPE}
    for number in range(options.rounds):
        for name in FORMAT_OF_MODEL_TYPE:
            rounds[name].append(run_form(root / name, root / f"{name}.npy", options, number == 0))
    exact = np.load(root / "float32.npy")
    scores = list(rounds["float32"][0].get("scores", {}))
    head = ["form", "MB", "memory MB", "decode tokens/s", f"prefill of {PREFILL} tokens/s", "gap", "same", *scores]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for name, told in rounds.items():
        size = sum(file.stat().st_size for file in (root / name).glob("*.safetensors")) / 1e6
        logits = np.load(root / f"{name}.npy")
        gap = np.abs(logits - exact).max() / np.abs(exact).max()
        same = (logits.argmax(1) == exact.argmax(1)).mean()
        best = [max(one[kind] for one in told) for kind in ("decode", "prefill")]
        cells = [
            f"{size:.1f}",
            f"{told[0]['memory']:.0f}",
            *(f"{one:,.1f}" for one in best),
            f"{gap:.4f}",
            f"{same:.0%}",
        ]
        scored = [f"{told[0]['scores'][score]:.1f}" for score in scores]
        print(f"| {' | '.join([name, *cells, *scored])} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--tasks", default="", help="tasks to score, with commas between them")
    parser.add_argument("--limit", type=int, help="the first so many questions of each")
    parser.add_argument("--data-root", default=".")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logits", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.logits:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


if __name__ == "__main__":
    main()

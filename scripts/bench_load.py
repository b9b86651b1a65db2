"""Benchmark: reading a language model of a billion parameters, against safetensors alone; one JSON line a metric.

python scripts/bench_load.py [--rounds 3] [--folder FOLDER]

Both sides run in turns, each in a process of its own, on the same shards in bf16, and touch every byte: safetensors
reads the tensors; ours also renames and checks them and builds the decoder. Memory is the peak of resident memory less
what the process held before, as a share of the checkpoint's size; pages of mapped files are counted.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from processor import parse, tell
from safetensors.torch import load_file
from torch import Tensor

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights, describe, family_rules
from mmgpt.config import build
from mmgpt.files import save_weights, write_json
from mmgpt.model.decoder import Decoder
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.meta import on_meta_device
from mmgpt.weight_names import to_theirs

VOCAB, SHARD_BYTES = 32_000, 700_000_000
CONFIG = DecoderConfig(
    family="llama", width=2048, depth=16, heads=32, kv_heads=8, ffn_width=8192, context=8192, norm_eps=1e-5
)
MOST = {"seconds": "ratio >= 0.77", "peak memory over size": "ours <= 1.15"}


def write_checkpoint(folder: Path) -> None:
    """Random finite bf16 weights in a few shards."""
    with on_meta_device():
        wanted = Decoder(CONFIG, VOCAB).state_dict()
    weights = {
        name: torch.randint(0, 1 << 14, weight.shape, dtype=torch.int16).view(torch.bfloat16)
        for name, weight in wanted.items()
    }
    write_json(folder / "config.json", describe(CONFIG, VOCAB, torch.bfloat16, {}))
    save_weights(to_theirs(weights, family_rules(CONFIG)), folder, SHARD_BYTES)


def touch(weights: Iterable[Tensor]) -> None:
    """Read every byte."""
    for weight in weights:
        weight.detach().view(-1).view(torch.int64).max()


def read_safetensors(folder: Path) -> None:
    """The shards as they are."""
    weights: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard)
    touch(weights.values())


def read_decoder(folder: Path) -> None:
    """A decoder ready to run."""
    config = build(DecoderConfig, decoder_fields(folder), str(folder))
    with on_meta_device():
        decoder = Decoder(config, VOCAB)
    decoder.load_state_dict(decoder_weights(folder, config), assign=True)
    touch(decoder.state_dict().values())


WORK = {"write": write_checkpoint, "ours": read_decoder, "theirs": read_safetensors}


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(work: str, folder: Path) -> dict[str, float]:
    """Seconds and bytes of one piece of work, done by a process of its own."""
    command = [sys.executable, __file__, "--work", work, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def main() -> None:
    """Run the benchmark, or one piece of its work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; a temporary folder if not given")
    parser.add_argument("--work", choices=sorted(WORK), help=argparse.SUPPRESS)
    options = parse(parser)
    if options.work:
        before, started = peak_bytes(), time.perf_counter()
        WORK[options.work](options.folder)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        in_a_process("write", folder)
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
        size, shards = sum(sizes), len(sizes)
        runs = [{side: in_a_process(side, folder) for side in ("ours", "theirs")} for _ in range(options.rounds + 1)]
        del runs[0]  # what was just written is still on its way to the disk
    for metric, key, unit in (("seconds", "seconds", 1), ("peak memory over size", "bytes", size)):
        ours, theirs = (statistics.median(run[side][key] for run in runs) / unit for side in ("ours", "theirs"))
        found = {
            "bench": "load",
            "peer": "safetensors",
            "metric": metric,
            "ours": round(ours, 3),
            "theirs": round(theirs, 3),
            "ratio": round(theirs / ours, 3),
            "to_reach": MOST[metric],
            "shapes": {"bytes": size, "shards": shards, "rounds": options.rounds},
        }
        tell(found, torch.get_num_threads(), "safetensors")


if __name__ == "__main__":
    main()

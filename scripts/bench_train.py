"""Benchmark of a train step: mmgpt and transformers' LLaVA of the same weights; one JSON line for each comparison.

python scripts/bench_train.py --against transformers [--only speed|memory] [--processor avx2]

Both sides read one folder (see `bench_llava.py`) and take the same step of AdamW with clipped gradients over the same
batch. Logits, losses and norms of the gradient are compared before a clock runs. transformers pads to the longest talk;
ours does too, or forms micro-batches of like lengths, or packs. Padding does not count as tokens.
Speed: in turns in one process, the median of the rounds. Memory: the most that a process has resident while it reads a
model of 32,000 tokens and takes two steps, each side alone, imports included; their share is told beside it.
"""

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from bench_llava import MODULES, WAYS, Ours, Talk, Theirs, make_talks, slot_of, write_model
from processor import parse, tell

VOCABULARY, LARGE_VOCABULARY = 8192, 32_000
TOLERANCE = 1e-5  # shares of what is compared, before the first update: AdamW magnifies rounding
PEER = "transformers LLaVA"


def in_turns(runs: Mapping[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run one after the other in every round, after a first one that is checked instead."""
    first = {name: run() for name, run in runs.items()}
    check_steps(first)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def check_steps(found: Mapping[str, tuple[float, float]]) -> None:
    """Stop unless loss and norm of the gradient are the same whichever way a step is taken.

    Raises:
        SystemExit: with the figures.
    """
    for name, figures in found.items():
        for kind, ours, theirs in zip(("loss", "gradient norm"), figures, found["theirs"], strict=True):
            if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
                raise SystemExit(f"{name}: {kind} {ours}, theirs {theirs}; nothing was timed")


def logit_gap(ours: Ours, theirs: Theirs, talks: list[Talk]) -> float:
    """The largest difference of any logit, as a share of the largest logit.

    Raises:
        SystemExit: if it is above 1e-5.
    """
    gap, largest = 0.0, 0.0
    for our_TV, their_TV, talk in zip(ours.logits(), theirs.logits(), talks, strict=True):
        real = slice(len(talk.ids))
        gap = max(gap, float((our_TV[real] - their_TV[real]).abs().max()))
        largest = max(largest, float(their_TV[real].abs().max()))
    if not gap <= TOLERANCE * largest:
        raise SystemExit(f"logits of up to {largest:.3g} differ by {gap:.2g}; nothing was timed")
    return gap / largest


def bench_speed(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Real tokens a second of a train step, in each of our ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "llava"
        parameters = write_model(folder, VOCABULARY, options.layer)
        talks = make_talks(options.talks, slot_of(folder))
        sides = {way: Ours(folder, talks, way) for way in options.ways}
        theirs = Theirs(folder, talks)
        gap = logit_gap(sides.get("padded") or Ours(folder, talks, "padded"), theirs, talks)
    found = in_turns({"theirs": theirs.step, **{way: side.step for way, side in sides.items()}}, options.rounds)
    tokens = sum(len(talk.ids) for talk in talks)
    for way, side in sides.items():
        yield {
            "bench": "train",
            "peer": PEER,
            "metric": "real tokens a second of a train step",
            "way": way,
            "ours": round(tokens / found[way], 1),
            "theirs": round(tokens / found["theirs"], 1),
            "ratio": round(found["theirs"] / found[way], 3),
            "to_reach": 1.5,
            "largest_logit_gap": float(f"{gap:.2g}"),
            "shapes": {
                "parameters": parameters,
                "vocabulary": VOCABULARY,
                "vision_feature_layer": options.layer,
                "talks": len(talks),
                "tokens": tokens,
                "targets": sum(batch.num_targets for batch in side.batches),
                "rows": [list(batch.ids.shape) for batch in side.batches],
                "their_rows": list(theirs.labels.shape),
                "rounds": options.rounds,
            },
        }


def megabytes() -> float:
    """The most that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(options: argparse.Namespace) -> None:
    """The job of a process of its own: to write the model, or to take two steps and tell the memory."""
    if options.work == "write":
        write_model(options.folder, LARGE_VOCABULARY, options.layer)
        return
    for name in MODULES["theirs" if options.work == "theirs" else "ours"]:
        importlib.import_module(name)
    imports, talks = megabytes(), make_talks(options.talks, slot_of(options.folder))
    is_theirs = options.work == "theirs"
    side = Theirs(options.folder, talks) if is_theirs else Ours(options.folder, talks, options.work)
    for _ in range(2):  # the second one has the optimizer's moments
        side.step()
    print(json.dumps({"imports": imports, "peak": megabytes()}))


def in_a_process(options: argparse.Namespace, folder: Path, job: str) -> dict[str, float]:
    """What a job tells. The peak of this process counts as the other's too (Linux), so no model is held here."""
    given = {"work": job, "folder": folder, "threads": options.threads, "talks": options.talks, "layer": options.layer}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in given.items())]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told) if told else {}


def bench_memory(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Peak memory of a train step with a large vocabulary, in each of our ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "llava"
        in_a_process(options, folder, "write")
        theirs, *ours = (in_a_process(options, folder, job) for job in ("theirs", *options.ways))
    for way, found in zip(options.ways, ours, strict=True):
        yield {
            "bench": "train",
            "peer": PEER,
            "metric": "peak resident megabytes of a train step, imports included",
            "way": way,
            "ours": round(found["peak"]),
            "theirs": round(theirs["peak"]),
            "ratio": round(theirs["peak"] / found["peak"], 3),
            "to_reach": 2.0,
            "imports": {"ours": round(found["imports"]), "theirs": round(theirs["imports"])},
            "ratio_without_imports": round(
                (theirs["peak"] - theirs["imports"]) / (found["peak"] - found["imports"]), 3
            ),
            "shapes": {
                "vocabulary": LARGE_VOCABULARY,
                "vision_feature_layer": options.layer,
                "talks": options.talks,
                "steps": 2,
            },
        }


BENCHES = {"memory": bench_memory, "speed": bench_speed}  # speed last: it fills this process


def main() -> None:
    """Run the benchmarks, or one job of theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["transformers"], default="transformers")
    parser.add_argument("--only", choices=list(BENCHES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--talks", type=int, default=8, help="samples of the batch")
    parser.add_argument("--layer", type=int, default=-2, help="of the tower, whose features are taken; -2 in LLaVA-1.5")
    parser.add_argument("--work", choices=("write", "theirs", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parse(parser)
    torch.set_num_threads(options.threads)
    if options.work:
        work(options)
        return
    for name in [options.only] if options.only else BENCHES:
        for found in BENCHES[name](options):
            tell(found, torch.get_num_threads(), "transformers")


if __name__ == "__main__":
    main()

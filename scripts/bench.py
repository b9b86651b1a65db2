"""Benchmarks: ours and the other way in turns in one process; one JSON line for each comparison.

python scripts/bench.py branches      answers a second in training: questions as branches against separate samples
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL.Image
import torch

from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.multimodal import ModelConfig
from mmgpt.model.weights import Bundle, new_bundle

QUESTIONS, TOKENS, PICTURES = 8, 12, 2


def build_model() -> Bundle:
    """A ViT of 224 pixels and patch 16 (196 image tokens) before a small decoder."""
    config = ModelConfig.model_validate(
        {
            "decoder": {"width": 384, "depth": 6, "heads": 6, "context": 4096, "inner": 1536},
            "encoders": {"image": {"kind": "vit", "width": 192, "depth": 6, "heads": 6}},
            "adapters": {"image": {"kind": "mlp"}},
        }
    )
    tokenizer = Tokenizer.train(["digits"], 300)
    return new_bundle(config, tokenizer, "plain")


def bench_branches(rounds: int) -> dict[str, object]:
    """Loss and gradients of 8 questions of 12 tokens about a picture of 196 tokens, branched and separate."""
    torch.manual_seed(0)
    bundle = build_model()
    rng = np.random.default_rng(0)
    samples = []
    for number in range(PICTURES):
        picture = Image(PIL.Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)))
        turns = []
        for _ in range(QUESTIONS):
            turns.append((Message.of("user", _digits(rng, TOKENS)), Message.of("assistant", _digits(rng, 1))))
        samples.append(Sample((Message.of("user", picture),), "bench", f"bench/{number}", tuple(turns)))
    branched = collate([bundle.renderer.render(sample) for sample in samples])
    separate = collate([bundle.renderer.render(one) for sample in samples for one in sample.unbranched()])

    def step(batch: object) -> Callable[[], None]:
        def run() -> None:
            bundle.model(batch).total.backward()

        return run

    bundle.model.zero_grad()
    step(branched)()
    gradients = {name: p.grad.clone() for name, p in bundle.model.named_parameters() if p.grad is not None}
    bundle.model.zero_grad()
    step(separate)()
    gap = max(
        float((gradients[name] - p.grad).abs().max() / p.grad.abs().max().clamp(min=1e-12))
        for name, p in bundle.model.named_parameters()
        if p.grad is not None
    )
    ours, theirs = in_turns(step(branched), step(separate), rounds)
    answers = PICTURES * QUESTIONS
    return {
        "bench": "branches",
        "peer": "separate samples",
        "metric": "answers a second in training (forward and backward)",
        "ours": round(answers / ours, 2),
        "theirs": round(answers / theirs, 2),
        "ratio": round(theirs / ours, 2),
        "largest_relative_gradient_gap": gap,
        "shapes": {"branched": list(branched.ids.shape), "separate": list(separate.ids.shape), "image_tokens": 196},
    }


def _digits(rng: np.random.Generator, count: int) -> str:
    """Text of exactly `count` tokens: digits stand alone."""
    return "".join(map(str, rng.integers(0, 10, count)))


def in_turns(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median seconds of both, run alternately after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, seconds in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            run()
            if number:
                seconds.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


BENCHES = {"branches": bench_branches}


def main() -> None:
    """Run the benches named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", choices=sorted(BENCHES))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for name in arguments.benches:
        found = BENCHES[name](arguments.rounds)
        found["hardware"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        found["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

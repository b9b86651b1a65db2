"""Benchmarks of generation: ours and the other way in turns in one process; one JSON line for each comparison.

python scripts/bench_generate.py answers           ours, transformers' LLaVA of equal shape, and bare matrix products
python scripts/bench_generate.py shots             questions after 16 examples, their beginning reused or read again
python scripts/bench_generate.py queue             a queue of requests: joining the batch, or in batches of fixed rows

Weights are random and of one precision, float32; a ratio above 1 means ours is better. Times are the least over the
rounds, for what else runs on the machine only ever adds to them; batches are warmed up.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bench_models import IMAGE, IMAGE_TOKENS, SHAPES, our_model, picture, prompt_of, their_model, words
from processor import parse, tell
from torch import nn

from mmgpt.generation.compiled_step import compiled_step
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.engine import Engine
from mmgpt.generation.generate import GenerationRequest, generate
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.model.quantize import Quantization, Scheme, quantize_model

TO_REACH = {("23m", 1): 1.8, ("23m", 8): 1.4, ("135m", 1): 1.15, ("135m", 8): 1.15}
TEXT_TOKENS, NEW_TOKENS = 32, 64
NO_END = -1
FEW = GenerateConfig(max_new_tokens=4)


def prompts_of(batch: int) -> list[Rendered]:
    """A picture and 32 tokens of text a row."""
    rng = random.Random(0)
    return [prompt_of([IMAGE] * IMAGE_TOKENS + words(rng, TEXT_TOKENS), [picture(row)]) for row in range(batch)]


class Silent(Tokenizer):
    """Ids have no texts here."""

    def __init__(self) -> None:
        pass

    def decode(self, ids: Any, keep_special: bool = False) -> str:
        """Nothing."""
        return ""


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each, run one after the other in every round, after a warm-up."""
    least = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:
                least[name] = min(least[name], time.perf_counter() - started)
    return least


def peak_megabytes(run: Callable[[], object]) -> float:
    """What a run takes beyond what the process holds before it, at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return round(_status("VmHWM") - before, 1)


def _status(name: str) -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) / 1024


@torch.inference_mode()
def products(model: nn.Module, rows: int, last_rows: int) -> Callable[[], None]:
    """All matrix products of a pass over so many rows, and nothing else; the output layer's has its own number."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    inputs = {
        (layer.in_features, count): torch.randn(count, layer.in_features)
        for layer in layers
        for count in (rows, last_rows)
    }
    head = getattr(model, "head", None)

    @torch.inference_mode()
    def run() -> None:
        for layer in layers:
            F.linear(inputs[layer.in_features, last_rows if layer is head else rows], layer.weight)

    return run


class Case:
    """A shape and a batch: what is run in turns."""

    def __init__(self, shape: str, batch: int, ways: Sequence[str]) -> None:
        self.shape, self.batch, self.ways = shape, batch, {name: WAYS[name] for name in ways}
        self.models = {scheme: self._model(scheme) for scheme in {None, *(way.scheme for way in self.ways.values())}}
        self.compiled = compiled_step(self.models[None])
        self.theirs = their_model(shape)
        self.prompts = prompts_of(batch)
        self.ids_BT = torch.tensor([one.ids for one in self.prompts])
        self.pixels = torch.stack([one.media[0].values for one in self.prompts]).float() / 127.5 - 1

    def _model(self, scheme: Scheme | None) -> MultimodalModel:
        torch.manual_seed(0)
        model = our_model(self.shape)
        for weight in model.decoder.parameters():  # as made, blocks begin as the identity
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        if scheme:
            quantize_model(model, Quantization(scheme=scheme))
        return model

    def ours(self, count: int, way: "Way") -> list[list[int]]:
        """The tokens of every row."""
        config = GenerateConfig(max_new_tokens=count, speculation=way.speculation)
        step = self.compiled if way.is_compiled else decode_one
        engine = Engine(self.models[way.scheme], Silent(), NO_END, step)
        asked = [GenerationRequest(lambda one=one: one, config, 0) for one in self.prompts]
        return [reply.tokens for reply in generate(engine, asked, self.batch)]

    def peer(self, count: int) -> None:
        """Their generate, with so many tokens forced."""
        fixed = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        mask = torch.ones_like(self.ids_BT)
        out = self.theirs.generate(input_ids=self.ids_BT, pixel_values=self.pixels, attention_mask=mask, **fixed)
        assert out.shape[1] == self.ids_BT.shape[1] + count

    def runs(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name; the products of the steps are run as often as the steps, as hot as theirs."""
        model, batch = self.models[None], self.batch
        tower = products(model.encoders, batch * IMAGE_TOKENS, 1)
        reading = products(model.decoder, batch * (IMAGE_TOKENS + TEXT_TOKENS), batch)
        step = products(model.decoder, batch, batch)
        return {
            "theirs": lambda: self.peer(NEW_TOKENS),
            "theirs, first": lambda: self.peer(1),
            "ours, first": lambda: self.ours(1, PLAIN),
            "products, first": lambda: (tower(), reading()),
            "products, steps": lambda: [step() for _ in range(NEW_TOKENS - 1)],
            **{name: partial(self.ours, NEW_TOKENS, way) for name, way in self.ways.items()},
        }


@dataclass(frozen=True)
class Way:
    """A way of ours to decode."""

    scheme: Scheme | None = None
    speculation: Literal["lookup"] | None = None
    is_compiled: bool = False


PLAIN = Way()
WAYS = {
    "plain": PLAIN,
    "compiled": Way(is_compiled=True),
    "lookup": Way(speculation="lookup"),
    "int8": Way("int8"),
    "int8-dynamic": Way("int8-dynamic"),
    "int8 lookup": Way("int8", "lookup"),
}


def bench_answers(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """New tokens a second, time to the first, and both parts against the products that they cannot do without.

    Answers of random weights soon repeat themselves, which suits guessing by look-up.
    """
    for shape in options.shapes:
        for batch in options.batches:
            case = Case(shape, batch, options.ways)
            runs = case.runs()
            found = in_turns(runs, options.rounds)
            first, steps = found["ours, first"], NEW_TOKENS - 1
            floor = found["products, steps"] / steps
            plain = [token for row in case.ours(NEW_TOKENS, PLAIN) for token in row]
            ways = {}
            for name, way in case.ways.items():
                told = [token for row in case.ours(NEW_TOKENS, way) for token in row]
                ways[name] = {
                    "new_tokens_a_second": round(batch * NEW_TOKENS / found[name], 1),
                    "ratio": round(found["theirs"] / found[name], 2),
                    "step_ms": round(1e3 * (found[name] - first) / steps, 2),
                    "decode_share_of_floor": round(floor * steps / (found[name] - first), 2),
                    "tokens_as_plain": round(sum(map(eq, told, plain)) / len(plain), 4),
                    "peak_megabytes": peak_megabytes(runs[name]),
                }
            yield {
                "bench": "generate answers",
                "peer": "transformers LLaVA",
                "theirs": {
                    "new_tokens_a_second": round(batch * NEW_TOKENS / found["theirs"], 1),
                    "step_ms": round(1e3 * (found["theirs"] - found["theirs, first"]) / steps, 2),
                    "peak_megabytes": peak_megabytes(runs["theirs"]),
                },
                "ours": ways,
                "to_reach": TO_REACH[shape, batch],
                "floor_step_ms": round(1e3 * floor, 2),
                "first_token_ms": {
                    name: round(1e3 * found[f"{name}, first"], 1) for name in ("ours", "theirs", "products")
                },
                "prefill_share_of_floor": round(found["products, first"] / first, 2),
                "shapes": {"model": shape, "batch": batch, "prompt": IMAGE_TOKENS + TEXT_TOKENS, "new": NEW_TOKENS},
            }


def bench_shots(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Questions about a picture each, with answers of four tokens, after the same 16 examples with their pictures."""
    for shape in options.shapes:
        model, rng = our_model(shape), random.Random(0)
        ids, media = [], []
        for shot in range(16):
            ids += [IMAGE] * IMAGE_TOKENS + words(rng, 12)
            media.append(picture(shot))
        asked = [
            prompt_of(ids + [IMAGE] * IMAGE_TOKENS + words(rng, 10), [*media, picture(100 + number)])
            for number in range(options.questions)
        ]

        def reused(model: MultimodalModel = model, asked: list[Rendered] = asked) -> None:
            list(Engine(model, Silent(), NO_END).generate([(one, FEW) for one in asked], 8))

        def read_again(model: MultimodalModel = model, asked: list[Rendered] = asked) -> None:
            engine = Engine(model, Silent(), NO_END)
            engine.reader.prefixes.limit = engine.reader.features.limit = 0
            for one in asked:
                list(engine.generate([(one, FEW)], 1))

        found = in_turns({"ours": reused, "theirs": read_again}, options.rounds)
        yield {
            "bench": "generate shots",
            "peer": "ours, every prompt read whole",
            "metric": "questions a second",
            "ours": round(options.questions / found["ours"], 2),
            "theirs": round(options.questions / found["theirs"], 2),
            "ratio": round(found["theirs"] / found["ours"], 2),
            "to_reach": 5.0,
            "shapes": {
                "model": shape,
                "shots": 16,
                "prompt": len(asked[0].ids),
                "new": 4,
                "questions": options.questions,
            },
        }


def queue_of(count: int) -> list[tuple[Rendered, GenerateConfig]]:
    """Prompts of 16 to 256 tokens whose answers end after a geometric number of tokens, 48 in the mean, 256 at most."""
    rng = random.Random(0)
    requests = []
    for _ in range(count):
        length = 1
        while length < 256 and rng.random() > 1 / 48:
            length += 1
        requests.append((prompt_of(words(rng, rng.randint(16, 256))), GenerateConfig(max_new_tokens=length)))
    return requests


def bench_queue(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Throughput of a queue, and whether memory stays flat over it."""
    for shape in options.shapes:
        model, requests = our_model(shape), queue_of(options.requests)
        new_tokens, rows = sum(config.max_new_tokens for _, config in requests), options.rows
        engine, memory, seconds = Engine(model, Silent(), NO_END), [], [0.0, 0.0]
        half = -(-len(requests) // 2)
        for at in (0, half):  # in turns, half of the queue each
            part = requests[at : at + half]
            started = time.perf_counter()
            list(engine.generate(part, rows))
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            seconds[0] += time.perf_counter() - started
            started = time.perf_counter()
            for first in range(0, len(part), rows):
                fixed_batch(model, part[first : first + rows])
            seconds[1] += time.perf_counter() - started
        yield {
            "bench": "generate queue",
            "peer": "ours, in batches that wait for their longest answer",
            "metric": "new tokens a second",
            "ours": round(new_tokens / seconds[0], 1),
            "theirs": round(new_tokens / seconds[1], 1),
            "ratio": round(seconds[1] / seconds[0], 2),
            "to_reach": 1.7,
            "peak_megabytes_so_far": [round(one) for one in memory],
            "shapes": {"model": shape, "requests": len(requests), "rows": rows, "new": new_tokens},
        }


def fixed_batch(model: MultimodalModel, part: Sequence[tuple[Rendered, GenerateConfig]]) -> None:
    """All rows until the longest answer ends."""
    longest = max(config.max_new_tokens for _, config in part)
    cache, logits_BV = prefill(model, [prompt for prompt, _ in part], longest)
    for _ in range(longest - 1):
        logits_BV = decode_one(model, cache, logits_BV.argmax(dim=-1))


BENCHES = {"answers": bench_answers, "shots": bench_shots, "queue": bench_queue}


def main() -> None:
    """Run the benches named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", choices=sorted(BENCHES))
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["23m"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["plain", "compiled"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=24, help="of shots, 8 at a time")
    parser.add_argument("--requests", type=int, default=1000, help="of the queue")
    parser.add_argument("--rows", type=int, default=8, help="of the queue's batch")
    options = parse(parser)
    torch.set_num_threads(options.threads)
    for name in options.benches:
        for found in BENCHES[name](options):
            tell(found, torch.get_num_threads(), "transformers")


if __name__ == "__main__":
    main()

"""Benchmarks of generation: ours and the other way in turns in one process; one JSON line for each comparison.

python scripts/bench_generate.py answers           ours, transformers' LLaVA of equal shape, and bare matrix products
python scripts/bench_generate.py shots             questions after 16 examples, their beginning reused or read again
python scripts/bench_generate.py queue             a queue of requests: joining the batch, or in batches of fixed rows

Weights are random and of one precision, float32; a ratio above 1 means ours is better. Times are the least over the
rounds, for what else runs on the machine only ever adds to them; batches are warmed up.
"""

import argparse
import json
import platform
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.engine import Engine
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.chat import IGNORED, Medium, Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.multimodal import ModelConfig, MultimodalModel

SHAPES = {
    "23m": {"width": 384, "depth": 6, "heads": 6, "inner": 1536, "vocabulary": 8192, "tied": False},
    "135m": {
        "width": 576,
        "depth": 30,
        "heads": 9,
        "kv_heads": 3,
        "inner": 1536,
        "vocabulary": 49152,
        "tied": True,
    },
}
TO_REACH = {("23m", 1): 1.8, ("23m", 8): 1.4, ("135m", 1): 1.15, ("135m", 8): 1.15}
TOWER = {"image_size": 224, "patch_size": 16, "width": 192, "depth": 6, "heads": 6}
IMAGE, IMAGE_TOKENS, TEXT_TOKENS, NEW_TOKENS = 3, 196, 32, 64
NO_END = -1
CONTEXT = 4096
FEW = GenerateConfig(max_new_tokens=4)


def our_model(shape: str) -> MultimodalModel:
    """A ViT of 196 tokens before a Llama."""
    decoder = dict(SHAPES[shape])
    vocabulary = decoder.pop("vocabulary")
    tree = {
        "decoder": {**decoder, "context": CONTEXT},
        "encoders": {"image": {"kind": "vit", **TOWER}},
        "adapters": {"image": {"kind": "mlp"}},
    }
    return MultimodalModel(ModelConfig.model_validate(tree), vocabulary, {"image": IMAGE}).eval()


def their_model(shape: str) -> Any:
    """transformers' LLaVA of the same shape."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    sizes = SHAPES[shape]
    vision = SiglipVisionConfig(
        hidden_size=TOWER["width"],
        intermediate_size=4 * TOWER["width"],
        num_hidden_layers=TOWER["depth"],
        num_attention_heads=TOWER["heads"],
        image_size=TOWER["image_size"],
        patch_size=TOWER["patch_size"],
        vision_use_head=False,
    )
    text = LlamaConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["inner"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes.get("kv_heads", sizes["heads"]),
        vocab_size=sizes["vocabulary"],
        tie_word_embeddings=sizes["tied"],
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=sizes["tied"],
    )
    return LlavaForConditionalGeneration(config).eval()


def picture(seed: int) -> Medium:
    """Random bytes of a picture, as an encoder's `prepare` gives them."""
    side = TOWER["image_size"]
    values = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Medium("image", values, IMAGE_TOKENS, f"picture {seed}")


def words(rng: random.Random, count: int) -> list[int]:
    """Random ids, none of them a placeholder."""
    return [rng.randrange(10, 8000) for _ in range(count)]


def prompt_of(ids: list[int], media: Sequence[Medium] = ()) -> Rendered:
    """A prompt as rendering gives it."""
    return Rendered(ids, [IGNORED] * len(ids), [0] * len(ids), list(range(len(ids))), list(media), "prompt", "")


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


def bench_answers(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """New tokens a second, time to the first, and both parts against the products that they cannot do without."""
    for shape in options.shapes:
        torch.manual_seed(0)
        ours, theirs = our_model(shape), their_model(shape)
        for batch in (1, 8):
            prompts = prompts_of(batch)
            ids_BT = torch.tensor([one.ids for one in prompts])
            pixels = torch.stack([one.media[0].values for one in prompts]).float() / 127.5 - 1

            def our_run(count: int, prompts: list[Rendered] = prompts, model: MultimodalModel = ours) -> None:
                config = GenerateConfig(max_new_tokens=count)
                list(Engine(model, Silent(), NO_END).answer([(one, config) for one in prompts], len(prompts)))

            def their_run(count: int, ids: Tensor = ids_BT, pixels: Tensor = pixels, model: Any = theirs) -> None:
                mask = torch.ones_like(ids)
                fixed = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
                out = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, **fixed)
                assert out.shape[1] == ids.shape[1] + count

            tower, length = products(ours.encoders, batch * IMAGE_TOKENS, 1), IMAGE_TOKENS + TEXT_TOKENS
            reading = products(ours.decoder, batch * length, batch)
            runs = {
                "ours": lambda run=our_run: run(NEW_TOKENS),
                "theirs": lambda run=their_run: run(NEW_TOKENS),
                "ours, first": lambda run=our_run: run(1),
                "theirs, first": lambda run=their_run: run(1),
                "products, first": lambda parts=(tower, reading): [part() for part in parts],
                "products, step": products(ours.decoder, batch, batch),
            }
            found = in_turns(runs, options.rounds)
            memory = {name: peak_megabytes(runs[name]) for name in ("ours", "theirs")}
            yield answers_line(shape, batch, found, memory)


def answers_line(shape: str, batch: int, found: dict[str, float], memory: dict[str, float]) -> dict[str, object]:
    """One comparison as it is printed."""
    steps = {name: (found[name] - found[f"{name}, first"]) / (NEW_TOKENS - 1) for name in ("ours", "theirs")}
    return {
        "bench": "generate answers",
        "peer": "transformers LLaVA",
        "metric": "new tokens a second, prompt included",
        "ours": round(batch * NEW_TOKENS / found["ours"], 1),
        "theirs": round(batch * NEW_TOKENS / found["theirs"], 1),
        "ratio": round(found["theirs"] / found["ours"], 2),
        "to_reach": TO_REACH[shape, batch],
        "first_token_ms": {name: round(1e3 * found[f"{name}, first"], 1) for name in ("ours", "theirs", "products")},
        "step_ms": {name: round(1e3 * seconds, 2) for name, seconds in steps.items()}
        | {"products": round(1e3 * found["products, step"], 2)},
        "share_of_floor": {
            "prefill": round(found["products, first"] / found["ours, first"], 2),
            "decode": round(found["products, step"] / steps["ours"], 2),
        },
        "peak_megabytes": memory,
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
            list(Engine(model, Silent(), NO_END).answer([(one, FEW) for one in asked], 8))

        def read_again(model: MultimodalModel = model, asked: list[Rendered] = asked) -> None:
            engine = Engine(model, Silent(), NO_END)
            engine.reader.prefixes.limit = engine.reader.features.limit = 0
            for one in asked:
                list(engine.answer([(one, FEW)], 1))

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
            list(engine.answer(part, rows))
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=24, help="of shots, 8 at a time")
    parser.add_argument("--requests", type=int, default=1000, help="of the queue")
    parser.add_argument("--rows", type=int, default=8, help="of the queue's batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.benches:
        for found in BENCHES[name](options):
            found["hardware"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
            found["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

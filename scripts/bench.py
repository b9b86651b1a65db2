"""Benchmarks: ours and the other way in turns in one process tree; one JSON line for each comparison.

python scripts/bench.py branches                   answers a second in training: questions as branches, or separate
python scripts/bench.py data --pictures FOLDER     our stream, plain webdataset with torchvision, Hugging Face datasets
python scripts/bench.py steps                      a training step from the stream, and from batches in memory

For `data` all read the same bytes: shards of a JPEG and a caption a sample, and a parquet file of the same. Each
decodes, resizes to 224 x 224, normalises, tokenises and batches 32 samples in two worker processes.
"""

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import webdataset
from processor import parse, tell
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mmgpt.datasets.media import Image
from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.inputs.dataloader import StepDataset, iterate_steps
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.model.config import ModelConfig

QUESTIONS, TOKENS, PICTURES = 8, 12, 2


def build_model() -> ModelBundle:
    """A ViT of 224 pixels and patch 16 (196 image tokens) before a small decoder."""
    config = ModelConfig.model_validate(
        {
            "decoder": {"width": 384, "depth": 6, "heads": 6, "context": 4096, "ffn_width": 1536},
            "encoders": {"image": {"kind": "vit", "width": 192, "depth": 6, "heads": 6}},
            "adapters": {"image": {"kind": "mlp"}},
        }
    )
    tokenizer = Tokenizer.train(["digits"], 300)
    return new_bundle(config, tokenizer, "plain")


def bench_branches(options: argparse.Namespace) -> Iterator[dict[str, object]]:
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
    ours, theirs = in_turns(step(branched), step(separate), options.rounds)
    answers = PICTURES * QUESTIONS
    yield {
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


SIZE, BATCH, WORKERS, CAPTIONS = 224, 32, 2, 5
GROUPS = 6  # pictures a step where their captions are branches: 30 samples
MEAN = STD = (0.5, 0.5, 0.5)
WORDS = ("a dog runs over the green grass with a ball in its mouth", "two children play in the water", "a man climbs")

Batches = Iterator[Any]


def write_samples(pictures: list[Path], folder: Path) -> int:
    """The same samples as tars and as parquet; returns how many there are."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    rows = []
    with webdataset.ShardWriter(str(folder / "shard-%06d.tar"), maxcount=100, verbose=0) as writer:
        for number in range(len(pictures) * CAPTIONS):
            picture = pictures[number % len(pictures)]
            text = f"{WORDS[number % len(WORDS)]}, picture {number}"
            writer.write({"__key__": f"{number:06d}", "jpg": picture.read_bytes(), "txt": text})
            rows.append({"image": {"bytes": picture.read_bytes(), "path": None}, "text": text})
    (folder / "grouped").mkdir()
    with webdataset.ShardWriter(str(folder / "grouped" / "shard-%06d.tar"), maxcount=50, verbose=0) as writer:
        for number, picture in enumerate(pictures):
            captions = [rows[number + turn * len(pictures)]["text"] for turn in range(CAPTIONS)]
            talk = {
                "messages": [{"role": "user", "content": [{"type": "image", "path": "0.jpg"}]}],
                "branches": [[{"role": "assistant", "content": caption}] for caption in captions],
            }
            writer.write({"__key__": f"{number:06d}", "0.jpg": picture.read_bytes(), "json": talk})
    features = Features({"image": ImageColumn(), "text": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "rows.parquet"))
    return len(rows)


def new_model() -> ModelBundle:
    """A model whose pictures are 224 x 224 and take 49 tokens."""
    tree = {
        "decoder": {"width": 64, "depth": 1, "heads": 2, "context": 1024},
        "encoders": {
            "image": {"kind": "vit", "image_size": SIZE, "patch_size": 16, "width": 48, "depth": 1, "heads": 2}
        },
        "adapters": {"image": {"kind": "fold", "stride": 2}},
    }
    return new_bundle(ModelConfig.model_validate(tree), Tokenizer.train(WORDS, 400), "plain")


def our_grouped_stream(folder: Path, bundle: ModelBundle) -> Batches:
    """The same captions, those of a picture as branches of one sample."""
    return our_stream(folder / "grouped", bundle, batch=GROUPS)


def our_stream(folder: Path, bundle: ModelBundle, workers: int = WORKERS, batch: int = BATCH) -> Batches:
    """Steps of our stream: decoded, rendered, packed into rows of 512 tokens."""
    source = open_source(ShardsConfig(reader="shards", path=str(folder)), Path("/"))
    order = MixtureSampler([len(source)], [1.0], 0)
    stream = StepDataset(
        [source],
        order,
        bundle.renderer,
        objective="respond",
        batch_size=batch,
        micro_batch_tokens=1 << 20,
        pack_length=512,
    )
    return iterate_steps(stream, workers)


def plain_webdataset(folder: Path, bundle: ModelBundle) -> Batches:
    """Webdataset's own pipeline with torchvision's transforms; texts are padded to the longest."""
    transform = v2.Compose(
        [
            v2.Resize((SIZE, SIZE), v2.InterpolationMode.BICUBIC),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    data = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
        .shuffle(200)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, bundle.tokenizer.encode)
        .repeat()
        .batched(BATCH, collation_fn=_padded)
    )
    return iter(DataLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=4))


def hugging_face(folder: Path, bundle: ModelBundle) -> Batches:
    """Hugging Face datasets, with a processor of transformers called on every batch."""
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    from datasets import load_dataset

    options = {"do_center_crop": False, "image_mean": MEAN, "image_std": STD}
    processor = CLIPImageProcessor(size={"height": SIZE, "width": SIZE}, **options)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bundle.tokenizer.core, pad_token="<|end|>")
    rows = load_dataset("parquet", data_files=str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))["train"]

    def collate(batch: list[dict[str, Any]]) -> Any:
        pixels = processor([row["image"].convert("RGB") for row in batch], return_tensors="pt")
        return pixels, tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")

    def endless() -> Batches:
        while True:
            yield from DataLoader(
                rows, batch_size=BATCH, shuffle=True, num_workers=WORKERS, prefetch_factor=4, collate_fn=collate
            )

    return endless()


def _padded(pairs: list[tuple[torch.Tensor, tuple[int, ...]]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for _, ids in pairs)
    ids = np.zeros((len(pairs), longest), dtype=np.int64)
    for row, (_, tokens) in enumerate(pairs):
        ids[row, : len(tokens)] = tokens
    return torch.stack([pixels for pixels, _ in pairs]), torch.from_numpy(ids)


def own_memory(pid: int) -> int:
    """Bytes that a process does not share with any other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def measure(make: Callable[[Path, ModelBundle], Batches], samples: int, folder: Path, batches: int, told: Any) -> None:
    """Samples a second over so many batches after the first few, and the most that a worker holds alone."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # this process was spawned, its workers would be too
    data = make(folder, new_model())
    for _ in islice(data, 2 * WORKERS * 4):  # what was fetched ahead before the clock starts
        pass
    most, started = 0, time.perf_counter()
    for number, _ in enumerate(islice(data, batches)):
        if number % 8 == 0:
            most = max([most, *(own_memory(child.pid) for child in multiprocessing.active_children() if child.pid)])
    told.put((samples * batches / (time.perf_counter() - started), most))


def take_turns(folder: Path, batches: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median samples a second and megabytes of each pipeline, each round in processes of its own."""
    pipelines = {
        "mmgpt": (our_stream, BATCH),
        "mmgpt, branches": (our_grouped_stream, GROUPS * CAPTIONS),
        "webdataset": (plain_webdataset, BATCH),
        "hugging face": (hugging_face, BATCH),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for name, (make, samples) in pipelines.items():
            told = context.Queue()
            process = context.Process(target=measure, args=(make, samples, folder, batches, told))
            process.start()
            found[name].append(told.get())
            process.join()
    return {
        name: (statistics.median(speed for speed, _ in runs), statistics.median(bytes_ for _, bytes_ in runs) / 1e6)
        for name, runs in found.items()
    }


def bench_data(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Our stream against both peers, on the same samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sorted(options.pictures.glob("*.jpg"))
        samples = write_samples(files, folder)
        speeds = take_turns(folder, options.batches, options.rounds)
    ours, our_memory = speeds["mmgpt"]
    grouped, _ = speeds["mmgpt, branches"]
    for peer, least in (("webdataset", 1.0), ("hugging face", 2.0)):
        theirs, memory = speeds[peer]
        yield {
            "bench": "data",
            "peer": peer,
            "metric": "samples a second (decode, resize, tokenise, batch)",
            "ours": round(ours, 1),
            "theirs": round(theirs, 1),
            "ratio": round(ours / theirs, 2),
            "captions_as_branches": {"ours": round(grouped, 1), "ratio": round(grouped / theirs, 2)},
            "to_reach": least,
            "worker_megabytes": {"ours": round(our_memory), "theirs": round(memory)},
            "shapes": {"pictures": len(files), "samples": samples, "size": SIZE, "batch": BATCH, "workers": WORKERS},
        }


def bench_steps(options: argparse.Namespace, steps: int = 12) -> Iterator[dict[str, object]]:
    """A training step fed by the stream against one fed by batches that lie in memory; one thread computes."""
    torch.set_num_threads(1)
    bundle = build_model()
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        with webdataset.ShardWriter(f"{name}/shard-%06d.tar", maxcount=100, verbose=0) as writer:
            for number in range(400):
                buffer = io.BytesIO()
                smooth = PIL.Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((320, 240))
                smooth.save(buffer, format="JPEG")
                writer.write({"__key__": f"{number:06d}", "jpg": buffer.getvalue(), "txt": WORDS[number % len(WORDS)]})
        held = [step.batches for step in islice(our_stream(Path(name), bundle, 0, 8), steps)]
        before = time.process_time()
        for _ in islice(our_stream(Path(name), bundle, 0, 8), steps):
            pass
        decoding = (time.process_time() - before) / steps

        def train(batches: Iterator[list[Any]]) -> float:
            started = time.perf_counter()
            for group in islice(batches, steps):
                for batch in group:
                    (bundle.model(batch).total / batch.num_targets).backward()
                bundle.model.zero_grad()
            return (time.perf_counter() - started) / steps

        for workers in (0, 1):
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.rounds):
                stream = our_stream(Path(name), bundle, workers, 8)
                times[0].append(train(iter(held)))
                if workers:
                    next(stream)  # the worker has started
                times[1].append(train(step.batches for step in stream))
                del stream
            memory, streamed = map(statistics.median, times)
            beyond = streamed - memory - (0 if workers else decoding)
            yield {
                "bench": "data steps",
                "peer": "batches in memory",
                "metric": "seconds a training step",
                "workers": workers,
                "ours": round(streamed, 4),
                "theirs": round(memory, 4),
                "decoding_cpu_seconds": round(decoding, 4),
                "share_beyond_decoding": round(beyond / memory, 4),
                "to_reach": 0.03,
            }


BENCHES = {"branches": bench_branches, "data": bench_data, "steps": bench_steps}


def main() -> None:
    """Run the benches named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benches", nargs="+", choices=sorted(BENCHES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=60, help="that data takes of each pipeline in a round")
    parser.add_argument("--pictures", type=Path, help="a folder of .jpg, for data")
    options = parse(parser)
    if "data" in options.benches and options.pictures is None:
        parser.error("data needs --pictures FOLDER")
    for name in options.benches:
        for found in BENCHES[name](options):
            tell(found, torch.get_num_threads(), *(("datasets", "webdataset") if name == "data" else ()))


if __name__ == "__main__":
    main()

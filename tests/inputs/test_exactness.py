"""The order of training data survives everything: any workers, kills at any moment, any number of ranks."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import PIL.Image
import pytest

from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.readers.registry import MessagesConfig, TextConfig, open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.shard_writer import Job, write_shards
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.inputs.dataloader import StepDataset, iterate_steps

KILLS = 20
KILL_SEED = 4
STEPS = 90
LIMITS = [None, 30, None, 14, None]  # two of the sources end on the way
OPTIONS = {"objective": "respond", "batch_size": 5, "micro_batch_tokens": 800, "pack_length": 300, "word_dropout": 0.1}


@pytest.fixture(scope="module")
def five_sources(tmp_path_factory):
    """Shards, a file of messages with pictures, a text, and two worlds."""
    folder = tmp_path_factory.mktemp("five")
    world_size = WorldConfig(reader="world", name="scenes", size=9)
    write_shards(Job(world_size, folder, folder / "shards", max_bytes=20_000))
    for number in range(4):
        PIL.Image.effect_noise((20 + number, 24), 60).save(folder / f"{number}.png")
    talk = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "noise"}]
    rows = [{"messages": talk, "images": [f"{number % 4}.png"]} for number in range(7)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "book.txt").write_text("".join(f"line {number} of a book\n" for number in range(60)))
    configs = (
        ShardsConfig(reader="shards", path="shards", label="shards"),
        MessagesConfig(reader="messages", path="rows.jsonl"),
        TextConfig(reader="text", path="book.txt", unit="line"),
        WorldConfig(reader="world", name="stories", size=11),
        WorldConfig(reader="world", name="scene_captions", size=13),
    )
    return [open_source(config, folder) for config in configs]


@pytest.fixture
def stream_from(five_sources, make_bundle):
    def begin(start: int, position=None) -> StepDataset:
        order = MixtureSampler([len(source) for source in five_sources], [1, 2, 1, 0.7, 0.3], 8, LIMITS)
        return StepDataset(five_sources, order, make_bundle().renderer, start=start, position=position, **OPTIONS)

    return begin


def digest(step) -> str:
    """A hash of every token, label, place and value of a step."""
    told = hashlib.sha256(repr((step.counts, step.epochs, step.faults)).encode())
    for batch in step.batches:
        for tensor in (batch.ids, batch.labels, batch.positions, batch.documents, batch.branches, batch.sources):
            told.update(tensor.numpy().tobytes())
        for kind, media in sorted(batch.media.items()):
            told.update(kind.encode() + media.values.numpy().tobytes())
    return told.hexdigest()


def follow(stream: StepDataset, workers: int, log: str) -> None:
    """Write a line a step, with where the next one begins; runs until it is killed or has done its part."""
    os.setsid()
    with open(log, "a") as file:
        for step in islice(iterate_steps(stream, workers), STEPS - stream.start):
            file.write(f"{digest(step)} {json.dumps(step.position)}\n")
            file.flush()
            time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_mixture_killed_again_and_again_gives_the_tokens_of_an_unbroken_run(workers, stream_from, tmp_path):
    unbroken = [digest(step) for step in islice(iterate_steps(stream_from(0), 0), STEPS)]
    assert len(set(unbroken)) == STEPS
    rng, log = random.Random(KILL_SEED + workers), tmp_path / "steps.log"
    context = multiprocessing.get_context("fork")
    log.touch()
    kills = 0
    while (done := len(_whole_lines(log))) < STEPS:
        position = _whole_lines(log)[-1][1] if done else None
        process = context.Process(target=follow, args=(stream_from(done, position), workers, str(log)))
        process.start()
        wanted = min(STEPS, done + rng.randint(0, 3))
        while len(_whole_lines(log)) < wanted and process.is_alive():
            time.sleep(0.002)
        if kills < KILLS and process.is_alive():
            time.sleep(rng.uniform(0, 0.02))
            kills += 1
            _kill_group(process.pid)
        process.join()
        log.write_text("".join(f"{told} {json.dumps(where)}\n" for told, where in _whole_lines(log)))
    assert kills == KILLS
    assert [told for told, _ in _whole_lines(log)] == unbroken


def _whole_lines(log: Path) -> list[tuple[str, dict]]:
    """Digest and position of each step that was written to its end."""
    lines = [line.split(" ", 1) for line in log.read_text().splitlines() if line.endswith("}")]
    return [(told, json.loads(where)) for told, where in lines]


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # the group of a process that has just begun is still the tests' own
        if kill is os.killpg and os.getpgid(pid) != pid:
            continue
        kill(pid, signal.SIGKILL)
        return


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_see_every_sample_exactly_once_an_epoch(workers, five_sources, make_bundle):
    sizes = [len(source) for source in five_sources]
    options = {**OPTIONS, "word_dropout": 0.0, "pack_length": None, "micro_batch_tokens": 1}
    seen = Counter()
    for rank in range(2):
        order = MixtureSampler(sizes, sizes, 3, limits=sizes)
        stream = StepDataset(five_sources, order, make_bundle().renderer, **options, rank=rank, world_size=2)
        for step in iterate_steps(stream, workers):
            seen.update((batch.source_names[0], str(batch.ids.tolist())) for batch in step.batches)
    alone = Counter(
        (rendered.source, str([rendered.ids]))
        for source in five_sources
        for rendered in (make_bundle().renderer.render(source[index]) for index in range(len(source)))
    )
    assert seen == alone


def test_other_numbers_of_ranks_go_on_without_a_sample_twice_or_dropped(five_sources, make_bundle):
    sizes = [len(source) for source in five_sources]
    options = {**OPTIONS, "word_dropout": 0.0, "pack_length": None, "micro_batch_tokens": 1}

    def rows(start: int, steps: int, world_size: int) -> Counter:
        found = Counter()
        for rank in range(world_size):
            order = MixtureSampler(sizes, sizes, 3, limits=sizes)
            stream = StepDataset(
                five_sources, order, make_bundle().renderer, **options, start=start, rank=rank, world_size=world_size
            )
            for step in islice(iterate_steps(stream, 0), steps):
                found.update(str(batch.ids.tolist()) for batch in step.batches)
        return found

    assert rows(0, 3, 2) + rows(3, 99, 3) == rows(0, 99, 1)

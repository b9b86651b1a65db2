"""Every pack, read by its YAML, comes back from shards as it was."""

import hashlib

import pytest

from mmgpt.config import find_config
from mmgpt.datasets.readers.registry import load_source, open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.sample import Sample, Text
from mmgpt.datasets.shard_writer import Job, write_shards

PACKS = (
    "cifar10 digits_and_shapes easy_vqa flickr8k fsdd noto_emoji omniglot shapes tinyshakespeare vqa_v2_mini wikitext2"
)
FEW = 40


def digest(sample: Sample) -> str:
    """A hash of every word, and of every picture and sound as it is decoded."""
    told = hashlib.sha256(repr((sample.key, sample.source)).encode())
    for number, turns in enumerate((sample.messages, *sample.branches)):
        for message in turns:
            told.update(f"{number}/{message.role}".encode())
            for part in message.parts:
                told.update(part.text.encode() if isinstance(part, Text) else decoded(part))
    return told.hexdigest()


def decoded(part) -> bytes:
    made = part.load()
    return made.tobytes() if part.modality == "image" else made.samples.tobytes() + str(made.rate).encode()


@pytest.mark.parametrize("pack", PACKS.split())
def test_a_pack_comes_back_from_shards_with_the_same_samples(pack, data_packs, tmp_path):
    config = load_source(find_config(pack, "data"), [f"limit={FEW}"])
    job = Job(config, data_packs, tmp_path / "shards", max_bytes=1_000_000)
    index = write_shards(job)
    source, back = job.open(), open_source(ShardsConfig(reader="shards", path="shards"), tmp_path)
    assert len(back) == len(source) == index["num_samples"]
    assert [digest(back[n]) for n in range(len(source))] == [digest(source[n]) for n in range(len(source))]

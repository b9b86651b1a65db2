import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import webdataset

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers import tars
from mmgpt.datasets.readers.registry import MessagesConfig, TextConfig, open_source
from mmgpt.datasets.readers.shards import ShardsConfig, expand_braces
from mmgpt.datasets.sample import Sample, Text
from mmgpt.datasets.shard_writer import Job, merge_shards, write_shards
from mmgpt.datasets.worlds.world import WorldConfig


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tars.ranges_of.cache_clear()


@pytest.fixture
def world_job(tmp_path):
    config = WorldConfig(reader="world", name="scene_sounds", size=11)
    return Job(config, tmp_path, tmp_path / "shards", max_bytes=400_000)


def png(colour: str, size: int = 6) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def read_shards(path, root: Path = Path("/"), **options):
    return open_source(ShardsConfig(reader="shards", path=str(path), **options), root)


def content(sample: Sample) -> tuple:
    """All of a sample, its media decoded."""

    def of(message):
        return message.role, [part.text if isinstance(part, Text) else decoded(part) for part in message.parts]

    def decoded(part):
        made = part.load()
        return np.asarray(made).tobytes() if part.modality == "image" else (made.samples.tobytes(), made.rate)

    branches = [[of(message) for message in branch] for branch in sample.branches]
    return sample.key, sample.source, [of(message) for message in sample.messages], branches


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_sharded_is_read_back_the_same_and_the_index_counts_it(world_job):
    index = write_shards(world_job)
    source, back = world_job.open(), read_shards(world_job.out)
    assert len(back) == len(source) == index["num_samples"] == 11
    assert [content(back[number]) for number in range(11)] == [content(source[number]) for number in range(11)]
    assert index["totals"]["images"] == index["totals"]["audios"] == 11
    clips = [source[number].messages[0].parts for number in range(11)]
    seconds = sum(part.load().seconds for parts in clips for part in parts if part.modality == "audio")
    assert index["totals"]["audio_seconds"] == pytest.approx(seconds, abs=0.02)
    assert len(index["shards"]) > 1
    assert all(one["bytes"] <= world_job.max_bytes for one in index["shards"])


def test_the_data_root_may_be_relative(world_job, tmp_path, monkeypatch):
    write_shards(world_job)
    (tmp_path / "data").mkdir()
    world_job.out.rename(tmp_path / "data" / "shards")
    monkeypatch.chdir(tmp_path)
    for path in ("shards", "shards/index.json", "shards/shard-{000000..000000}.tar"):
        assert read_shards(path, Path("data"))[0].messages
    (tmp_path / "data" / "shards" / "index.json").unlink()
    assert len(read_shards("shards", Path("data"))) == 11


def example_of_docs() -> str:
    """The lines of docs/data.md that read shards by webdataset."""
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    return page.partition("```python\n")[2].partition("```")[0]


def test_webdatasets_plain_stream_reads_our_shards_as_the_page_says_and_decodes_them(world_job, capsys):
    index = write_shards(world_job)
    example = example_of_docs().replace("OUT", str(world_job.out)).replace("000003", f"{len(index['shards']) - 1:06d}")
    found: dict = {}
    exec(example, found)
    source, rows = world_job.open(), list(found["stream"])
    assert [row["__key__"] for row in rows] == [f"{number:09d}" for number in range(11)]
    assert [row["json"]["key"] for row in rows] == [source[number].key for number in range(11)]
    for number, row in enumerate(rows):
        for place, medium in enumerate(part for part in source[number].messages[0].parts if not isinstance(part, Text)):
            if medium.modality == "image":
                assert row[f"{place}.png"].tobytes() == medium.load().tobytes()
            else:
                samples, rate = row[f"{place}.wav"]
                assert (samples.tobytes(), rate) == (medium.load().samples.tobytes(), medium.load().rate)
    assert capsys.readouterr().out.count("'role': 'user'") >= 11


def test_a_shard_is_byte_for_byte_what_webdatasets_writer_makes_of_its_members(world_job, tmp_path):
    write_shards(world_job)
    for tar in sorted(world_job.out.glob("*.tar")):
        with (
            tarfile.open(tar) as ours,
            webdataset.TarWriter(str(tmp_path / tar.name), user="", group="", mode=0o644, mtime=0) as writer,
        ):
            for member in ours:  # one at a time: it would sort the members of a sample, and ours begin with the json
                key, _, ext = member.name.partition(".")
                writer.write({"__key__": key, ext: ours.extractfile(member).read()})
        whole, theirs = tar.read_bytes(), (tmp_path / tar.name).read_bytes()
        assert theirs.startswith(whole)
        assert not theirs[len(whole) :].strip(b"\0")  # it pads to 10 KiB


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_merged_are_one_run_byte_for_byte(parts, world_job, tmp_path):
    write_shards(world_job)
    apart = replace(world_job, out=tmp_path / "apart")
    for part in reversed(range(1, parts + 1)):
        assert write_shards(apart, part=(part, parts), workers=2) is None
    merge_shards(apart.out)
    assert files_of(apart.out) == files_of(world_job.out)


def test_a_merge_names_the_blocks_that_are_missing(world_job):
    write_shards(world_job, part=(1, 2))
    with pytest.raises(UserError, match=r"blocks 1\b.* of \d are missing; run the parts that stopped again"):
        merge_shards(world_job.out)


WRITE = """
import sys
from pathlib import Path
from mmgpt.datasets.shard_writer import Job, write_shards
from mmgpt.datasets.worlds.world import WorldConfig
if __name__ == "__main__":
    config = WorldConfig(reader="world", name="scene_sounds", size=400)
    write_shards(Job(config, Path("."), Path(sys.argv[1]), 400_000), workers=2)
"""


def test_a_killed_run_leaves_no_half_shard_and_goes_on_to_the_same_bytes(tmp_path):
    script, out = tmp_path / "write.py", tmp_path / "shards"
    script.write_text(WRITE)
    command = [sys.executable, "-P", str(script)]
    for _ in range(3):
        process = subprocess.Popen([*command, str(out)], start_new_session=True)
        before = len(list(out.glob("*.tar")))
        while len(list(out.glob("*.tar"))) < before + 4 and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for tar in out.glob("*.tar"):
            with tarfile.open(tar) as whole:
                assert len(whole.getmembers()) >= 3
        assert not (out / "index.json").exists()
    subprocess.run([*command, str(out)], check=True)
    subprocess.run([*command, str(tmp_path / "unbroken")], check=True)
    assert files_of(out) == files_of(tmp_path / "unbroken")


def test_shards_of_other_data_are_not_mixed_into_a_folder(world_job):
    write_shards(world_job)
    with pytest.raises(UserError, match="shards of other data, or of another size"):
        write_shards(replace(world_job, max_bytes=500_000))


def test_bad_media_stop_the_writing_or_are_left_out_and_counted(tmp_path):
    (tmp_path / "good.png").write_bytes(png("red", 40))
    (tmp_path / "torn.png").write_bytes(png("red", 40)[:60])
    rows = [
        {"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "x"}], "images": [name]}
        for name in ("good.png", "torn.png", "good.png")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = Job(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path, tmp_path / "out", max_bytes=100_000)
    with pytest.raises(MediaError, match=r"rows/1: .*torn\.png: the picture is damaged"):
        write_shards(job)
    index = write_shards(replace(job, skip_bad=True))
    assert (index["num_samples"], index["totals"]["skipped"]) == (2, 1)
    assert [read_shards(job.out)[number].key for number in range(2)] == ["rows/0", "rows/2"]


def test_a_sample_larger_than_a_shard_is_an_error(tmp_path):
    (tmp_path / "book.txt").write_text("a" * 9000)
    job = Job(TextConfig(reader="text", path="book.txt", window=9000), tmp_path, tmp_path / "out", max_bytes=5000)
    with pytest.raises(UserError, match=r"book/0: 9,728 bytes, a shard takes 5,000; raise --max-size"):
        write_shards(job)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_shards_of_others_are_captions_by_the_templates_of_the_config(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "cc-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number, colour in enumerate(("red", "lime", "blue")):
            meta = {"similarity": 0.3, "alt": f"all {colour}"}
            writer.write({"__key__": f"{number:04d}", "png": png(colour), "txt": colour, "json": meta})
    source = read_shards("cc-{000000..000001}.tar", tmp_path, ignore=["json"])
    assert len(source) == 3
    sample = source[2]
    assert (sample.source, sample.key) == ("cc", "cc-000001/0")
    assert sample.messages[1].text == "blue"
    assert np.asarray(sample.messages[0].parts[0].load())[0, 0].tolist() == [0, 0, 255]
    rest = {"prompt": "{image}How like?", "answer": "{alt}: {similarity}", "ignore": ["txt"]}
    asked = read_shards("cc-{000000..000001}.tar", tmp_path, **rest)
    assert asked[0].messages[1].text == "all red: 0.3"
    with pytest.raises(UserError, match=r"the template names \{caption\}"):
        read_shards("cc-000000.tar", tmp_path, answer="{caption}", ignore=["*"])[0]


def test_a_sample_may_hold_several_media_and_members_of_webdataset_itself_are_none(tmp_path):
    members = {"__meta__.json": b"{}", "a/1.0.png": png("red"), "a/1.1.png": png("blue"), "a/1.txt": b"two"}
    write_tar(tmp_path / "few.tar", {**members, "b/1.0.png": png("red"), "b/1.txt": b"one"})
    source = read_shards("few.tar", tmp_path)
    assert [(len(source[n].messages[0].parts), source[n].messages[1].text) for n in range(2)] == [
        (2, "two"),
        (1, "one"),
    ]


def test_a_tar_is_gone_through_once_and_again_when_it_changed(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "few.tar", {f"{n}.txt": b"words" for n in range(5)})
    assert len(read_shards("few.tar", tmp_path, prompt="")) == 5
    tars.ranges_of.cache_clear()
    monkeypatch.setattr(tars, "_scan", lambda path, size, wanted: pytest.fail("scanned again"))
    assert len(read_shards("few.tar", tmp_path, prompt="")) == 5
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tars.ranges_of.cache_clear()
    write_tar(tar, {f"{n}.txt": b"words" for n in range(50)})
    assert len(read_shards("few.tar", tmp_path, prompt="")) == 50


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_are_lists_and_ranges(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["a-{9..1}.tar", "a-{x..y}.tar"])
def test_braces_that_are_no_range_are_refused(pattern):
    with pytest.raises(UserError, match="is no range"):
        expand_braces(pattern)


def test_a_tar_cut_short_gives_its_whole_samples_and_names_the_torn_one(tmp_path):
    tar = write_tar(tmp_path / "few.tar", {f"{n}.png": png("red") for n in range(3)} | {"3.txt": b"x" * 20_000})
    tar.write_bytes(tar.read_bytes()[:-18_000])
    source = read_shards("few.tar", tmp_path, answer="x")
    assert len(source) == 4
    assert source[2].messages[0].parts[0].load().size == (6, 6)
    with pytest.raises(MediaError, match=r"few\.tar: truncated, sample 3 has [\d,]+ of 20,992 bytes"):
        source[3]


def test_a_shard_that_vanishes_is_a_fault_of_each_of_its_samples(world_job):
    index = write_shards(world_job)
    source = read_shards(world_job.out)
    (world_job.out / index["shards"][-1]["name"]).unlink()
    assert content(source[0])
    with pytest.raises(MediaError, match="no such file"):
        source[10]


def test_links_in_a_tar_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "few.tar", "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(MediaError, match=r"1\.png is a link or device, not a file"):
        read_shards("few.tar", tmp_path, answer="x")[0]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"1.png": b"", "1.txt": b"red"}, "not a picture"),
        ({"1.png": b"plain words", "1.txt": b"red"}, "not a picture"),
        ({"1.png": png("red"), "1.txt": b"\xff\xfe"}, "not UTF-8"),
        ({"1.json": b"{not json"}, "cannot be read"),
        ({"1.json": b"[1]"}, "not an object"),
        ({"1.json": b'{"messages": [{"role": "user", "content": [{"type": "image", "path": "../x"}]}]}'}, "no member"),
    ],
)  # fmt: skip
def test_bad_members_are_refused_with_a_reason(members, told, tmp_path):
    write_tar(tmp_path / "few.tar", members)
    with pytest.raises(UserError, match=told):
        read_shards("few.tar", tmp_path)[0].messages[0].parts[0].load()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("absent.tar", "no such file"),
        (
            "pipe:curl -s https://host/{0..3}.tar",
            "samples are not read in the order of a pipe; write its tar to a file",
        ),
        ("noise.tar", "not a tar file"),
        ("packed.tar", "compressed ones must be unpacked"),
        ("../out.tar", "leads out of the data root"),
        ("empty", "holds no .tar"),
        ("broken", "not an index that mmgpt data shard wrote"),
        ("climbing", "its names lead elsewhere"),
        ("linked", "leads out of the data root"),
    ],
)
def test_what_is_no_shard_is_refused_before_anything_starts(path, told, tmp_path):
    root = tmp_path / "root"
    (root / "empty").mkdir(parents=True)
    (root / "broken").mkdir()
    (root / "broken" / "index.json").write_text('{"shards": 3}')
    (root / "climbing").mkdir()
    (root / "climbing" / "index.json").write_text('{"shards": [{"name": "../../out.tar", "num_samples": 1}]}')
    write_tar(tmp_path / "out.tar", {"1.txt": b"secret"})
    (root / "linked").mkdir()
    (root / "linked" / "in.tar").symlink_to(tmp_path / "out.tar")
    (root / "noise.tar").write_bytes(os.urandom(2048))
    with tarfile.open(root / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(UserError, match=told):
        read_shards(path, root)

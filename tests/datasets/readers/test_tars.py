"""Tars as the world makes them: every sample is read whole, or an error says why not."""

import tarfile

import pytest
from tars_made import opened, picture, read, words, write_tar

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers.registry import MessagesConfig
from mmgpt.datasets.shard_writer import Job, write_shards

pytestmark = pytest.mark.usefixtures("_own_ranges")

RED = ("1.png", picture())


@pytest.mark.parametrize(
    "names", [("1.txt", "1.txt"), ("1.txt", "1.TXT"), ("./1.txt", "1.txt"), ("a//1.txt", "a/1.txt")]
)
def test_a_doubled_name_is_an_error(names, tmp_path):
    with pytest.raises(UserError, match="is there twice"):
        read(tmp_path, (names[0], b"cat"), (names[1], b"dog"), prompt="")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["1.png", "2.png", "1.txt", "2.txt"], "1.png and 1.txt are two pieces of the sample 1,"),
        (["1.png", "1.txt", "2.png", "2.txt", "1.txt"], "two pieces of the sample 1,"),
        (
            ["v.1.png", "v.1.txt", "w.png", "w.txt", "v.2.png"],
            r"two pieces of the sample v \(a sample's name ends at the",
        ),
    ],
)
def test_a_sample_in_two_pieces_is_an_error_that_names_both(names, told, tmp_path):
    with pytest.raises(UserError, match=told):
        read(tmp_path, *((name, picture() if name.endswith("png") else b"words") for name in names))


def test_names_with_dots_are_refused_with_the_remedy(tmp_path):
    members = [("img.v2.001.jpg", picture(kind="JPEG")), ("img.v2.001.txt", b"a"), ("img.v2.002.jpg", b"")]
    with pytest.raises(UserError, match=r"'v2\.001\.txt'.*ends at the first dot .* write _ in their place"):
        read(tmp_path, *members)[0]


def test_systems_add_files_to_tars_that_are_no_members(tmp_path):
    shown = [("set/1.PNG", picture()), ("set/1.txt", b"a")]
    noise = [
        ".DS_Store",
        "set/._1.PNG",
        "set/.hidden",
        "__MACOSX/set/._1.PNG",
        "__MACOSX/1.txt",
        "Thumbs.db",
        "set/desktop.ini",
    ]
    noise += ["PaxHeaders.12/1.txt", "./PaxHeaders/1.png", "__meta__.json"]
    between = [("set/", b""), shown[0], *((name, b"noise") for name in noise), ("set/", b""), shown[1]]
    source = read(tmp_path, *between)
    assert words(source) == ["a"]
    assert source[0].messages[0].parts[0].load().size == (4, 4)


@pytest.mark.parametrize(
    "name", ["__front.png", "_.png", "..png", "-.png", "a b.png", "\u00fc\u00e4.png", "x" * 180 + ".png"]
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_odd_and_long_names_are_read(name, form, tmp_path):
    source = read(tmp_path, (name, picture()), (name[:-3] + "txt", b"a"), RED, ("1.txt", b"b"), form=form)
    assert words(source) == (["a", "b"] if not name.startswith(".") else ["b"])


@pytest.mark.parametrize("folder", ["", "./", "a/b/", "/", "./x/"])
def test_folders_and_a_leading_dot_are_part_of_a_sample_name_alone(folder, tmp_path):
    source = read(tmp_path, (f"{folder}1.Jpg", picture(kind="JPEG")), (f"{folder}1.TXT", b"a"))
    assert words(source) == ["a"]


def test_samples_of_one_name_in_two_shards_are_two(tmp_path):
    for name in ("a-0.tar", "a-1.tar"):
        write_tar(tmp_path / name, RED, ("1.txt", name.encode()))
    assert words(opened(tmp_path, "a-{0..1}.tar")) == ["a-0.tar", "a-1.tar"]


def test_a_tar_without_its_end_or_with_zeros_or_noise_after_it_is_whole(tmp_path):
    tar = write_tar(tmp_path / "few.tar", RED, ("1.txt", b"a"))
    content = tar.read_bytes().rstrip(b"\0")
    whole = content + bytes(-len(content) % 512)
    for after in (b"", bytes(512), bytes(1024), bytes(70_000), bytes(1024) + b"signed by nobody", bytes(300)):
        tar.write_bytes(whole + after)
        assert words(opened(tmp_path)) == ["a"]


def test_tars_joined_by_cat_are_refused_and_a_damaged_header_too(tmp_path):
    tar = write_tar(tmp_path / "few.tar", RED, ("1.txt", b"a"))
    one = tar.read_bytes()
    tar.write_bytes(one + one)
    with pytest.raises(UserError, match=r"another tar begins at byte 10,240"):
        opened(tmp_path)
    tar.write_bytes(one[:1024] + b"?" * 100 + one[1124:])
    with pytest.raises(UserError, match=r"the header at byte 1,024 is damaged"):
        opened(tmp_path)


@pytest.mark.parametrize("left", [1100, 1536 + 100, 1536 + 512 + 10])
def test_a_tar_cut_within_a_header_tells_of_a_sample_that_is_lost(left, tmp_path):
    long = "x" * 150
    tar = write_tar(tmp_path / "few.tar", RED, (f"{long}.png", picture()), form=tarfile.GNU_FORMAT)
    tar.write_bytes(tar.read_bytes()[:left])
    source = opened(tmp_path, answer="x")
    assert source[0].messages[0].parts[0].load()
    with pytest.raises(MediaError, match="truncated"):
        source[1]


@pytest.mark.parametrize("name", ["few.tar.gz", "few.tgz", "few.tar.zst", "{few,more}.tar.gz"])
def test_compressed_tars_are_refused_with_the_remedy(name, tmp_path):
    for file in ("few.tar.gz", "few.tgz", "few.tar.zst", "more.tar.gz"):
        (tmp_path / file).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"compressed, .*; unpack it to \.tar"):
        opened(tmp_path, name)
    write_tar(tmp_path / "plain.tar", RED, ("1.txt", b"a"))
    with pytest.raises(UserError, match=r"few\.tar\.gz: compressed"):
        opened(tmp_path, ".")


def test_a_folder_is_its_tars_but_for_those_of_a_system_and_an_index_lists_all(tmp_path):
    write_tar(tmp_path / "0.tar", RED, ("1.txt", b"a"))
    (tmp_path / "0.json").write_text('{"license": "CC0"}')  # not ours, and no harm
    (tmp_path / "._0.tar").write_bytes(b"mac")
    assert words(opened(tmp_path, ".")) == ["a"]
    job = Job(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path, tmp_path / "out", max_bytes=100_000)
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    write_shards(job)
    write_tar(job.out / "late.tar", RED)
    with pytest.raises(UserError, match=r"holds late\.tar, which index\.json does not list"):
        opened(tmp_path, "out")


def test_a_shard_that_changed_since_its_index_is_refused(tmp_path):
    job = Job(MessagesConfig(reader="messages", path="rows.jsonl"), tmp_path, tmp_path / "out", max_bytes=100_000)
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    index = write_shards(job)
    tar = job.out / index["shards"][0]["name"]
    write_tar(tar, RED, ("1.txt", b"a"))
    with pytest.raises(UserError, match="has changed since"):
        opened(tmp_path, f"out/{tar.name}")

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

from mmgpt.config import UserError
from mmgpt.datasets import remote
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers import tars
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.shard_writer import Job, write_shards
from mmgpt.datasets.source import Source
from mmgpt.datasets.worlds.world import WorldConfig

pytest.importorskip("s3fs", reason="addresses need mmgpt[data]")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tars.ranges_of.cache_clear()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Source]:
    """A folder of shards, and the source that they came from."""
    folder = tmp_path_factory.mktemp("written")
    job = Job(WorldConfig(reader="world", name="scene_sounds", size=12), folder, folder, max_bytes=400_000)
    write_shards(job)
    return folder, job.open()


class Server(serving.Server):
    """Files of a folder over HTTP, by ranges; `fault(number, path)` gives the status of a request, or None."""

    def __init__(self, folder: Path) -> None:
        self.requests, self.fault, self.has_ranges = 0, lambda number, path: None, True
        server = self

        class Handler(serving.Handler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                server.requests += 1
                status = server.fault(server.requests, self.path)
                file = folder / self.path.lstrip("/")
                if status or not file.is_file():
                    return self.send_error(status or 404)
                payload, status = file.read_bytes(), 200
                size = len(payload)
                if (wanted := self.headers.get("Range")) and server.has_ranges:
                    first, last = wanted.removeprefix("bytes=").split("-")
                    payload, status = payload[int(first) : int(last or size) + 1], 206
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                if server.has_ranges:
                    self.send_header("Accept-Ranges", "bytes")
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(payload) - 1}/{size}")
                self.end_headers()
                if with_body:
                    self.wfile.write(payload)

        super().__init__(Handler)


@pytest.fixture
def server(written) -> Iterator[Server]:
    with Server(written[0]) as server:
        yield server


def open_shards(path: str) -> Source:
    return open_source(ShardsConfig(reader="shards", path=path))


def keys_of(source: Source) -> list[tuple]:
    found = [source[number] for number in range(len(source))]
    media = [[part.load() for part in sample.messages[0].parts] for sample in found]
    return [(sample.key, sample.branches[0][0].text, len(parts)) for sample, parts in zip(found, media, strict=True)]


def test_shards_are_read_over_http_though_every_tenth_request_fails(server, written):
    server.fault = lambda number, path: 500 if number % 10 == 0 else None
    source = open_shards(server.address)
    for _ in range(5):
        assert keys_of(source) == keys_of(written[1])
    assert server.requests > 60


def test_tars_without_an_index_are_gone_through_over_http(server, written):
    server.fault = lambda number, path: 404 if path.endswith(".json") else None
    tars = sorted(path.name for path in written[0].glob("*.tar"))
    assert len(tars) > 1
    assert keys_of(open_shards(f"{server.address}/{{{','.join(tars)}}}")) == keys_of(written[1])


def test_a_server_that_fails_for_good_is_a_fault_of_the_sample_not_a_crash(server):
    source = open_shards(server.address)
    assert source[0]
    server.fault = lambda number, path: 500
    with pytest.raises(MediaError, match=r"shard-000000\.tar: cannot be read after 6 attempts \(.*500"):
        source[0]
    server.fault = lambda number, path: 404
    with pytest.raises(MediaError, match="no such file"):
        source[0]


def test_a_server_without_ranges_is_named_before_it_sends_gigabytes_for_each_sample(server):
    source = open_shards(server.address)
    server.has_ranges = False
    with pytest.raises(MediaError, match="sends whole files, not ranges"):
        source[0]


def test_an_address_without_shards_is_refused(server):
    with pytest.raises(UserError, match=r"holds no index\.json; name its tars"):
        open_shards(f"{server.address}/nowhere")
    with pytest.raises(UserError, match="gopher:// cannot be read here"):
        open_shards("gopher://x/a.tar")


def test_shards_are_read_from_s3(written, monkeypatch):
    moto = pytest.importorskip("moto.server", reason="a local S3 server needs moto[server]")
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    local = moto.ThreadedMotoServer(port=0)
    local.start()
    try:
        address = "http://{}:{}".format(*local.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        remote._open_filesystem.cache_clear()
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="data")
        for path in written[0].iterdir():
            client.put_object(Bucket="data", Key=f"sounds/{path.name}", Body=path.read_bytes())
        assert keys_of(open_shards("s3://data/sounds")) == keys_of(written[1])
        few = keys_of(open_shards("s3://data/sounds/shard-{000000..000001}.tar"))
        assert few == keys_of(written[1])[: len(few)]
        with pytest.raises(UserError, match=r"holds no index\.json"):
            open_shards("s3://data/nowhere")
    finally:
        remote._open_filesystem.cache_clear()
        local.stop()

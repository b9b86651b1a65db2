"""Small tars of samples, and sources that read them."""

import io
import tarfile
from pathlib import Path

import PIL.Image

from mmgpt.datasets.readers import tars
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.readers.shards import ShardsConfig
from mmgpt.datasets.source import Source


def picture(level: int = 200, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (level, 0, 0)).save(buffer, format=kind)
    return buffer.getvalue()


def write_tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(root: Path, path: str = "few.tar", **options) -> Source:
    tars.ranges_of.cache_clear()
    return open_source(ShardsConfig(reader="shards", path=path, **options), root)


def read(root: Path, *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, **options) -> Source:
    write_tar(root / "few.tar", *members, form=form)
    return opened(root, **options)


def words(source: Source) -> list[str]:
    return [source[number].messages[-1].text for number in range(len(source))]

"""What every reader shares: a source of Samples by index, and paths that stay below the data root."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from mmgpt.config import Config, UserError
from mmgpt.datasets.cells import is_missing
from mmgpt.datasets.file_names import as_on_disk, files_below, is_system
from mmgpt.datasets.fingerprint import Fingerprint, fingerprint_of
from mmgpt.datasets.media import MEDIA, Audio, Media, MediaError
from mmgpt.datasets.media.media_paths import accents, is_address, is_base64, is_data_url, local_path
from mmgpt.datasets.sample import Sample


class DataNotFound(UserError):
    """What a config names is not there."""


class SourceConfig(Config):
    """The keys that every reader takes."""

    label: str | None = None  # the name under which its loss is logged; the file's name if not given
    weight: PositiveFloat = 1.0  # share in a mixture, against the other weights
    epochs: PositiveFloat | None = None  # times it is gone through, and then no more; the stage's if not given
    steps: PositiveInt | None = None  # of its stage, and then no more; all of them if not given
    split: str = "train"  # fills {split} in paths; worlds and holdouts know train and test
    limit: int | None = Field(default=None, gt=0)  # read only the first so many samples
    ignore: list[str] = []  # globs of keys, columns or members of its rows that are left out; others must be used


class Source(ABC):
    """A sequence of samples: `source[i]` depends on nothing but the config and `i`."""

    name: str
    is_remote = False  # samples come over a network: several are worth asking for at a time
    files: Sequence[str | Path] = ()  # here, that the samples come from
    parts: Sequence["Source"] = ()  # sources that the samples are drawn from
    facts: str = ""  # what else tells the content, such as hashes of files elsewhere

    def __init__(self, config: SourceConfig, num_samples: int, origin: Path | str) -> None:
        if num_samples == 0:
            raise UserError(f"{origin}: holds no samples; check the path and what the reader is told to keep")
        self.num_samples = min(num_samples, config.limit or num_samples)

    def __len__(self) -> int:
        return self.num_samples

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, 0 <= index < len(self)."""

    def fingerprint(self) -> Fingerprint:
        """What tells at a resume that the data have changed; takes as long for many samples as for few."""
        return fingerprint_of(self)


def resolve(data_root: Path, path: str) -> Path:
    """A path of a config below the data root.

    Raises:
        DataNotFound: if nothing is there.
        UserError: if the path leaves the root.
    """
    full = resolve_inside(data_root, path, data_root)
    if not full.exists():
        raise DataNotFound(f"{full}: no such file or folder; set --data-root to the folder that holds {path}")
    return full


def resolve_all(data_root: Path, paths: str | list[str], suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The files that paths and glob patterns (these relative) of a config stand for, sorted within each of them.

    A folder stands for the files in it, at any depth, of the one of these suffixes that it holds. Files of the system
    and hidden ones, which neither a user nor a data set means, are passed over.

    Raises:
        DataNotFound: if one stands for nothing.
        UserError: if one leads out of the root, or a folder holds files of several of the suffixes.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        full = resolve_inside(data_root, path, data_root)
        if full.is_dir():
            files = _files_of_one_kind(full, suffixes) or [full]
        elif set(path) & set("*?[") and not full.exists() and not Path(path).is_absolute():
            below = ((file, file.relative_to(data_root).as_posix()) for file in sorted(data_root.glob(path)))
            files = [file for file, name in below if not is_system(name, path)]
        else:
            files = [resolve(data_root, path)]
        if not files:
            raise DataNotFound(f"{full}: matches no file; set --data-root to the folder that holds {path}")
        for file in files:
            resolve_inside(data_root, str(file.absolute()), data_root)  # a link in the folder may lead out of it
        found += files
    return found


def _files_of_one_kind(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder at any depth that have one of the suffixes; capitals are no other suffix."""
    files = [folder / name for name in files_below(folder) if Path(name).suffix.lower() in suffixes]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise UserError(f"{folder}: holds {' and '.join(kinds)} files; say which, as in {folder.name}/*{kinds[0]}")
    return files


def resolve_inside(folder: Path, path: str, data_root: Path) -> Path:
    """A path that a config or a row names: below its folder, or if it is absolute, below the data root.

    Raises:
        UserError: if it, or what a link on the way points to, lies elsewhere.
    """
    home = data_root if Path(path).is_absolute() else folder
    try:
        full = as_on_disk(folder / path)  # which is the path itself where that is absolute
        stays = full.resolve().is_relative_to(home.resolve())
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{path[:80]!r}: not a path ({error})") from None
    if not stays:
        place = "data root" if home == data_root else "media folder"
        raise UserError(f"{path}: leads out of the {place} {home}; move it below, or give another --data-root")
    return full


def media_from_cell(kind: str, cell: Any, folder: Path, data_root: Path) -> list[Media]:
    """The media of one modality that a cell of a row holds; none if it is empty.

    A cell is a path, a data URL, bytes, an array of pixels, a Hugging Face `{"bytes", "path"}` or
    `{"array", "sampling_rate"}`, or a list of those.

    Raises:
        MediaError: if it is something else, or a struct with other keys than these.
        UserError: if a path leads out of the folder, or an absolute one out of the data root.
    """
    if not isinstance(cell, bytes) and is_missing(cell):  # the bytes of a file that is empty are an error of theirs
        return []
    if isinstance(cell, list | tuple):
        return [medium for one in cell for medium in media_from_cell(kind, one, folder, data_root)]
    if isinstance(cell, Mapping) and (other := cell.keys() - {"bytes", "path", "array", "sampling_rate"}):
        raise MediaError(f"the {kind} {str(cell)[:60]} has the key {min(other)!r}; a struct holds bytes and path alone")
    if isinstance(cell, Mapping) and cell.get("array") is not None and kind == "audio":
        return [Audio(np.asarray(cell["array"]), rate=cell.get("sampling_rate"))]
    if isinstance(cell, Mapping) and cell.keys() & {"bytes", "path"}:
        payload = cell.get("bytes")
        return media_from_cell(kind, cell.get("path") if payload is None else payload, folder, data_root)
    if isinstance(cell, str) and not (is_data_url(cell) or is_address(cell) or is_base64(cell)):
        cell = _file_of(cell, folder, data_root)
    elif not isinstance(cell, str | bytes | bytearray | np.ndarray):
        raise MediaError(f"{str(cell)[:60]} is no {kind}; give a path, bytes or a struct of bytes and path")
    return [MEDIA[kind](cell)]


def _file_of(cell: str, folder: Path, data_root: Path) -> str:
    """The file that a cell names, its accents as they are on disk."""
    path = local_path(cell, expand_home=False)
    full = resolve_inside(folder, path, data_root)
    if not path.isascii() and not full.exists():
        full = next(
            (other for name in accents(path) if (other := resolve_inside(folder, name, data_root)).exists()), full
        )
    return str(full)

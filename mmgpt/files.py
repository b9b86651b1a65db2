"""Files of a model: JSON, whole folders or none, and weights as safetensors in the Hugging Face layout.

Weights are model.safetensors, or numbered shards with an index. A pickle is read only where the caller names it.
"""

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.locking import hold

SHARD_BYTES = 5 * 10**9


def cache_folder() -> Path:
    """Where what can be made again is kept: `MMGPT_CACHE`, else mmgpt's folder in the user's cache."""
    own = os.environ.get("MMGPT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgpt"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name, then move it into place, so that it is there whole or not at all.

    Raises:
        OSError: if the disk is full or refuses; what stood there before still does, and nothing else is left.
        UserError: if another process is writing the same folder.
    """
    draft = folder.with_name(f".{folder.name}.draft")
    with name_disk_errors(folder), hold(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            fill(draft)
            for file in draft.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
        except Exception:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            draft.rename(folder)
            shutil.rmtree(old)
        else:
            draft.rename(folder)


def write_file(file: Path, text: str, errors: str = "strict") -> None:
    """Write a file under another name, then move it into place, so that it is there whole or not at all.

    Raises:
        OSError: if the disk is full or refuses; what stood there before still does, and nothing else is left.
    """
    place = file.resolve()  # a link stays one
    is_special = place.exists() and not place.is_file()  # /dev/stdout
    draft = place if is_special else place.with_name(f".{place.name}.draft")
    with name_disk_errors(file):
        try:
            draft.write_text(text, encoding="utf-8", errors=errors)
            draft.replace(place)
        except OSError:
            if not is_special:
                with contextlib.suppress(OSError):
                    draft.unlink()
            raise


@contextlib.contextmanager
def name_disk_errors(path: Path) -> Iterator[None]:
    """Raise what a disk refuses (full, over a quota, read-only, broken) as an OSError that names `path`.

    Libraries word it anew: safetensors and tokenizers end their messages with `(os error 28)`, torch chains it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _os_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _os_error(error: BaseException | None) -> int | None:
    """The number of the operating system's error that is behind one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if told := re.search(r"\(os error (\d+)\)", str(error)):
            return int(told.group(1))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: if it is absent or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; the folder is incomplete") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not an object")
    return content


def save_weights(
    weights: Mapping[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES, stem: str = "model"
) -> None:
    """Write STEM.safetensors, or numbered shards with an index where it would pass `shard_bytes`.

    The mapping may make its weights as they are asked for; of those, one shard is in memory at a time.
    """
    written: list[list[str]] = []  # names of weights, a list a shard
    shard: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        save_file(shard, folder / f"{stem}-{len(written):05d}.draft", metadata={"format": "pt"})
        written.append(list(shard))
        shard.clear()

    for name, weight in weights.items():
        if size and size + weight.nbytes > shard_bytes:
            write()
            size = 0
        shard[name] = weight.contiguous()
        size += weight.nbytes
        total += weight.nbytes
    write()
    count = len(written)
    files = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    files = files if count > 1 else [f"{stem}.safetensors"]
    for number, file in enumerate(files):
        (folder / f"{stem}-{number:05d}.draft").replace(folder / file)
    if count == 1:
        return
    weight_map = {name: file for names, file in zip(written, files, strict=True) for name in names}
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def load_weights(
    folder: Path, device: str | torch.device = "cpu", *, stem: str = "model", pickles: bool = False
) -> dict[str, Tensor]:
    """Read a folder's weights; on a CPU they are mapped from the files, not copied.

    Args:
        folder: holds STEM.safetensors or its shards and index.
        device: where the weights go.
        stem: what the files' names begin with.
        pickles: where there are no safetensors, read pytorch_model.bin, with nothing but tensors allowed in it.
    Raises:
        UserError: if a file is absent, truncated or of another format, or the index names what is not there.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.is_file() and not single.is_file():
        return _load_pickles(folder, device, single, pickles)
    weight_map = _weight_map(index) if index.is_file() else {}
    weights: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())) or [single.name]:
        try:
            weights |= load_file(folder / name, device=str(device))
        except FileNotFoundError:
            raise UserError(f"{folder / name}: no such file; the checkpoint is incomplete, take another one") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name}: damaged or truncated ({error}); take another checkpoint") from None
    astray = [name for name in weight_map if name not in weights]
    if astray:
        raise UserError(f"{index}: names {first_of(astray)}, which its files do not hold; take another checkpoint")
    return weights


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_plain_name, weight_map.values())):
        raise UserError(f"{index}: its weight_map is no list of files beside it; take another checkpoint")
    return weight_map


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _load_pickles(folder: Path, device: str | torch.device, wanted: Path, allowed: bool) -> dict[str, Tensor]:
    index = folder / "pytorch_model.bin.index.json"
    names = sorted(set(_weight_map(index).values())) if index.is_file() else ["pytorch_model.bin"]
    if not (folder / names[0]).is_file():
        raise UserError(f"{wanted}: no such file; the checkpoint is incomplete, take another one")
    if not allowed:
        raise UserError(
            f"{folder / names[0]}: a pickle, which can run code when it is read; convert it to safetensors, "
            "or allow it by name with pickles: true"
        )
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= torch.load(folder / name, map_location=device, weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / name}: holds more than tensors, or is damaged ({reason})") from None
    return weights


def check_weights(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Refuse weights that are not exactly the wanted ones.

    Args:
        wanted: a module's state dict, by name; only shapes are looked at.
        given: what was read.
        where: what the error begins with.
        remedy: what it ends with.
    Raises:
        UserError: if any is missing, unexpected or of another shape; names them.
    """
    faults = [
        ("missing", sorted(wanted.keys() - given.keys())),
        ("unexpected", sorted(given.keys() - wanted.keys())),
        (
            "of another shape",
            [
                f"{name} {tuple(given[name].shape)} instead of {tuple(weight.shape)}"
                for name, weight in wanted.items()
                if name in given and given[name].shape != weight.shape
            ],
        ),
    ]
    if any(names for _, names in faults):
        told = "; ".join(f"{len(names)} {what}: {first_of(names)}" for what, names in faults if names)
        raise UserError(f"{where}: the weights do not fit its config.json ({told}); {remedy}")


def first_of(names: list[str], most: int = 3) -> str:
    """The first few of many names, for an error."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""Which files of a folder or zip are data, what their names tell, and how a name that is spelt otherwise is found."""

import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from mmgpt.config import UserError
from mmgpt.datasets.template import parse

SYSTEM = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found")


def is_system(name: str, written: str = "") -> bool:
    """True for what systems and programs leave in folders: .DS_Store, ._x, __MACOSX, Thumbs.db, ~$x, hidden folders.

    Args:
        name: a path below the folder that is looked through.
        written: the pattern it was found by; what that spells out is meant.
    """
    meant = set(PurePosixPath(written).parts)
    return any(
        part not in meant and (part.startswith((".", "~$")) or part.lower() in SYSTEM)
        for part in PurePosixPath(name).parts
        if part not in (".", "..")
    )


def files_below(folder: Path) -> list[str]:
    """The files in a folder at any depth, as paths below it, without those of the system."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if not is_system(name))


def members_of(path: Path, archive: zipfile.ZipFile) -> list[str]:
    """The files in a zip as paths with slashes, without those of the system.

    Raises:
        UserError: if a name stands in it twice, or is of a code page that the zip does not name.
    """
    infos = [info for info in archive.infolist() if not info.is_dir() and not info.filename.endswith("\\")]
    names = sorted(name for info in infos if not is_system(name := _slashed(info)))
    garbled = next((info.filename for info in infos if not info.filename.isascii() and _is_garbled(info)), None)
    if garbled:
        raise UserError(
            f"{path}: {garbled!r} is named in a code page that the zip does not tell; unpack it by unzip -O CODEPAGE, "
            "such as cp936 or cp932, and pack it again"
        )
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: holds {doubled[0]!r} twice; pack it again, each file once")
    return names


def split_zip(path: str) -> tuple[str, str]:
    """A path into a zip as the zip and the member; the path itself and "" where none of its parts is a .zip file."""
    for found in re.finditer(r"\.zip(?=/)", path, re.IGNORECASE):
        if not Path(path[: found.end()]).is_dir():
            return path[: found.end()], path[found.end() + 1 :]
    return path, ""


def find_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """The member of a zip by its name, however the archive spells slashes and accents; None if there is none."""
    info = archive.NameToInfo.get(name)
    return info or _members(archive).get(unicodedata.normalize("NFC", name.removeprefix("./")))


@lru_cache(maxsize=8)
def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {unicodedata.normalize("NFC", _slashed(info)): info for info in archive.infolist()}


def _slashed(info: zipfile.ZipInfo) -> str:
    """A member's name; what older programs wrote in UTF-8 without saying so was read as code page 437."""
    name = info.filename
    if not name.isascii() and not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:  # another code page, which the zip does not name
            name = info.filename
    return name.replace("\\", "/").removeprefix("./")


def _is_garbled(info: zipfile.ZipInfo) -> bool:
    """Whether a name that is no UTF-8 holds what code page 437, the default of zips, has beside letters."""
    raw = b"" if info.flag_bits & 0x800 else info.filename.encode("cp437")
    try:
        raw.decode("utf-8")
    except UnicodeError:
        return any(byte > 0xA5 and byte != 0xE1 for byte in raw)  # up to 0xA5 are Latin letters, 0xE1 is the sharp s
    return False


def as_on_disk(path: Path) -> Path:
    """A path whose accents are spelt as on the disk, composed (NFC) or not (NFD); itself if neither is there."""
    if str(path).isascii() or path.exists():
        return path
    others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in others if other.exists()), path)


def names_in_path(name: str, pattern: str) -> dict[str, str]:
    """What the names in braces of a pattern stand for in a path.

    Raises:
        UserError: if the path is of another form.
    """
    found = match_names([name], pattern)
    if not found:
        raise UserError(f"{name}: is not named as {pattern} says; a name that stands twice must be the same")
    return found[0][1]


def match_names(names: Iterable[str], pattern: str) -> list[tuple[str, dict[str, str]]]:
    """The names that fit a pattern, each with what stands for its names in braces, accents composed."""
    expression = re.compile(_expression(pattern))
    matches = [(name, match) for name in names if (match := expression.fullmatch(name))]
    return [
        (name, {key: unicodedata.normalize("NFC", value) for key, value in match.groupdict().items()})
        for name, match in matches
    ]


def _expression(pattern: str) -> str:
    """A regular expression with a group for each name in braces; * is anything but a slash, .png is .PNG too."""
    seen: set[str] = set()
    expression = ""
    for literal, field, _, _ in parse(pattern):
        expression += re.escape(literal).replace(r"\*", "[^/]*")
        if field is None:
            continue
        if not field.isidentifier():
            raise UserError(
                f"{pattern}: {{{field}}} is no name of a column; write letters and underscores, as {{label}}"
            )
        expression += f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+)"
        seen.add(field)
    return re.sub(r"\\\.\w+$", r"(?i:\g<0>)", expression)

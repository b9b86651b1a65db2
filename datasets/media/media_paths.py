"""How a string names or holds a medium: a path as systems spell it, a file:// URL, a data URL (RFC 2397), base64."""

import base64
import os
import re
import unicodedata
from urllib.parse import unquote_to_bytes

from mmgpt.datasets.media.formats import kind_of

SHORTEST_BASE64 = 64  # letters; what is shorter is a path
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?=/(?!/))", re.IGNORECASE)  # RFC 8089
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
URL_SAFE = str.maketrans("-_", "+/")


def is_data_url(text: str) -> bool:
    """True for a string that is a file's content in a data URL."""
    return text[:5].lower() == "data:"


def is_address(text: str) -> bool:
    """True for a string that names something on another machine."""
    return URL.match(text) is not None and not FILE_URL.match(text)


def local_path(text: str, expand_home: bool = True) -> str:
    """The path that a string names: of a file:// URL, below the home folder for ~, its accents as they are on disk.

    Args:
        text: a path or a file:// URL.
        expand_home: whether ~ is the home folder, as a shell reads it.
    """
    url = FILE_URL.match(text)
    path = os.fsdecode(unquote_to_bytes(text[url.end() :])) if url else text
    if expand_home and path.startswith("~") and not os.path.lexists(path):
        path = os.path.expanduser(path)
    if path.isascii() or os.path.lexists(path):
        return path
    # macOS writes an accent as a letter of its own, other systems do not: the same name in two spellings
    return next((other for other in accents(path) if os.path.lexists(other)), path)


def accents(name: str) -> list[str]:
    """A name with its accents apart and joined."""
    return [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]


def path_hint(path: str) -> str:
    """What is wrong with a path of which nothing is there, where another spelling of it leads to a file."""
    if path != path.strip() and os.path.exists(path.strip()):
        return "; without the blanks at its ends it is there"
    if "\\" in path and os.path.exists(path.replace("\\", "/")):
        return "; with / for \\ it is there"
    return ""


def is_base64(text: str) -> bool:
    """True for a string that is a file's content in base64, and the path of none."""
    if len(text) < SHORTEST_BASE64:
        return False
    letters = "".join(text.split())
    if not re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", letters) or len(letters) < SHORTEST_BASE64 or os.path.exists(text):
        return False
    if letters == text and len(text) % 4 == 0 and not set(text) & set("-_"):
        return True
    kind = kind_of(read_base64(letters[:SHORTEST_BASE64]))[0]  # long names look like it too, but begin as no file does
    return bool(kind) and not kind.startswith("a text")


def read_base64(text: str) -> bytes:
    """The bytes that base64 stands for: of either alphabet, with or without its padding, broken into lines or not.

    Raises:
        ValueError: if it holds other letters, or one too few.
    """
    letters = "".join(text.split()).translate(URL_SAFE).rstrip("=")
    strange = re.search(r"[^A-Za-z0-9+/]", letters)
    if strange:
        raise ValueError(f"it holds {strange.group()!r}")
    if len(letters) % 4 == 1:
        raise ValueError("its last letter is missing")
    return base64.b64decode(letters + "=" * (-len(letters) % 4))


def read_data_url(url: str) -> bytes:
    """The bytes that a data URL holds.

    Raises:
        ValueError: if it has no comma, or is not valid base64.
    """
    header, comma, body = url.partition(",")
    if not comma:
        raise ValueError("has no comma; write data:image/png;base64,...")
    if not re.search(r";\s*base64\s*$", header, re.IGNORECASE):
        return unquote_to_bytes(body)
    try:
        return read_base64(unquote_to_bytes(body).decode() if "%" in body else body)
    except ValueError as error:
        raise ValueError(f"is not valid base64 ({error})") from None

"""What a file is by its first bytes, for the error about one that is no picture, sound or video that is read here."""

import re
from typing import NamedTuple

SOUND, VIDEO, PICTURE = "give it as Audio", "give it as Video", "give it as Image"
FETCH = "what was downloaded is an answer in words; fetch the file itself"
TEXT_BYTES = 512  # looked at, to tell words from numbers


class _Kind(NamedTuple):
    """What files that begin so are called, and what to do with one."""

    begins: bytes  # a pattern
    name: str
    remedy: str = ""


KINDS = (
    _Kind(rb"version https://git-lfs\.github\.com/spec", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    _Kind(rb"/annex/objects/|\.?\.?/?\.git/annex/objects/", "a git-annex pointer", "run git annex get"),
    _Kind(rb"\0\x05\x16[\0\x07]", "what macOS keeps beside a file (._name)", "take the file without ._"),
    _Kind(rb"(?i)\s*(<!doctype html|<html|<head|<body)", "an HTML page", FETCH),
    _Kind(
        rb"(?is)\s*(<\?xml.{,400})?(<!(--|doctype svg).{,400})?<svg",
        "an SVG drawing",
        "render it to a PNG",
    ),
    _Kind(rb"(?i)\s*<\?xml", "an XML text", FETCH),
    _Kind(rb"%PDF-", "a PDF document", "render its pages to PNG"),
    _Kind(rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing", "render it to a PNG"),
    _Kind(
        rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif[12]|msf1)",
        "a HEIC picture",
        "pip install pillow-heif and call pillow_heif.register_heif_opener(), or convert it to JPEG",
    ),
    _Kind(rb".{4}ftypavi[fs]", "an AVIF picture", PICTURE),
    _Kind(rb".{4}ftyp(M4A|M4B)", "an MP4 sound", SOUND),
    _Kind(rb".{4}(ftyp|moov|mdat|wide|free)", "an MP4 or MOV file", f"{VIDEO}, or as Audio for its sound"),
    _Kind(rb"\x1aE\xdf\xa3", "a WebM or Matroska file", f"{VIDEO}, or as Audio for its sound"),
    _Kind(rb"RIFF.{4}AVI |FLV\x01|\0\0\x01\xba", "a video file", VIDEO),
    _Kind(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA or WMV file", f"{VIDEO}, or as Audio for its sound"),
    _Kind(rb"(RIFF|RF64|BW64).{4}WAVE|riff\x2e\x91\xcf\x11", "a WAV sound", SOUND),
    _Kind(rb"fLaC", "a FLAC sound", SOUND),
    _Kind(rb"OggS", "an OGG file", SOUND),
    _Kind(rb"ID3|\xff[\xfb\xfa\xf3\xf2\xe3\xe2]", "an MP3 sound", SOUND),
    _Kind(rb"\xff[\xf1\xf9\xf0\xf8]", "an AAC sound", SOUND),
    _Kind(rb"FORM.{4}AIF[FC]", "an AIFF sound", SOUND),
    _Kind(rb"#!AMR", "an AMR sound", SOUND),
    _Kind(rb"MThd", "a MIDI score, which holds no sound", "render it to a WAV"),
    _Kind(rb"\x89PNG", "a PNG picture", PICTURE),
    _Kind(rb"\xff\xd8\xff", "a JPEG picture", PICTURE),
    _Kind(rb"GIF8[79]a", "a GIF picture", PICTURE),
    _Kind(rb"RIFF.{4}WEBP", "a WebP picture", PICTURE),
    _Kind(rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF picture", PICTURE),
    _Kind(rb"BM.{8}", "a BMP picture", PICTURE),
    _Kind(rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", "convert it to PNG or JPEG"),
    _Kind(rb"8BPS", "a Photoshop file", "export it to PNG"),
    _Kind(rb"gimp xcf", "a GIMP file", "export it to PNG"),
    _Kind(rb"DDS |qoif|\x76\x2f\x31\x01|#\?RADIANCE|SIMPLE  =", "a picture of a rare format", "convert it to PNG"),
    _Kind(rb".{128}DICM", "a DICOM file", "give its pixels as an array of floats in 0 to 1, windowed"),
    _Kind(rb"\x93NUMPY", "a NumPy array", "give what np.load reads from it"),
    _Kind(rb"\x89HDF", "an HDF5 file", "give the array in it"),
    _Kind(rb"PK\x03\x04", "a zip archive", "give a file in it, archive.zip/name"),
    _Kind(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!|7z\xbc\xaf", "a packed file", "unpack it"),
    _Kind(rb".{257}ustar", "a tar archive", "unpack it, or read it as shards"),
    _Kind(rb"PAR1", "a parquet table", "read it as a table"),
)


def kind_of(payload: bytes) -> tuple[str, str]:
    """What a file is, such as "an HTML page", and what to do with it; "" for each that is not known."""
    head = bytes(payload[:1024])
    for kind in KINDS:
        if re.match(kind.begins, head, re.DOTALL):
            return kind.name, kind.remedy
    if payload and not bytes(payload).strip(b"\0"):
        return "nothing but zeros", "fetch it again"
    words = _words_of(head)
    if not payload:
        return "0 bytes", ""
    remedy = "a path goes in as a string" if re.fullmatch(r"[^\s]+\.\w{2,4}", words) else ""
    return (f"a text ({words!r})", remedy) if words else ("", "")


def refusal(payload: bytes, medium: str, formats: str, reason: str = "") -> str:
    """Why a file is none of a medium: "an HTML page, not a picture that can be read; give a PNG ..."."""
    kind, remedy = kind_of(payload)
    if remedy == f"give it as {_CLASS[medium]}":
        kind, remedy = f"{kind}, damaged or of a rare kind{f' ({reason})' if reason else ''}", ""
    return (
        f"{kind + ', ' if kind else ''}not a {medium} that can be read; give a {formats} file"
        f"{'; ' + remedy if remedy else ''}"
    )


_CLASS = {"picture": "Image", "sound": "Audio", "video": "Video"}


def _words_of(head: bytes) -> str:
    """The beginning of a text, "" of anything else."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head[:TEXT_BYTES].decode(encoding, errors="ignore")
    is_text = len(text) * 2 + 2 >= min(len(head), TEXT_BYTES) and all(c.isprintable() or c in "\t\r\n\f" for c in text)
    return " ".join(text.split())[:40] if is_text else ""

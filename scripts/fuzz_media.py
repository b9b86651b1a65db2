"""Damage real media files at random and decode each in a process of its own; nothing but a MediaError may come of it.

python scripts/fuzz_media.py --minutes 10 [--corpus FOLDER] [--out FOLDER]

Prints one JSON line of counts and saves the files that crashed, hung or took too much memory. Linux and macOS.
"""

import argparse
import faulthandler
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import soundfile

from mmgpt.datasets.media import Audio, Image, MediaError, Video

Decode = Callable[[bytes], object]
DECODERS: dict[str, tuple[Decode, ...]] = {
    **dict.fromkeys(("png", "jpg", "tiff", "bmp"), (lambda content: Image(content).load(),)),
    **dict.fromkeys(("gif", "webp"), (lambda content: Image(content).load(), lambda content: Video(content).load())),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3", "aiff"), (lambda content: Audio(content).load(),)),
    **dict.fromkeys(("mp4", "webm"), (lambda content: Video(content).load(),)),
}
DECODED, REFUSED, CRASHED, OVER_MEMORY = range(4)  # exit codes of a child
FATES = ("decoded", "refused", "crashed", "over_memory", "hung")


def seeds() -> dict[str, list[bytes]]:
    """A few small files of each kind."""
    rng = np.random.default_rng(0)
    picture = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    sound = 0.3 * np.sin(np.arange(8000)[:, None] / np.array([5, 9])).astype(np.float32)
    made: dict[str, list[bytes]] = {}
    for kind, format in (("png", "PNG"), ("jpg", "JPEG"), ("tiff", "TIFF"), ("bmp", "BMP")):
        made[kind] = [_picture(picture, format), _picture(picture.convert("L"), format)]
    made["png"] += [_picture(picture.quantize(16), "PNG"), _picture(picture.convert("RGBA"), "PNG")]
    made["jpg"] += [_picture(picture, "JPEG", progressive=True), _picture(picture.convert("CMYK"), "JPEG")]
    made["tiff"] += [_picture(picture, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")]
    for kind in ("gif", "webp"):
        moving = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)], "duration": 400}
        made[kind] = [_picture(picture, kind.upper()), _picture(picture, kind.upper(), **moving)]
    for kind, subtypes in (("wav", ("PCM_16", "PCM_U8", "FLOAT", "IMA_ADPCM")), ("flac", ("PCM_16", "PCM_24"))):
        made[kind] = [_sound(sound, kind, subtype) for subtype in subtypes]
    made["ogg"] = [_sound(sound, "ogg", "VORBIS"), _sound(sound, "ogg", "OPUS")]
    made["mp3"], made["aiff"] = [_sound(sound, "mp3", None)], [_sound(sound, "aiff", None)]
    with tempfile.TemporaryDirectory() as folder:
        made["mp4"] = [_video(Path(folder, "a.mp4"), "libx264", "aac"), _video(Path(folder, "b.mp4"), "mpeg4", None)]
        made["webm"] = [_video(Path(folder, "a.webm"), "libvpx", "libopus")]
    return made


def _picture(picture: PIL.Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _sound(samples_SC: np.ndarray, kind: str, subtype: str | None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_SC, 8000, format=kind.upper(), subtype=subtype)
    return buffer.getvalue()


def _video(file: Path, codec: str, sound: str | None) -> bytes:
    with av.open(str(file), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        track = out.add_stream(sound, rate=48_000, layout="stereo") if sound else None
        for number in range(15):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 16 * number, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if track:
            samples_CS = 0.1 * np.random.default_rng(0).standard_normal((2, 48_000)).astype(np.float32)
            block = av.AudioFrame.from_ndarray(samples_CS, format="fltp", layout="stereo")
            block.sample_rate, block.pts = 48_000, 0
            out.mux(track.encode(block))
            out.mux(track.encode())
    return file.read_bytes()


def damage(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file in one to eight places: flip, set to an extreme, delete, insert, truncate, splice in another."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(max(1, min(len(out), rng.choice((64, 1024, len(out) + 1)))))  # headers are hit more often
        size = rng.choice((1, 2, 4, 8, 64))
        kind = rng.choice(("flip", "set", "delete", "insert", "truncate", "splice"))
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "set":
            out[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif kind == "delete":
            del out[at : at + size]
        elif kind == "insert":
            out[at:at] = rng.randbytes(size)
        elif kind == "truncate" and rng.random() < 0.3:
            del out[rng.randrange(len(out) + 1) :]
        elif kind == "splice":
            start = rng.randrange(max(1, len(other)))
            out[at:] = other[start:]
    return bytes(out)


def decode_apart(decode: Decode, content: bytes, memory: int, seconds: int) -> tuple[str, str]:
    """What becomes of a file in a forked process, and what that one had to say."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(decode, content, memory, seconds, reader, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        killer = signal.Signals(os.WTERMSIG(status))
        return ("hung" if killer == signal.SIGALRM else "crashed"), f"{told}\nkilled by {killer.name}"
    return FATES[os.WEXITSTATUS(status)], told


def _be_the_child(decode: Decode, content: bytes, memory: int, seconds: int, reader: int, writer: int) -> None:
    os.close(reader)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C complain there
    faulthandler.disable()  # a parent that has it on, such as pytest, would print a crash that is told anyway
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)  # ends the process also while it is in C
    code = CRASHED
    try:
        decode(content)
        code = DECODED
    except MediaError as error:
        code = REFUSED
        os.write(writer, str(error).encode()[:4096])
    except MemoryError:
        code = OVER_MEMORY
    except BaseException:
        os.write(writer, traceback.format_exc().encode()[-4096:])
    finally:
        os._exit(code)


def main() -> None:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--corpus", type=Path, help="a folder whose files join the seeds, by their suffixes")
    parser.add_argument("--out", type=Path, default=Path("fuzz_offenders"), help="where offenders are saved")
    parser.add_argument("--memory", type=int, default=2048, help="MiB a file, the program itself included")
    parser.add_argument("--timeout", type=int, default=10, help="seconds a file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus, rng = seeds(), random.Random(args.seed)
    for file in sorted(args.corpus.rglob("*")) if args.corpus else []:
        if file.suffix[1:].lower() in corpus:
            corpus[file.suffix[1:].lower()].append(file.read_bytes())
    counts = {kind: Counter(dict.fromkeys(FATES, 0)) for kind in corpus}
    saved, start = [], time.monotonic()
    while time.monotonic() - start < 60 * args.minutes:
        kind = rng.choice(list(corpus))
        content = damage(rng.choice(corpus[kind]), rng.choice(corpus[kind]), rng)
        fate, told = decode_apart(rng.choice(DECODERS[kind]), content, args.memory << 20, args.timeout)
        counts[kind][fate] += 1
        if fate not in ("decoded", "refused"):
            args.out.mkdir(parents=True, exist_ok=True)
            file = args.out / f"{fate}-{args.seed}-{sum(map(Counter.total, counts.values()))}.{kind}"
            file.write_bytes(content)
            file.with_suffix(f".{kind}.txt").write_text(told)
            saved.append(str(file))
    total = sum(counts.values(), Counter(dict.fromkeys(FATES, 0)))
    figures = {"seconds": round(time.monotonic() - start), "tried": total.total()}
    figures |= {fate: total[fate] for fate in FATES}
    by_kind = {kind: {fate: count for fate, count in counted.items() if count} for kind, counted in counts.items()}
    print(json.dumps({"bench": "fuzz_media", **figures, "by_kind": by_kind, "saved": saved}))
    sys.exit(1 if saved else 0)


if __name__ == "__main__":
    main()

"""Run what docs/prompting.md shows, and put what it printed into the page.

python scripts/prompting.py MODEL [--page docs/prompting.md]

Every block marked `python` or `bash` is run, in the order of the page, in a folder that holds `model`, scene.png,
other.png, sound.wav and film.mp4, all generated; the block marked `text` after it becomes what it printed.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.worlds.world import WorldConfig

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", flags=re.DOTALL | re.MULTILINE)
FILM_SECONDS, FILM_RATE = 4, 4  # of which each picture is shown half; frames a second


def write_files(folder: Path) -> None:
    """Two pictures, a sound, and a video of the pictures one after the other with the sound."""
    scenes = open_source(WorldConfig(reader="world", name="scenes", split="test"))
    sounds = open_source(WorldConfig(reader="world", name="sounds", split="test"))
    pictures = [part for at in (0, 3) for part in scenes[at].messages[0].parts if isinstance(part, Image)]
    sound = next(part for part in sounds[0].messages[0].parts if isinstance(part, Audio))
    for name, medium in (("scene.png", pictures[0]), ("other.png", pictures[1]), ("sound.wav", sound)):
        (folder / name).write_bytes(medium.encoded()[1])
    write_film(folder / "film.mp4", [np.asarray(one.load()) for one in pictures], *sound.load())


def write_film(file: Path, pictures: list[np.ndarray], samples_S: np.ndarray, rate: int) -> None:
    """An MP4 that shows pictures of one size one after the other, with a sound."""
    import av

    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=FILM_RATE, options={"crf": "10"})
        height, width = pictures[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        track = out.add_stream("aac", rate=rate, layout="mono")
        for picture in pictures:
            for _ in range(FILM_SECONDS * FILM_RATE // len(pictures)):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
        heard = av.AudioFrame.from_ndarray(samples_S[None].astype(np.float32), format="fltp", layout="mono")
        heard.sample_rate = rate
        out.mux(track.encode(heard))
        out.mux(track.encode())


def run_python(code: str, names: dict[str, Any]) -> str:
    """What the code prints, with the refusal that ends it, if one does."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(code, names)
        except UserError as error:
            print(f"{type(error).__name__}: {error}")
    return printed.getvalue()


def run_bash(code: str) -> str:
    """What the commands print on both streams."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "110"}
    done = subprocess.run(["bash", "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def refreshed(page: str) -> str:
    """The page with what its blocks print now."""
    names: dict[str, Any] = {"__name__": "page"}

    def run(block: re.Match[str]) -> str:
        language, code = block.group(1), block.group(2)
        printed = run_python(code, names) if language == "python" else run_bash(code)
        lines = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
        return f"```{language}\n{code}```\n" + (f"\n```text\n{lines}\n```\n" if lines else "")

    return BLOCK.sub(run, page)


def main() -> None:
    """Parse the command line and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/prompting.md"))
    arguments = parser.parse_args()
    page, model = arguments.page.absolute(), arguments.model.absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("model").symlink_to(model)
        write_files(Path())
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

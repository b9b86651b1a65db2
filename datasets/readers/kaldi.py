"""Speech as Kaldi's data folders hold it: a line an utterance in `text`, and where its sound is in `wav.scp`.

Source: kaldi-asr.org/doc/data_prep.html.
"""

from pathlib import Path
from typing import Literal

from mmgpt.config import UserError
from mmgpt.datasets.cells import is_missing
from mmgpt.datasets.plain_text import read_lines
from mmgpt.datasets.readers.rows import ListRows
from mmgpt.datasets.readers.table import TableSource
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.source import SourceConfig, resolve


class KaldiConfig(SourceConfig):
    """A folder with `text` and `wav.scp`."""

    reader: Literal["kaldi"]
    path: str  # that folder, as in speechocean762/{split}
    sounds: str = ""  # the folder that paths in wav.scp are relative to; the data root if not given
    lower: bool = False  # transcripts in lower case, for sets that are in capitals
    prompt: str = "{audio}What is said?"


class KaldiSource(TableSource):
    """A sample an utterance, in the order of `text`."""

    def __init__(self, config: KaldiConfig, data_root: Path) -> None:
        folder = resolve(data_root, config.path.replace("{split}", config.split))
        if (folder / "segments").exists():
            raise UserError(f"{folder / 'segments'}: parts of recordings are not read; cut them into files first")
        said, found = _by_utterance(folder / "text"), _by_utterance(folder / "wav.scp")
        for one, other, what in ((said, found, "wav.scp"), (found, said, "text")):
            absent = [name for name in one if name not in other]
            if absent:
                told = f"lacks {len(absent)} utterances, the first of them {absent[0]}"
                raise UserError(f"{folder / what}: {told}; add them, or take them out of the other file")
        rows = ListRows()
        for name, text in said.items():
            if found[name].endswith("|"):
                raise UserError(f"{folder / 'wav.scp'}: {name} is made by a command; write its sound to a file first")
            sound = resolve(data_root, "/".join(filter(None, (config.sounds, found[name])))).absolute()
            rows.append({"file": str(sound), "id": name, "text": text.lower() if config.lower else text})
        self.files = [folder / "text", folder / "wav.scp"]
        own = {name: getattr(config, name) for name in SourceConfig.model_fields}
        media = {"path": config.path, "audio": "{file}", "key": "{id}", "prompt": config.prompt, "answer": "{text}"}
        super().__init__(TableConfig(**{**own, "reader": "table", **media}), data_root, rows)


def _by_utterance(file: Path) -> dict[str, str]:
    """What the lines of a file say, by the utterance that each begins with."""
    found: dict[str, str] = {}
    for line in filter(str.strip, read_lines(file)):
        name, *rest = line.strip().split(maxsplit=1)
        if not rest or is_missing(rest[0]):
            raise UserError(f"{file}: {line.strip()!r} is an utterance's name alone; write what it is or drop it")
        if name in found:
            raise UserError(f"{file}: {name} stands twice; leave one of the two")
        found[name] = rest[0]
    return found

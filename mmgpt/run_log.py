"""log.jsonl: one JSON object a line, in the names of the Hugging Face Trainer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgpt.files import name_disk_errors, write_file

Record = dict[str, Any]
OnRecord = Callable[[Record], None]


class RunLog:
    """Appends to a run's log.jsonl. Lines have `stage` and `step`; events have `event` besides."""

    def __init__(self, run: Path) -> None:
        self.file = run / "log.jsonl"

    def write(self, record: Record) -> None:
        """Append a line, whole or (after a kill) in part; `read_log` passes over a last half line."""
        with name_disk_errors(self.file), self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    def cut(self, stages: list[str], stage: int, step: int) -> None:
        """Drop what lies after a checkpoint that is gone back to; lines that are none of the run's own stay."""
        place = {name: number for number, name in enumerate(stages)}
        done = [
            record
            for record in read_log(self.file)
            if (place.get(record.get("stage", ""), -1), record.get("step", 0)) <= (stage, step)
        ]
        write_file(self.file, "".join(json.dumps(record) + "\n" for record in done))


def read_log(file: Path) -> list[Record]:
    """The records of a log.jsonl; empty if there is none."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(encoding="utf-8").split("\n"):  # a text may hold U+2028, which splits lines too
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the half line of a writer that was killed
        records += [record] if isinstance(record, dict) else []
    return records

"""Every sample of a recipe looked at before a GPU hour is spent: decodable, fitting, new, and apart from the tests.

Workers render and fingerprint ranges of samples; what they find is compared in the order of the samples, so that it is
the same for any number of them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.datasets.readers.composed import ComposedConfig
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Sample, Text
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.datasets.worlds.world import WorldConfig
from mmgpt.evaluation.tasks.task import load_task
from mmgpt.files import write_file
from mmgpt.inputs.objectives import rows_of
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import Objective, Rendered
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS
from mmgpt.inputs.trimming import TooLong
from mmgpt.inspection.fingerprint import TOLERANCE, Fingerprint, NearDuplicateIndex, fingerprint
from mmgpt.inspection.recipe_data import RecipeData
from mmgpt.inspection.worker_pool import WorkerDied, map_in_workers

SAMPLES_PER_TASK = 32  # samples that a worker takes at a time, and that are lost with it
GENERATED = (WorldConfig, ComposedConfig)  # they draw with replacement: the same sample twice is no fault of theirs

Reason = Literal["medium", "sample", "count", "too long", "crash", "leak", "repeated", "trimmed", "shared medium"]
MEANING: dict[Reason, str] = {
    "medium": "a picture or sound cannot be used",
    "sample": "cannot be learned from, and would stop the training",
    "count": "placeholders and the encoder's tokens differ in number",
    "too long": "does not fit the context, and would be skipped",
    "crash": "reading it failed in an unforeseen way",
    "leak": "tested on what is trained on",
    "repeated": "the same words and media twice in a source",
    "trimmed": "loses turns or branches to fit the context",
    "shared medium": "a medium of another sample of its source, with other words",
}
WARNINGS: tuple[Reason, ...] = ("trimmed", "shared medium")


@dataclass(frozen=True)
class Finding:
    """Something wrong with a sample; `other` is the key of the one it is a copy of, `where` its stages or task."""

    reason: Reason
    key: str
    source: str
    where: str
    message: str
    other: str = ""
    is_fault: bool = True


@dataclass
class Check:
    """What a check found."""

    samples: int = 0
    media: int = 0
    sources: int = 0
    left_out: int = 0  # samples past the limit
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """The findings that are no mere warnings."""
        return [finding for finding in self.findings if finding.is_fault]

    def write(self, file: Path) -> None:
        """One line of JSON a finding."""
        lines = [json.dumps(asdict(finding), ensure_ascii=False) for finding in self.findings]
        write_file(file, "".join(line + "\n" for line in lines), errors="backslashreplace")


@dataclass(frozen=True)
class _Unit:
    """A distinct source, and all that it is for."""

    config: SourceConfig
    where: str
    objectives: tuple[Objective, ...]
    is_test: bool


@dataclass(frozen=True)
class _Seen:
    """What a worker tells of a sample."""

    key: str
    words: bytes  # a hash
    media: tuple[Fingerprint | None, ...]  # None where there is none
    problems: tuple[tuple[Reason, str], ...]


def check_data(
    data: RecipeData,
    *,
    limit: int | None = None,
    workers: int = 0,
    near: int = 4,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Check:
    """Look at every sample of a recipe's stages and of its tasks' test data.

    Args:
        data: the opened recipe.
        limit: only the first so many samples of each source.
        workers: processes; 0 is this one, which a crash of a decoder ends.
        near: the most bits of 64 in which the fingerprints of copies may differ.
        on_progress: called with the samples done and their number.
    """
    started = time.perf_counter()
    look = _Look(tuple(_units(data)), data.data_root, data.renderer)
    check, ranges = Check(sources=len(look.units)), list[tuple[int, range]]()
    for number in range(len(look.units)):
        size = len(look.source(number))
        count = min(size, limit or size)
        check.left_out += size - count
        ranges += [(number, range(at, min(at + SAMPLES_PER_TASK, count))) for at in range(0, count, SAMPLES_PER_TASK)]
    total = sum(len(part) for _, part in ranges)
    compare = _Comparison(check, look, near)
    for (number, part), seen in zip(ranges, map_in_workers(look, ranges, workers), strict=True):
        compare.take(number, part, seen)
        on_progress(check.samples, total)
    check.seconds = time.perf_counter() - started
    return check


def _units(data: RecipeData) -> list[_Unit]:
    """The distinct sources of the stages, then those of the tasks: a test sample is compared with all of training."""
    found: dict[str, _Unit] = {}
    for stage in data.stages:
        for item in stage.data:
            same = item.model_dump_json(exclude={"weight"})
            before = found.get(same, _Unit(item, "", (), False))
            objectives = tuple(dict.fromkeys((*before.objectives, stage.objective)))
            where = f"{before.where}, {stage.name}" if before.where else f"stage {stage.name}"
            found[same] = _Unit(item, where, objectives, False)
    for name in data.recipe.tasks:
        task = load_task(name)
        found[f"task {name}"] = _Unit(task.data, f"task {task.name}", ("respond",), True)
    return list(found.values())


class _Look:
    """Looks at ranges of samples, in this process or a worker."""

    def __init__(self, units: tuple[_Unit, ...], data_root: Path, renderer: Renderer) -> None:
        self.units, self.data_root, self.renderer = units, data_root, renderer
        self.opened: dict[int, Source] = {}

    def __reduce__(self) -> tuple[type["_Look"], tuple[Any, ...]]:
        return _Look, (self.units, self.data_root, self.renderer)  # a worker opens the sources that it is given

    def source(self, number: int) -> Source:
        if number not in self.opened:
            self.opened[number] = open_source(self.units[number].config, self.data_root)
        return self.opened[number]

    def __call__(self, task: tuple[int, range]) -> list[_Seen]:
        number, part = task
        return [self._sample(self.source(number), index, self.units[number].objectives) for index in part]

    def _sample(self, source: Source, index: int, objectives: Sequence[Objective]) -> _Seen:
        key = f"{source.name}/{index}"
        try:
            sample = source[index]
        except Exception as error:
            return _Seen(key, b"", (), (_problem(error),))
        problems = [found for objective in objectives for found in self._render(sample, objective)]
        media = list[Fingerprint | None]()
        for medium in sample.media:
            try:
                media.append(fingerprint(medium))
            except Exception as error:  # told by rendering too, unless it was trimmed away
                media.append(None)
                problems.append(_problem(error, sample.key))
        return _Seen(sample.key, _words(sample), tuple(media), tuple(dict.fromkeys(problems)))

    def _render(self, sample: Sample, objective: Objective) -> Iterator[tuple[Reason, str]]:
        """What training under an objective would say of a sample."""
        for row in rows_of(sample, objective):
            try:
                rendered = self.renderer.render(row, objective)
            except Exception as error:
                yield _problem(error, row.key)
                continue
            if rendered.is_trimmed:
                yield "trimmed", f"cut to {len(rendered.ids)} tokens, of a context of {self.renderer.context}"
            yield from self._miscounts(rendered)

    def _miscounts(self, rendered: Rendered) -> Iterator[tuple[Reason, str]]:
        for modality, processor in self.renderer.processors.items():
            held = rendered.ids.count(self.renderer.tokenizer.special(PLACEHOLDER_TOKENS[modality]))
            given = sum(processor.num_tokens(tuple(m.values.shape)) for m in rendered.media if m.modality == modality)
            if held != given:
                yield "count", f"{held} {modality} placeholders, the encoder gives {given} tokens"


def _problem(error: Exception, key: str = "") -> tuple[Reason, str]:
    """An error as a reason and a message without the sample's key."""
    reasons: tuple[tuple[type[Exception], Reason], ...] = (
        (MediaError, "medium"),
        (TooLong, "too long"),
        (UserError, "sample"),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason, str(error).removeprefix(f"{key}: ")
    return "crash", f"{type(error).__name__}: {error}"


def _words(sample: Sample) -> bytes:
    """A hash of the conversation's words, whatever their case and spaces, and of where its media stand."""
    digest = hashlib.blake2b(digest_size=16)
    for turns in (sample.messages, *sample.branches):
        digest.update(b"\x00branch")
        for turn in turns:
            digest.update(f"\x00{turn.role}".encode())
            for part in turn.parts:
                said = " ".join(part.text.casefold().split()) if isinstance(part, Text) else f"\x00{part.modality}"
                digest.update(f"\x00{said}".encode(errors="surrogatepass"))
    return digest.digest()


class _Comparison:
    """Samples compared with those before them, in order."""

    def __init__(self, check: Check, look: _Look, near: int) -> None:
        self.check, self.units = check, look.units
        self.names = [look.source(number).name for number in range(len(look.units))]
        self.alike = {modality: NearDuplicateIndex(modality, near) for modality in TOLERANCE}
        self.trained_media: dict[tuple[str, int], str] = {}  # the key of the first sample with a medium
        self.trained_words: dict[bytes, str] = {}  # of the first sample that is words alone
        self.own: dict[tuple[object, ...], str] = {}  # what each source held before

    def take(self, number: int, part: range, seen: list[_Seen] | WorkerDied) -> None:
        """Add what a worker saw of a range of a source."""
        self.check.samples += len(part)
        if isinstance(seen, WorkerDied):
            lost = f"{self.names[number]}/{part.start}..{part.stop - 1}"
            self._add(number, "crash", lost, f"a worker died on one of these {len(part)} samples ({seen})")
            return
        for one in seen:
            self.check.media += len(one.media)
            for reason, message in one.problems:
                self._add(number, reason, one.key, message)
            if one.words:
                self._compare(number, one)

    def _add(self, number: int, reason: Reason, key: str, message: str, other: str = "") -> None:
        unit = self.units[number]
        is_fault = reason not in WARNINGS and not (reason == "repeated" and isinstance(unit.config, GENERATED))
        finding = Finding(reason, key, self.names[number], unit.where, message, other, is_fault)
        self.check.findings.append(finding)

    def _compare(self, number: int, one: _Seen) -> None:
        is_test = self.units[number].is_test
        media = [(m.modality, self.alike[m.modality].number(m)) for m in one.media if m]
        for medium in dict.fromkeys(media):
            if not is_test:
                self.trained_media.setdefault(medium, one.key)
            elif medium in self.trained_media:
                self._same(number, "leak", one.key, self.trained_media[medium], f"its {medium[0]} is")
        if not one.media:
            if not is_test:
                self.trained_words.setdefault(one.words, one.key)
            elif one.words in self.trained_words:
                self._same(number, "leak", one.key, self.trained_words[one.words], "its words are")
        self._compare_own(number, one, media)

    def _compare_own(self, number: int, one: _Seen, media: list[tuple[str, int]]) -> None:
        """Compare with the source's own samples: first the whole, then, where a sample has one medium, that."""
        if len(media) < len(one.media):
            return  # a medium that could not be read is like no other
        whole = number, one.words, *media
        if whole in self.own:
            self._same(number, "repeated", one.key, self.own[whole], "its words and media are")
            return
        self.own[whole] = one.key
        if len(media) == 1 and not isinstance(self.units[number].config, GENERATED):
            alone = number, *media
            if alone in self.own:
                self._same(number, "shared medium", one.key, self.own[alone], f"its {media[0][0]} is")
            self.own.setdefault(alone, one.key)

    def _same(self, number: int, reason: Reason, key: str, other: str, what: str) -> None:
        self._add(number, reason, key, f"{what} also in {other}", other)

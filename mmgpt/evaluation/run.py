"""The runner: tasks and shots in, scores, predictions and their files out.

Every process answers the items whose number leaves its rank when divided by their number, and appends its answers to a
file of its own. Nothing is exchanged while they do; the first one then waits for the files of the others and scores.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.evaluation.answering import Answer, Question, answers, check_items, room_of
from mmgpt.evaluation.blind import TextOnlyGuess, blinded
from mmgpt.evaluation.environment import environment
from mmgpt.evaluation.item import Item
from mmgpt.evaluation.metrics import METRICS, Floats
from mmgpt.evaluation.models import Model, open_model
from mmgpt.evaluation.records import Answers, digest_of
from mmgpt.evaluation.results import (
    Evaluation,
    Record,
    answered,
    groups,
    over_seeds,
    rescore,
    sample_row,
    statistics_of,
    summaries,
)
from mmgpt.evaluation.shots import Exemplars, Prompt, Shots
from mmgpt.evaluation.task import Task, TaskConfig, load_task
from mmgpt.inputs.chat import TooLong
from mmgpt.training.ranks import place as place_of_process

__all__ = ["Evaluation", "OnProgress", "OnScore", "evaluate", "rescore"]

OnProgress = Callable[[str, int, int], None]
OnScore = Callable[[str, str, float], None]
PATIENCE = 1800.0  # seconds for which another process may write no answer
POLL = 0.2  # seconds


def evaluate(
    model: Model | str | Path,
    tasks: Sequence[str | TaskConfig],
    *,
    shots: Sequence[int | str] = (0,),
    limit: int | None = None,
    data_root: str | Path = ".",
    out: str | Path | None = None,
    cache: str | Path | None = None,
    blind: bool | Sequence[str] = False,
    batch_size: int = 64,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    place: tuple[int, int] | None = None,
    on_progress: OnProgress = lambda task, done, total: None,
    on_score: OnScore | None = None,
) -> Evaluation:
    """Score a model on tasks.

    Args:
        model: any object that answers messages, such as an Assistant, or the name of one.
        tasks: names of tasks that come with mmgpt, YAML files, or TaskConfigs.
        shots: solved examples before each question: numbers, or names.
        limit: only the first so many items of each task.
        data_root: the folder that the tasks' paths are relative to.
        out: where to write results.json, the samples and, as they come, the answers. An evaluation that was stopped
            goes on there: what was answered by the same model to the same prompt is not asked again.
        cache: a folder of answers that evaluations of several `out` share.
        blind: score the same questions with media `removed`, or in the modes given by name; and, for both, the best
            guess from the words alone.
        batch_size: questions at a time; scores do not depend on it.
        seed: of the choice of exemplars.
        seeds: several of them, in place of `seed`; a task without exemplars is run once.
        place: rank and number of the processes that share the work; if not given, those of torchrun. All but the first
            come back without results.
        on_progress: called with task, questions answered, and questions in all, of this process.
        on_score: called with task, name and running value of the task's first metric.
    Raises:
        UserError: on an unknown task, absent data, or a prompt that does not fit the context, with its item's key.
        FloatingPointError: if the model's logits are not numbers, with the item's key.
        TimeoutError: if another process stopped to answer.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves nothing to score; give 1 or more, or None for all")
    rank, world = place or place_of_process()
    if world > 1 and out is None:
        raise UserError(f"{world} processes share their answers in files; give out, the folder for them (--out)")
    own_seeds = tuple(dict.fromkeys(seeds)) if seeds is not None else (seed,)
    if not own_seeds:
        raise UserError("seeds are none; give at least one, or leave them out")
    wanted = [Shots.parse(str(one)) for one in dict.fromkeys(shots)]
    opened = [Task(task if isinstance(task, TaskConfig) else load_task(task), data_root) for task in tasks]
    _check_names([task.config.name for task in opened])
    under_test: Model = open_model(str(model)) if isinstance(model, str | Path) else model
    modes = ("removed",) if blind is True else tuple(blind or ())
    fingerprint = under_test.fingerprint() if out is not None or cache is not None else ""
    folder = Path(out) if out is not None else None
    kept = Answers(folder, Path(cache) if cache is not None else None, fingerprint, rank)
    setting = _Setting(under_test, fingerprint, kept, rank, world, batch_size, modes, on_progress, on_score)
    found = Evaluation(under_test.name, environment())
    try:
        for task in opened:
            _Scorer(setting, task, task.items(limit)).run(wanted, own_seeds, found)
    finally:
        kept.close()
    if folder is not None and rank == 0:
        found.save(folder)
    return found


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} tasks are called {name}, as would be their files; rename one")


@dataclass(frozen=True)
class _Setting:
    """What all tasks of an evaluation have in common."""

    model: Model
    fingerprint: str
    kept: Answers
    rank: int
    world: int
    batch_size: int
    modes: tuple[str, ...]
    on_progress: OnProgress
    on_score: OnScore | None


class _Scorer:
    """Answers and scores the items of a task."""

    def __init__(self, setting: _Setting, task: Task, items: Sequence[Item]) -> None:
        self.setting, self.task, self.config, self.items = setting, task, task.config, items
        check_items(self.config, items)
        self.modes = () if self.config.kind == "score" else setting.modes  # a text has no media to be blind to
        for mode in self.modes:
            blinded(mode, items[0].messages, items[0], items, 0)  # a wrong mode is told before all is answered

    def run(self, wanted: Sequence[Shots], seeds: Sequence[int], found: Evaluation) -> None:
        """Add the rows and samples of all shots and seeds to what was found."""
        for shots in wanted:
            own = seeds if shots.count else seeds[:1]
            rows = []
            for seed in own:
                name = f"{self.config.name}-{shots.name}" + (f"-seed{seed}" if len(own) > 1 else "")
                pool = Exemplars(self.task.pool, self.config.name, self.config.shots, seed)
                row, samples = self._score(_Prompts(self, pool, shots), name, seed)
                if self.setting.rank == 0:
                    rows.append(row)
                    found.samples[name] = samples
            found.results += rows
            if len(rows) > 1:
                found.over_seeds.append(over_seeds(rows))

    def _score(self, prompts: "_Prompts", name: str, seed: int) -> tuple[Record, list[Record]]:
        """A row of results and its samples; in other processes than the first, nothing."""
        started, rank, world = time.perf_counter(), self.setting.rank, self.setting.world
        self.setting.kept.begin(f"{self.config.name}-{prompts.shots.name}-{seed}")
        own, everyone = range(rank, len(self.items), world), range(len(self.items))
        for mode in (None, *self.modes):
            self._answer([prompts.question(number, mode) for number in own])
        if rank != 0:
            return {}, []
        given = self._collect([prompts.question(number) for number in everyone])
        statistics = statistics_of(self.config, [answered(i, a) for i, a in zip(self.items, given, strict=True)])
        samples, digest = [], hashlib.sha256()
        for number, (item, answer) in enumerate(zip(self.items, given, strict=True)):
            scores = {metric: float(found_NS[number, 0]) for metric, found_NS in statistics.items()}
            samples.append(sample_row(item, prompts.of(number), answer, scores))
            digest.update(json.dumps([samples[-1]["messages"], item.choices]).encode())
        blind = {mode: self._collect([prompts.question(number, mode) for number in everyone]) for mode in self.modes}
        row = {
            "task": self.config.name,
            "version": self.config.version,
            "kind": self.config.kind,
            "shots": int(prompts.shots.name) if prompts.shots.name.isdecimal() else prompts.shots.name,
            "seed": seed,
            "n": len(self.items),
            "dropped": sum(prompts.of(number).dropped for number in everyone),
            "metrics": summaries(statistics),
            "groups": groups(statistics, self.items),
            "blind": self._blind(blind) if blind else None,
            "seconds": round(time.perf_counter() - started, 2),
            "prompt_sha256": digest.hexdigest(),
            "samples": f"samples-{name}.jsonl",
        }
        return row, samples

    def _answer(self, questions: Sequence[Question]) -> None:
        """Ask what was not answered before, and keep each answer as it comes."""
        kept, progress = self.setting.kept, _Progress(self.setting, self.config, len(questions))
        waiting = []
        for question in questions:
            answer = kept.find(question.digest, question.item.key)
            if answer is None:
                waiting.append(question)
            else:
                progress.add(question, answer)
        if progress.done:
            progress.tell()
        found = answers(self.setting.model, self.config, waiting, self.setting.batch_size) if waiting else ()
        for number, (question, answer) in enumerate(zip(waiting, found, strict=True), start=1):
            kept.add(question.digest, question.item.key, answer)
            progress.add(question, answer)
            if number % self.setting.batch_size == 0 or number == len(waiting):
                progress.tell()

    def _collect(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to all questions, those of other processes waited for."""
        kept, missing, since = self.setting.kept, list(questions), time.monotonic()
        while missing := [question for question in missing if question.digest not in kept.known]:
            before = len(kept.known)
            kept.refresh()
            if len(kept.known) > before:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise TimeoutError(self._late(missing))
            else:
                time.sleep(POLL)
        return [kept.known[question.digest] for question in questions]

    def _late(self, missing: Iterable[Question]) -> str:
        world = self.setting.world
        ranks = sorted({question.number % world for question in missing})
        named = " and ".join(f"rank {rank} of {world}" for rank in ranks)
        return (
            f"task {self.config.name}: no answer from {named} for {PATIENCE:.0f} s; look for its error, then run the "
            "same command again, which goes on from the answers that are there"
        )

    def _blind(self, given: dict[str, list[Answer]]) -> Record:
        """Scores by mode, those of `removed` without its name, and of the guess from words where there is a pool."""
        guesses = {} if self._guesses is None else {"text_only": self._guesses}
        record: Record = {}
        for mode, found in {**given, **guesses}.items():
            some = [answered(item, answer) for item, answer in zip(self.items, found, strict=True)]
            scores = summaries(statistics_of(self.config, some))
            record |= scores if mode == "removed" else {mode: scores}
        return record

    @cached_property
    def _guesses(self) -> list[Answer] | None:
        if self.task.pool is None:
            return None
        guess = TextOnlyGuess(self.task.pool)
        return [Answer(guess.answer(item)) for item in self.items]


class _Prompts:
    """The prompts of a task's items for one number of shots and one seed, each made when it is first asked for."""

    def __init__(self, scorer: _Scorer, pool: Exemplars, shots: Shots) -> None:
        self.scorer, self.config, self.items = scorer, scorer.config, scorer.items
        self.pool, self.shots = pool, shots
        self.made: dict[int, Prompt] = {}
        self.asked: dict[tuple[int, str | None], Question] = {}
        if self.config.kind == "score" and shots.count:
            raise UserError(f"task {self.config.name}: kind=score takes no shots, {shots.name} asked for; give 0")

    def of(self, number: int) -> Prompt:
        """An item after its solved examples."""
        if number not in self.made:
            item = self.items[number]
            if self.config.kind == "score":
                self.made[number] = Prompt(item.messages)
            else:
                try:
                    room = room_of(self.config, item)
                    self.made[number] = self.pool.prompt(item, self.shots, self.scorer.setting.model, room)
                except (MediaError, TooLong) as error:
                    raise type(error)(f"{item.key}: {error}") from None
        return self.made[number]

    def question(self, number: int, mode: str | None = None) -> Question:
        """An item as it is asked, seeing or in a blind mode."""
        if (number, mode) not in self.asked:
            item, messages, setting = self.items[number], self.of(number).messages, self.scorer.setting
            if mode is not None:
                messages = blinded(mode, messages, item, self.items, self.pool.seed)
            try:
                digest = digest_of(setting.fingerprint, self.config, number, item, messages)
            except MediaError as error:
                raise MediaError(f"{item.key}: {error}") from None
            self.asked[number, mode] = Question(number, item, messages, digest)
        return self.asked[number, mode]


class _Progress:
    """Tells how far a process is, and the running value of the task's first metric."""

    def __init__(self, setting: _Setting, config: TaskConfig, total: int) -> None:
        self.setting, self.config, self.total, self.done = setting, config, total, 0
        self.new: list[tuple[Question, Answer]] = []
        self.sums_S: Floats | None = None

    def add(self, question: Question, answer: Answer) -> None:
        """Count an answer."""
        self.done += 1
        self.new.append((question, answer))

    def tell(self) -> None:
        """Call the listeners."""
        name = self.config.metrics[0]
        if self.setting.on_score is not None:
            some = [answered(question.item, answer) for question, answer in self.new]
            sums_S = METRICS[name].statistics(some).sum(axis=0)
            self.sums_S = sums_S if self.sums_S is None else self.sums_S + sums_S
            self.setting.on_score(self.config.name, name, METRICS[name].figure(self.sums_S, self.done))
        self.new = []
        self.setting.on_progress(self.config.name, self.done, self.total)

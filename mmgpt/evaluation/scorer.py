"""A task's items asked and scored, by all processes of a torchrun or by one.

Every process answers the items whose number leaves its rank when divided by their number, and appends its answers to a
file of its own. Nothing is exchanged while they do; the first one then waits for the files of the others and scores.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmgpt.config import UserError
from mmgpt.datasets.media import MediaError
from mmgpt.evaluation.answer_cache import AnswerCache, digest_of
from mmgpt.evaluation.metrics import METRICS, Floats, ScoredPrediction, interval
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.predict import Prediction, PromptedItem, answers, check_items, room_of
from mmgpt.evaluation.results import (
    Evaluation,
    Record,
    answered,
    groups,
    intervals,
    over_seeds,
    sample_row,
    statistics_of,
)
from mmgpt.evaluation.tasks.blind_baselines import TextOnlyBaseline, ablate_media
from mmgpt.evaluation.tasks.episode_prompts import exemplars_of
from mmgpt.evaluation.tasks.few_shot import Exemplars, FewShotPrompt, Shots
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.evaluation.tasks.task import Task, TaskConfig
from mmgpt.inputs.trimming import TooLong

OnProgress = Callable[[str, int, int], None]
OnScore = Callable[[str, str, float], None]
PEER_TIMEOUT_SECONDS = 1800.0  # seconds for which another process may write no answer
POLL_SECONDS = 0.2  # seconds


@dataclass(frozen=True)
class EvalContext:
    """What all tasks of an evaluation have in common."""

    model: Model
    fingerprint: str
    answer_cache: AnswerCache
    rank: int
    world: int
    batch_size: int
    modes: tuple[str, ...]
    on_progress: OnProgress
    on_score: OnScore | None


class Scorer:
    """Answers and scores the items of a task."""

    def __init__(self, context: EvalContext, task: Task, items: Sequence[TaskItem]) -> None:
        self.context, self.task, self.config, self.items = context, task, task.config, items
        check_items(self.config, items)
        self.modes = () if self.config.kind == "score" else context.modes  # a text has no media to be blind to
        for mode in self.modes:
            ablate_media(mode, items[0].messages, items[0], items, 0)  # a wrong mode is told before all is answered

    def run(self, wanted: Sequence[Shots], seeds: Sequence[int], found: Evaluation) -> None:
        """Add the rows and samples of all shots and seeds to what was found."""
        pool = exemplars_of(self.task, self.context.answer_cache.folder)
        if self.config.kind == "score":  # a text has no examples before it
            wanted = [Shots.parse("0")]
        for shots in wanted:
            own = seeds if shots.count else seeds[:1]
            rows = []
            for seed in own:
                name = f"{self.config.name}-{shots.name}" + (f"-seed{seed}" if len(own) > 1 else "")
                row, samples = self._score(_Prompts(self, pool.seeded(seed), shots), name, seed)
                if self.context.rank == 0:
                    rows.append(row)
                    found.samples[name] = samples
            found.results += rows
            if len(rows) > 1:
                found.over_seeds.append(over_seeds(rows))

    def _score(self, prompts: "_Prompts", name: str, seed: int) -> tuple[Record, list[Record]]:
        """A row of results and its samples; in other processes than the first, nothing."""
        started, rank, world = time.perf_counter(), self.context.rank, self.context.world
        self.context.answer_cache.begin(f"{self.config.name}-{prompts.shots.name}-{seed}")
        own, everyone = range(rank, len(self.items), world), range(len(self.items))
        for mode in (None, *self.modes):
            self._answer([prompts.question(number, mode) for number in own])
        if rank != 0:
            return {}, []
        given = self._collect([prompts.question(number) for number in everyone])
        statistics = statistics_of(self.config, self._answered(given))
        each = {name: METRICS[name].per_sample(found_NS) for name, found_NS in statistics.items()}
        samples, digest = [], hashlib.sha256()
        for number, (item, answer) in enumerate(zip(self.items, given, strict=True)):
            scores = {metric: values[number] for metric, values in each.items()}
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
            "empty": [i.key for i, a in zip(self.items, given, strict=True) if not a.prediction.strip()]
            if self.config.kind == "generate"
            else [],
            "dropped": sum(prompts.of(number).dropped for number in everyone),
            "metrics": intervals(statistics),
            "groups": groups(statistics, self.items),
            "blind": self._blind(blind) if blind else None,
            "seconds": round(time.perf_counter() - started, 2),
            "prompt_sha256": digest.hexdigest(),
            "samples": f"samples-{name}.jsonl",
        }
        return row, samples

    def _answer(self, questions: Sequence[PromptedItem]) -> None:
        """Ask what was not answered before, the same prompt once, and keep each answer as it comes."""
        kept, progress = self.context.answer_cache, _Progress(self.context, self.config, len(questions))
        waiting: dict[str, list[PromptedItem]] = {}
        for question in questions:
            answer = kept.find(question.digest, question.item.key)
            if answer is None:
                waiting.setdefault(question.digest, []).append(question)
            else:
                progress.add(question, answer)
        if progress.done:
            progress.tell()
        firsts = [same[0] for same in waiting.values()]
        found = answers(self.context.model, self.config, firsts, self.context.batch_size) if firsts else ()
        for number, (first, answer) in enumerate(zip(firsts, found, strict=True), start=1):
            kept.add(first.digest, first.item.key, answer)
            for question in waiting[first.digest]:
                progress.add(question, answer)
            if number % self.context.batch_size == 0 or number == len(firsts):
                progress.tell()

    def _collect(self, questions: Sequence[PromptedItem]) -> list[Prediction]:
        """The answers to all questions, those of other processes waited for."""
        kept, missing, since = self.context.answer_cache, list(questions), time.monotonic()
        while missing := [question for question in missing if question.digest not in kept.known]:
            before = len(kept.known)
            kept.refresh()
            if len(kept.known) > before:
                since = time.monotonic()
            elif time.monotonic() - since > PEER_TIMEOUT_SECONDS:
                raise TimeoutError(self._late(missing))
            else:
                time.sleep(POLL_SECONDS)
        return [kept.known[question.digest] for question in questions]

    def _late(self, missing: Iterable[PromptedItem]) -> str:
        world = self.context.world
        ranks = sorted({question.number % world for question in missing})
        named = " and ".join(f"rank {rank} of {world}" for rank in ranks)
        return (
            f"task {self.config.name}: no answer from {named} for {PEER_TIMEOUT_SECONDS:.0f} s; look for its error, "
            "then run the same command again, which goes on from the answers that are there"
        )

    def _blind(self, given: Mapping[str, Sequence[Prediction]]) -> Record:
        """Scores by mode, those of `removed` without its name, and of the guess from words where there is a pool."""
        record: Record = {}
        for mode, found in given.items():
            scores = intervals(statistics_of(self.config, self._answered(found)))
            record |= scores if mode == "removed" else {mode: scores}
        if self._guesses is not None:
            record["text_only"] = {}
            for metric in self.config.metrics:
                with contextlib.suppress(UserError):  # of metrics that need log-probabilities, which a guess has not
                    found_NS = METRICS[metric].sample_stats(self._answered(self._guesses))
                    record["text_only"][metric] = interval(METRICS[metric], found_NS)
        return record

    def _answered(self, given: Sequence[Prediction]) -> list[ScoredPrediction]:
        return [answered(item, answer) for item, answer in zip(self.items, given, strict=True)]

    @cached_property
    def _guesses(self) -> list[Prediction] | None:
        if self.task.pool is None:
            return None
        guess = TextOnlyBaseline(self.task.pool)
        return [Prediction(guess.answer(item)) for item in self.items]


class _Prompts:
    """The prompts of a task's items for one number of shots and one seed, each made when it is first asked for."""

    def __init__(self, scorer: Scorer, pool: Exemplars, shots: Shots) -> None:
        self.scorer, self.config, self.items = scorer, scorer.config, scorer.items
        self.pool, self.shots = pool, shots
        self.made: dict[int, FewShotPrompt] = {}
        self.asked: dict[tuple[int, str | None], PromptedItem] = {}

    def of(self, number: int) -> FewShotPrompt:
        """An item after its solved examples."""
        if number not in self.made:
            item = self.items[number]
            if self.config.kind == "score":
                self.made[number] = FewShotPrompt(item.messages)
            else:
                try:
                    room = room_of(self.config, item)
                    self.made[number] = self.pool.prompt(item, self.shots, self.scorer.context.model, room)
                except (MediaError, TooLong) as error:
                    raise type(error)(f"{item.key}: {error}") from None
        return self.made[number]

    def question(self, number: int, mode: str | None = None) -> PromptedItem:
        """An item as it is asked, seeing or in a blind mode."""
        if (number, mode) not in self.asked:
            item, messages, context = self.items[number], self.of(number).messages, self.scorer.context
            if mode is not None:
                messages = ablate_media(mode, messages, item, self.items, self.pool.seed)
            try:
                digest = digest_of(context.fingerprint, self.config, number, item, messages)
            except MediaError as error:
                raise MediaError(f"{item.key}: {error}") from None
            self.asked[number, mode] = PromptedItem(number, item, messages, digest)
        return self.asked[number, mode]


class _Progress:
    """Tells how far a process is, and the running value of the task's first metric."""

    def __init__(self, context: EvalContext, config: TaskConfig, total: int) -> None:
        self.context, self.config, self.total, self.done = context, config, total, 0
        self.new: list[tuple[PromptedItem, Prediction]] = []
        self.sums_S: Floats | None = None

    def add(self, question: PromptedItem, answer: Prediction) -> None:
        """Count an answer."""
        self.done += 1
        self.new.append((question, answer))

    def tell(self) -> None:
        """Call the listeners."""
        name = self.config.metrics[0]
        if self.context.on_score is not None and METRICS[name].is_mean_of_scores:  # others need all samples
            some = [answered(question.item, answer) for question, answer in self.new]
            sums_S = METRICS[name].sample_stats(some).sum(axis=0)
            self.sums_S = sums_S if self.sums_S is None else self.sums_S + sums_S
            self.context.on_score(self.config.name, name, METRICS[name].compute(self.sums_S, self.done))
        self.new = []
        self.context.on_progress(self.config.name, self.done, self.total)

"""The runner: tasks and shots in, scores, predictions and their files out."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from mmgpt import arguments
from mmgpt.arguments import several, whole
from mmgpt.config import UserError
from mmgpt.distributed import rank_and_world_size
from mmgpt.evaluation.answer_cache import AnswerCache
from mmgpt.evaluation.models.model import Model, open_model
from mmgpt.evaluation.results import Evaluation, environment, rescore
from mmgpt.evaluation.scorer import EvalContext, OnProgress, OnScore, Scorer
from mmgpt.evaluation.tasks.few_shot import Shots
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task
from mmgpt.locking import hold

__all__ = ["Evaluation", "OnProgress", "OnScore", "evaluate", "rescore"]


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
        blind: score again with media removed, or in the modes given by name, and the best guess from the words alone.
        batch_size: questions at a time; scores do not depend on it.
        seed: of the choice of exemplars.
        seeds: several of them, in place of `seed`; a task without exemplars is run once.
        place: rank and number of the processes that share the work; if not given, those of torchrun. All but the first
            come back without results.
        on_progress: called with task, questions answered, and all of them, in this process.
        on_score: called with task, name and running value of the task's first metric.
    Raises:
        UserError: on an unknown task, absent data, an `out` that another evaluation writes to, or a prompt over the
            context, with its item's key.
        FloatingPointError: if the model's logits are not numbers, with the item's key.
        TimeoutError: if another process stopped to answer.
    """
    rank, world = place or rank_and_world_size()
    own_seeds, wanted, modes = _seeds(seeds, seed), _shots(shots), _blind_modes(blind)
    _check(limit, world, out)
    batch_size, data_root = whole("batch_size", batch_size, least=1), arguments.place("data_root", data_root)
    opened = _open_tasks(tasks, data_root, with_pool=bool(blind) or any(one.count for one in wanted))
    under_test = _opened(model)
    fingerprint = under_test.fingerprint() if out is not None or cache is not None else ""
    kept = AnswerCache(out, cache, fingerprint, rank)
    setting = EvalContext(under_test, fingerprint, kept, rank, world, batch_size, modes, on_progress, on_score)
    found = Evaluation(under_test.name, environment())
    with contextlib.closing(kept), _alone_in(out, rank):
        for task in opened:
            Scorer(setting, task, task.items(limit)).run(wanted, own_seeds, found)
        if out is not None and rank == 0:
            found.save(Path(out))
    return found


def _alone_in(out: str | Path | None, rank: int) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if out is None else hold(Path(out) / f".lock.{rank}")


def _blind_modes(blind: bool | Sequence[str]) -> tuple[str, ...]:
    return ("removed",) if blind is True else tuple(several("blind", blind or ()))


def _shots(shots: Sequence[int | str]) -> list[Shots]:
    wanted = [Shots.parse(name) for name in dict.fromkeys(map(str, several("shots", shots)))]
    if not wanted:
        raise UserError("shots are none; give at least one, as in shots=[0]")
    return wanted


def _opened(model: Model | str | Path) -> Model:
    if isinstance(model, str | Path):
        return open_model(str(model))
    if not hasattr(model, "fingerprint"):
        raise UserError(f"model={model!r:.60}: does not answer; give what mmgpt.load returns, or the name of a model")
    return model


def _check(limit: int | None, world: int, out: str | Path | None) -> None:
    if limit is not None and whole("limit", limit) < 1:
        raise UserError(f"limit={limit} leaves nothing to score; give 1 or more, or None for all")
    if out is not None:
        arguments.place("out", out)
    if world > 1 and out is None:
        raise UserError(f"{world} processes share their answers in files; give out, the folder for them (--out)")


def _seeds(seeds: Sequence[int] | None, seed: int) -> list[int]:
    found = [whole("seed", seed)] if seeds is None else [whole("seeds", one) for one in several("seeds", seeds)]
    if not found:
        raise UserError("seeds are none; give at least one, or leave them out")
    return list(dict.fromkeys(found))


def _open_tasks(tasks: Sequence[str | TaskConfig], data_root: str | Path, with_pool: bool) -> list[Task]:
    """All tasks, so that a wrong one is told before any is scored."""
    configs = [task if isinstance(task, TaskConfig) else load_task(task) for task in several("tasks", tasks)]
    if not configs:
        raise UserError("tasks are none; give at least one")
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} tasks are called {name}, as would be their files; rename one")
    return [Task(config, data_root, with_pool=with_pool) for config in configs]

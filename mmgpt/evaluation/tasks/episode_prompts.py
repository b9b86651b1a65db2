"""Prompts of tasks whose data are episodes, which bring their own examples: shots of each class."""

from pathlib import Path

from mmgpt.config import UserError
from mmgpt.datasets.readers.episodes import EpisodeSource
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.tasks.few_shot import Exemplars, FewShotPrompt, Shots
from mmgpt.evaluation.tasks.item import TaskItem, items_of
from mmgpt.evaluation.tasks.task import Task


class EpisodePrompts(Exemplars):
    """Stands where the exemplars of a pool do for other tasks; the seed chooses what is shown, not what is asked."""

    def __init__(self, source: EpisodeSource, task: str) -> None:
        super().__init__(None, task)
        self.source = source
        self.episodes: dict[tuple[int, int], dict[str, TaskItem]] = {}  # by shots and seed

    def prompt(self, item: TaskItem, shots: Shots, model: Model | None = None, room: int = 0) -> FewShotPrompt:
        """An item's question after `shots.count` examples of each class of its episode, all of them.

        Raises:
            UserError: if the classes do not have so many, or their media are to be left out.
        """
        if not shots.with_media:
            raise UserError(f"task {self.task}: {shots.name} shows examples in words, and those of episodes are media")
        wanted = (shots.count, self.seed)
        if wanted not in self.episodes:
            source = self.source.with_shots(shots.count, self.seed)
            items = [one for index in range(len(source)) for one in items_of(source[index])]
            self.episodes[wanted] = {one.key: one for one in items}
        return FewShotPrompt(self.episodes[wanted][item.key].messages)


def exemplars_of(task: Task, cache: Path | None = None) -> Exemplars:
    """What makes the prompts of a task; `cache` is a folder for the vectors of its pool."""
    if isinstance(task.test, EpisodeSource):
        return EpisodePrompts(task.test, task.config.name)
    return Exemplars(task.pool, task.config.name, task.config.shots, cache=cache)

"""Prompts of tasks whose data are episodes, which bring their own examples: shots of each class."""

from mmgpt.datasets.episodes import EpisodeSource
from mmgpt.evaluation.item import Item, items_of
from mmgpt.evaluation.shots import Prompt, Shots


class EpisodePrompts:
    """Stands where `Exemplars` does for other tasks."""

    def __init__(self, source: EpisodeSource) -> None:
        self.source = source
        self.by_shots: dict[int, dict[str, Item]] = {}

    def prompt(self, item: Item, shots: Shots) -> Prompt:
        """An item's question after `shots.count` examples of each class of its episode.

        Raises:
            UserError: if the classes do not have so many.
        """
        if shots.count not in self.by_shots:
            source = self.source.with_shots(shots.count)
            items = [one for index in range(len(source)) for one in items_of(source[index])]
            self.by_shots[shots.count] = {one.key: one for one in items}
        return Prompt(self.by_shots[shots.count][item.key].messages, ())

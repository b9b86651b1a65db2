"""Prompts of tasks whose data are episodes, which bring their own examples: shots of each class."""

from mmgpt.datasets.episodes import EpisodeSource
from mmgpt.evaluation.item import Item, items_of
from mmgpt.evaluation.models import Model
from mmgpt.evaluation.shots import Prompt, Shots


class EpisodePrompts:
    """Stands where `Exemplars` does for other tasks; the data's own seed chooses the examples."""

    def __init__(self, source: EpisodeSource) -> None:
        self.source, self.seed = source, source.config.seed
        self.by_shots: dict[int, dict[str, Item]] = {}

    def seeded(self, seed: int) -> "EpisodePrompts":
        """The same."""
        return self

    def prompt(self, item: Item, shots: Shots, model: Model | None = None, room: int = 0) -> Prompt:
        """An item's question after `shots.count` examples of each class of its episode.

        Raises:
            UserError: if the classes do not have so many.
        """
        if shots.count not in self.by_shots:
            source = self.source.with_shots(shots.count)
            items = [one for index in range(len(source)) for one in items_of(source[index])]
            self.by_shots[shots.count] = {one.key: one for one in items}
        return Prompt(self.by_shots[shots.count][item.key].messages, ())

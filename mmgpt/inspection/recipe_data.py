"""A recipe's data opened as its training would, without a model: sources, and the renderer that they pass through."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.readers.registry import open_source
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.model.bundle import make_renderer
from mmgpt.training.recipe import Recipe, StageConfig, open_recipe
from mmgpt.training.run_tokenizer import make_tokenizer
from mmgpt.training.warm_start import chat_settings


@dataclass(frozen=True)
class RecipeData:
    """A recipe, its sources by stage, and how they become tokens."""

    recipe: Recipe
    data_root: Path
    sources: dict[str, list[Source]]  # by the name of the stage
    renderer: Renderer

    @property
    def stages(self) -> list[StageConfig]:
        """The stages that are looked at."""
        return [stage for stage in self.recipe.stages if stage.name in self.sources]


def open_data(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    data_root: str | Path = ".",
    run: str | Path | None = None,
) -> RecipeData:
    """Open a recipe's data, and its tokenizer: that of a run, else made as the training would make it.

    Args:
        recipe: a YAML file, the name of a recipe that comes with mmgpt, or a Recipe.
        overrides: dotted keys, as in `stages.instruct.batch_size=10`.
        stage: look at this one alone.
        data_root: the folder that paths in the recipe are relative to.
        run: the folder of a run of this recipe, for its tokenizer.
    Raises:
        UserError: if the recipe or a source is wrong, or there is no such stage.
    """
    recipe = open_recipe(recipe, overrides)
    names = [one.name for one in recipe.stages]
    if stage is not None and stage not in names:
        raise UserError(f"stage {stage!r} is none of {recipe.name}'s; {did_you_mean(stage, names)}")
    sources = {one.name: [open_source(item, data_root) for item in one.data] for one in recipe.stages}
    readable: dict[str, list[Source]] = {name: [_Readable(source) for source in some] for name, some in sources.items()}
    chat = chat_settings(recipe)
    tokenizer = Tokenizer.load(run) if run is not None else make_tokenizer(recipe, chat, readable)
    for modality in recipe.model.encoders:
        tokenizer.special(PLACEHOLDER_TOKENS[modality])
    renderer = make_renderer(recipe.model, tokenizer, chat.template, chat.system, chat.media_markup, recipe.limits)
    wanted = names if stage is None else [stage]
    return RecipeData(recipe, Path(data_root), {name: sources[name] for name in wanted}, renderer)


class _Readable(Source):
    """A source whose faulty samples are empty: whoever looks at the data tells of them, row by row."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.num_samples = source, source.name, len(source)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.source[index]
        except Exception:  # also what nobody foresaw, as in check.py
            return Sample(())


def stratified_indexes(size: int, limit: int, seed: int = 0) -> list[int]:
    """At most `limit` indexes below `size`, in order: one drawn from each of as many equal stretches."""
    count = min(size, limit)
    rng = random.Random(seed)
    return [rng.randrange(at * size // count, (at + 1) * size // count) for at in range(count)]

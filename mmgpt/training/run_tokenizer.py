"""The tokenizer of a run: trained on its own texts or brought by a checkpoint, with the tokens that its model needs."""

from collections.abc import Iterator, Sequence
from itertools import chain

from mmgpt.checkpoints.pretrained_parts import tokenizer_of
from mmgpt.checkpoints.save_load import find_model
from mmgpt.config import UserError
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source
from mmgpt.inputs.templates import TEMPLATES, special_tokens
from mmgpt.inputs.tokenizer import END, MASK, PLACEHOLDER_TOKENS, Tokenizer, TokenizerConfig
from mmgpt.training.recipe import Recipe
from mmgpt.training.warm_start import ChatSettings


def make_tokenizer(recipe: Recipe, chat: ChatSettings, sources: dict[str, list[Source]]) -> Tokenizer:
    """The tokenizer that a recipe names or its decoder brings, or one trained on the texts of its stages' sources.

    Special tokens that the recipe needs and it lacks are added at its end.
    """
    config = recipe.tokenizer or TokenizerConfig()
    tokenizer = given_tokenizer(recipe) or Tokenizer.train(
        _texts(_distinct_sources(recipe, sources), config.num_samples), config.vocab_size
    )
    return tokenizer.extended(needed_tokens(recipe, chat, tokenizer))


def given_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer that a recipe names, or its start or decoder brings, as it came; None where one is to be trained.

    Raises:
        UserError: if the recipe describes one and its decoder's checkpoint brings another.
    """
    brought = tokenizer_of(recipe.model)
    if brought and recipe.tokenizer:
        raise UserError(
            f"tokenizer: {recipe.model.decoder.pretrained} brings one of its own, whose ids its embedding is made for; "
            "leave it out"
        )
    if recipe.tokenizer:
        return Tokenizer.load(recipe.tokenizer.path) if recipe.tokenizer.path else None
    return Tokenizer.load(find_model(recipe.init_from)) if recipe.init_from else brought


def new_tokens(recipe: Recipe, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of a run's tokenizer that its decoder's checkpoint, or else the tokenizer it was given, did not have."""
    given = tokenizer_of(recipe.model) or given_tokenizer(recipe)
    return tuple(range(len(given), len(tokenizer))) if given else ()


def needed_tokens(recipe: Recipe, chat: ChatSettings, tokenizer: Tokenizer) -> list[str]:
    """The special tokens that a recipe's template, media and stages use."""
    masks = any(stage.objective == "masked" or stage.word_dropout for stage in recipe.stages)
    end = [] if END in tokenizer.special_ids else [END]
    return [
        *end,
        *(token for token in TEMPLATES[chat.template].tokens if token != END),
        *(PLACEHOLDER_TOKENS[modality] for modality in recipe.model.encoders),
        *special_tokens("".join(chain(*chat.media_markup.values()))),
        *([MASK] if masks else []),
    ]


def _distinct_sources(recipe: Recipe, sources: dict[str, list[Source]]) -> list[Source]:
    distinct = {
        item.model_dump_json(exclude={"weight"}): source
        for stage in recipe.stages
        for item, source in zip(stage.data, sources[stage.name], strict=True)
    }
    return list(distinct.values())


def _texts(sources: Sequence[Source], count: int) -> Iterator[str]:
    for source in sources:
        stride = max(1, len(source) // count)
        for index in range(0, len(source), stride)[:count]:
            yield from texts_of(source[index])


def texts_of(sample: Sample) -> Iterator[str]:
    """Every text of a sample, its branches included."""
    for message in sample.turns:
        yield message.text

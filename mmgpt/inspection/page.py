"""Samples of a recipe on one HTML page, token by token, as the model will read them and be taught by them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.datasets.media import Image, Media
from mmgpt.datasets.source import Source
from mmgpt.files import write_file
from mmgpt.inputs.objectives import rows_of
from mmgpt.inputs.rendered import IGNORED, Medium, Objective, Rendered
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.inspection.recipe_data import RecipeData, stratified_indexes
from mmgpt.reports.gallery import medium_figure
from mmgpt.reports.html import Markup, html_page, tag
from mmgpt.training.recipe import StageConfig

LONGEST_LETTER = 4  # bytes of UTF-8, and so tokens, that one letter may be spread over


def write_data_page(data: RecipeData, file: Path, *, limit: int = 20, seed: int = 0) -> Path:
    """Write a page with at most `limit` samples of each source of each stage, spread over it by a seed."""
    shown: dict[tuple[str, Objective], tuple[Source, list[StageConfig]]] = {}
    for stage in data.stages:
        for item, source in zip(stage.data, data.sources[stage.name], strict=True):
            same = item.model_dump_json(exclude={"weight"}), stage.objective
            shown.setdefault(same, (source, []))[1].append(stage)
    sections = [
        _section(data, source, stages, number, limit, seed) for number, (source, stages) in enumerate(shown.values())
    ]
    links = [
        tag("a", source.name, tag("small", ", ".join(stage.name for stage in stages)), href=f"#source-{number}")
        for number, (source, stages) in enumerate(shown.values())
    ]
    top = tag("div", tag("p", "mmgpt data", cls="eyebrow"), cls="top")
    facts = (
        f"{len(shown)} sources",
        f"context {data.renderer.context:,}",
        f"vocabulary {len(data.renderer.tokenizer):,}",
    )
    summary = tag("p", *(tag("span", fact) for fact in facts), cls="summary")
    header = tag("header", top, tag("h1", data.recipe.name), summary, _legend(), tag("nav", *links, cls="sources"))
    page = html_page(f"{data.recipe.name} - mmgpt data", header, tag("main", *sections))
    write_file(file, "<!doctype html>\n" + page + "\n", errors="replace")
    return file


def _legend() -> Markup:
    return tag(
        "p",
        tag("span", "read", cls="t"),
        tag("span", "learned", cls="t learned"),
        tag("span", "<|markup|>", cls="t special"),
        tag("span", "image", tag("b", "\N{MULTIPLICATION SIGN} 9"), cls="chip"),
        tag("span", "placeholders of a medium; under the pointer, a token's id", cls="note"),
        cls="tokens legend-line",
    )


def _section(
    data: RecipeData, source: Source, stages: Sequence[StageConfig], number: int, limit: int, seed: int
) -> Markup:
    objective = stages[0].objective
    names = ", ".join(stage.name for stage in stages)
    indexes = stratified_indexes(len(source), limit, seed)
    hint = f"{names} \N{MIDDLE DOT} {objective} \N{MIDDLE DOT} {len(indexes)} of {len(source):,} samples"
    cards = [_card(data, source, index, objective) for index in indexes]
    return tag("section", tag("h2", source.name), tag("p", hint, cls="hint"), *cards, id=f"source-{number}")


def _card(data: RecipeData, source: Source, index: int, objective: Objective) -> Markup:
    try:
        sample = source[index]
    except UserError as error:
        return _article(f"{source.name}/{index}", "", [], [_refused(error)])
    blocks, lengths, entered = list[Markup](), list[str](), list[Medium]()
    for row in rows_of(sample, objective):
        try:
            rendered = data.renderer.render(row, objective)
        except UserError as error:
            blocks.append(_refused(error))
            continue
        learned = sum(label != IGNORED for label in rendered.labels)
        lengths.append(f"{len(rendered.ids)} tokens, {learned} learned{', trimmed' * rendered.is_trimmed}")
        blocks += row_blocks(rendered, data.renderer.tokenizer)
        entered = entered or rendered.media
    # of a trimmed sample, whose first exchanges are gone, no medium is sure to be the one that entered
    given = sample.media
    figures = [_figure(medium, entered[at] if len(entered) == len(given) else None) for at, medium in enumerate(given)]
    return _article(sample.key, "; ".join(lengths), figures, blocks)


def _article(key: str, lengths: str, media: Sequence[Markup], blocks: Sequence[Markup]) -> Markup:
    caption = tag("p", tag("b", key), tag("span", lengths), cls="key")
    shown = tag("div", *media, cls="media") if media else None
    return tag(
        "article", shown, tag("div", caption, *blocks, cls="words"), cls="card look" if media else "card look plain"
    )


def _refused(error: UserError) -> Markup:
    return tag("p", tag("b", "cannot be used: "), str(error), cls="bad")


def _figure(part: Media, entered: Medium | None) -> Markup:
    """A medium as it came, and beside a picture what the encoder gets of it."""
    took = f"{entered.num_tokens} tokens" if entered else "did not enter"
    seen = prepared_picture(entered.values) if entered and isinstance(part, Image) else None
    if seen is None or not isinstance(part, Image):
        return tag("figure", medium_figure(part), tag("figcaption", took))
    came, enters = _sides(part.load()), _sides(seen)
    if came == enters:
        return tag("figure", medium_figure(part), tag("figcaption", f"{came}, {took}"))
    return tag(
        "div",
        tag("figure", medium_figure(part), tag("figcaption", came)),
        tag("figure", medium_figure(Image(seen)), tag("figcaption", f"enters as {enters}, {took}")),
        cls="pair",
    )


def _sides(picture: PIL.Image.Image) -> str:
    return f"{picture.width} \N{MULTIPLICATION SIGN} {picture.height}"


def prepared_picture(values: Tensor) -> PIL.Image.Image | None:
    """The picture that an encoder is given as bytes (3, H, W)."""
    if values.ndim != 3 or len(values) != 3 or values.dtype != torch.uint8:
        return None
    return PIL.Image.fromarray(values.numpy().transpose(1, 2, 0))


def row_blocks(rendered: Rendered, tokenizer: Tokenizer) -> list[Markup]:
    """The tokens of a row: its context, then each branch, which goes on from the context alone."""
    media = iter(rendered.media)
    blocks = []
    for branch in dict.fromkeys(rendered.branches):
        places = [at for at, number in enumerate(rendered.branches) if number == branch]
        name = tag("span", f"branch {branch}", cls="branch") if branch else None
        tokens = _tokens(rendered, places, tokenizer, media)
        blocks.append(tag("div", name, tag("p", *tokens, cls="tokens"), cls="block"))
    return blocks


def _tokens(
    rendered: Rendered, places: Sequence[int], tokenizer: Tokenizer, media: Iterator[Medium]
) -> Iterator[Markup]:
    slots = {
        tokenizer.special_ids[slot]: kind for kind, slot in PLACEHOLDER_TOKENS.items() if slot in tokenizer.special_ids
    }
    markup = set(tokenizer.special_ids.values())
    at = 0
    while at < len(places):
        place = places[at]
        if rendered.ids[place] in slots:
            medium = next(media)
            yield tag("span", medium.modality, tag("b", f"\N{MULTIPLICATION SIGN} {medium.num_tokens}"), cls="chip")
            at += medium.num_tokens
            continue
        count = 1 if rendered.ids[place] in markup else _letter(rendered, places[at:], tokenizer)
        yield _token(rendered, places[at : at + count], tokenizer, rendered.ids[place] in markup)
        at += count


def _letter(rendered: Rendered, places: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many tokens to show as one: those that only together are a letter, and are all learned or all not."""
    is_target = rendered.labels[places[0]] != IGNORED
    for count in range(1, min(LONGEST_LETTER, len(places)) + 1):
        if (rendered.labels[places[count - 1]] != IGNORED) != is_target:
            break
        if "\ufffd" not in tokenizer.decode(rendered.ids[place] for place in places[:count]):
            return count
    return 1


def _token(rendered: Rendered, places: Sequence[int], tokenizer: Tokenizer, is_markup: bool) -> Markup:
    ids, labels = [rendered.ids[at] for at in places], [rendered.labels[at] for at in places]
    said = tokenizer.decode(ids, keep_special=True).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
    hidden = labels[0] not in (IGNORED, ids[0])  # another token stands in its place, to be looked through
    about = " ".join(map(str, ids)) + (f", to be learned: {tokenizer.decode(labels)!r}" if hidden else "")
    return tag("span", said, cls="t" + " learned" * (labels[0] != IGNORED) + " special" * is_markup, title=about)

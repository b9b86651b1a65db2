"""A training that begins with the weights of another: what has the same name and shape is copied, and all is told."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmgpt.checkpoints.save_load import TOKEN_TABLES, find_model, load_bundle, media_markup_of, unique_weights
from mmgpt.config import UserError
from mmgpt.files import first_of, read_json
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import ModelBundle
from mmgpt.training.recipe import Recipe


class ChatSettings(NamedTuple):
    """How conversations are written: the name of a template, the system turn, the markup around media."""

    template: str
    system: str | None
    media_markup: dict[str, tuple[str, str]]


def chat_settings(recipe: Recipe, checkpoint: Path | None = None) -> ChatSettings:
    """Template, system turn and markup around media: a recipe's own, else those of its start, else chatml alone.

    Raises:
        UserError: if it has a start and there is no model; of a run that goes on, its own checkpoint will do.
    """
    folder = checkpoint or (find_model(recipe.init_from) if recipe.init_from else None)
    start = read_json(folder / "config.json") if folder else {}
    template = recipe.template or start.get("template") or "chatml"
    system = start.get("system") if recipe.system is None else recipe.system
    return ChatSettings(template, system, recipe.media_markup or media_markup_of(start))


@torch.no_grad()
def warm_start(bundle: ModelBundle, path: str | Path) -> dict[str, Any]:
    """Copy from a run, checkpoint or exported folder every weight whose name and shape this model has too.

    Where the tokenizers differ, rows of the tables of tokens are copied by token; others stay as they are.

    Returns:
        A line for the log: how many weights (`matched`) and numbers (`parameters`) were copied, by name what this
        model has and that one lacks (`absent`), has in another shape (`misshapen`) and what is left over (`unused`);
        where the tokenizers differ, how many `tokens` both have.
    Raises:
        UserError: if there is no model in `path`, or nothing of it fits.
    """
    source = load_bundle(path)
    if source.quantization:
        raise UserError(
            f"init_from: {path} holds weights in {source.quantization.scheme}, which are for answering; "
            "start from the model they were quantised from"
        )
    theirs, ours = source.model.state_dict(), unique_weights(bundle.model)
    shared = _shared_tokens(source.tokenizer, bundle.tokenizer)
    told: dict[str, Any] = {"event": "start", "from": str(path), "matched": 0, "of": len(ours), "parameters": 0}
    told |= {"absent": [name for name in ours if name not in theirs], "misshapen": []}
    told["unused"] = [name for name in unique_weights(source.model) if name not in ours]
    for name in (name for name in ours if name in theirs):
        weight, given = ours[name], theirs[name]
        if shared is not None and name in TOKEN_TABLES and given.shape[1:] == weight.shape[1:]:
            weight[list(shared)] = given[list(shared.values())].to(weight)
            told["parameters"] += len(shared) * weight.shape[1]
        elif given.shape == weight.shape:
            weight.copy_(given)
            told["parameters"] += weight.numel()
        else:
            told["misshapen"].append(f"{name} {tuple(given.shape)} instead of {tuple(weight.shape)}")
    told["matched"] = len(ours) - len(told["absent"]) - len(told["misshapen"])
    if not told["matched"]:
        raise UserError(
            f"init_from: {path} holds {len(theirs)} weights, and none has the name and shape of one of this model's; "
            "give a model with a part like one of these, or leave start out"
        )
    if shared is not None:
        told["tokens"] = {"shared": len(shared), "of": len(bundle.tokenizer)}
    return told


def _shared_tokens(theirs: Tokenizer, ours: Tokenizer) -> dict[int, int] | None:
    """The ids, here and there, of the tokens that both of two tokenizers have; None if the two are the same."""
    there, here = (one.core.get_vocab(with_added_tokens=True) for one in (theirs, ours))
    return None if there == here else {place: there[token] for token, place in here.items() if token in there}


def describe(record: dict[str, Any]) -> str:
    """A start's line of the log as a sentence."""
    words = f"starts from {record['from']}: {record['matched']} of {record['of']} weights"
    words += f", {record['parameters']:,} parameters"
    if "tokens" in record:
        words += f", {record['tokens']['shared']} of {record['tokens']['of']} tokens"
    for kind in ("absent", "misshapen", "unused"):
        if record[kind]:
            words += f"; {len(record[kind])} {kind}: {first_of(record[kind])}"
    return words

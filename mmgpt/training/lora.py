"""Adapters of low rank on linear layers, by `peft`; at the end of a stage they are merged into the weights.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et al. 2024, arXiv:2402.09353.
"""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from mmgpt.checkpoints.golden import golden_logits, make_golden
from mmgpt.checkpoints.hf_decoders import family_of, family_rules
from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.datasets.sample import parse_messages
from mmgpt.files import first_of, save_weights, write_folder
from mmgpt.model.bundle import ModelBundle
from mmgpt.weight_names import names_part, their_name

MERGE_TOLERANCE = 1e-4  # of logits in float32, as a share of the largest (of 1, where all are smaller)
ADAPTER = "default"  # what peft calls a model's only adapter
PREFIX = "base_model.model."  # what peft's files put before the names of modules


class LoraConfig(Config):
    """Small matrices that learn beside frozen ones."""

    targets: list[str] = Field(min_length=1)  # globs over linear layers, as decoder.blocks.*.attention.*
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0  # an adapter's output is multiplied by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what adapters read
    dora: bool = False  # the length of each row of a weight learns apart from its direction


def import_peft() -> Any:
    """The library.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise UserError("lora needs peft; install it with pip install 'mmgpt[train]'") from None


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Put an adapter on each linear layer that a glob names; they learn, and what else did goes on learning.

    Raises:
        UserError: if a glob names no linear layer, or a layer whose weight learns itself.
    """
    peft = import_peft()
    names = _targets(model, config.targets)
    both = [name for name in names if model.get_parameter(f"{name}.weight").requires_grad]
    if both:
        raise UserError(
            f"lora adapts {first_of(both)}, whose weights train lets learn themselves; take them out of one of the two "
            "(train: [] trains adapters alone)"
        )
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=names,
    )
    peft.inject_adapter_in_model(wanted, model, ADAPTER)  # which freezes all else
    for parameter in learning:
        parameter.requires_grad_(True)


def _targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Linear layers by name. The output layer is none of them: the loss reads its weight past the module."""
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear and name != "decoder.head"]
    known = {re.sub(r"\.\d+(?=\.)", ".*", name) for name in linear}
    for pattern in patterns:
        if pattern == "decoder.head":
            raise UserError("lora: decoder.head cannot be adapted; name it in train, where it learns itself")
        if not any(names_part(name, pattern) for name in linear):
            raise UserError(f"lora: target {pattern!r} matches no linear layer; {did_you_mean(pattern, known)}")
    return [name for name in linear if any(names_part(name, pattern) for pattern in patterns)]


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by the names of the layers they stand for."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def check_magnitudes(model: nn.Module) -> None:
    """Refuse DoRA on weights with rows of zeros, by whose length it would divide.

    Raises:
        UserError: names the layers.
    """
    empty = [
        name
        for name, layer in adapted(model).items()
        if any(bool((vector.weight == 0).any()) for vector in layer.lora_magnitude_vector.values())
    ]
    if empty:
        raise UserError(
            f"lora: dora divides by the length of a weight's rows, and {first_of(empty)} has rows of zeros; "
            "train it first, leave it out of targets, or set dora: false"
        )


def unmerged_state(model: nn.Module) -> dict[str, Tensor]:
    """What the layers with adapters hold, by the names of parameters: merging cannot be undone to the last bit."""
    return {
        f"{name}.{own}": parameter.detach()
        for name, layer in adapted(model).items()
        for own, parameter in layer.named_parameters()
    }


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """A plain model with the adapters' effect in its weights; afterwards it is again what it was, bit for bit."""
    layers = adapted(model)
    kept = {name: layer.base_layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items()}
    _merge(model, layers)
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight.data.copy_(kept[name])
            layer.merged_adapters.clear()
            model.set_submodule(name, layer)


@torch.no_grad()
def _merge(model: nn.Module, layers: dict[str, Any]) -> None:
    for name, layer in layers.items():
        layer.merge()
        model.set_submodule(name, layer.base_layer)


def merge_adapters(bundle: ModelBundle) -> float:
    """Merge the adapters for good, and compare the logits of the golden prompt.

    Returns:
        The largest difference of a logit.
    Raises:
        FloatingPointError: if it is more than MERGE_TOLERANCE of the largest logit.
    """
    messages = parse_messages(make_golden(bundle)["messages"])
    before_V = golden_logits(bundle, messages)
    _merge(bundle.model, adapted(bundle.model))
    del bundle.model.peft_config  # or peft would take the next stage's adapters for a second set
    gap = float((golden_logits(bundle, messages) - before_V).abs().max())
    allowed = MERGE_TOLERANCE * max(1.0, float(before_V.abs().max()))
    if not gap <= allowed:
        raise FloatingPointError(
            f"merging the adapters moved a logit by {gap:.2g}, more than {allowed:.2g}; "
            "the last checkpoint of the stage has them unmerged"
        )
    return gap


def save_adapter(model: nn.Module, folder: Path, outside_name: Callable[[str], str | None] = lambda name: name) -> None:
    """Write the adapters in peft's format: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(base, folder)` puts them on a model whose modules have these names.

    Args:
        model: with adapters.
        folder: there already.
        outside_name: what another library calls a module of this model; None leaves its adapter out.
    """
    peft = import_peft()
    names = {name: outside for name in adapted(model) if (outside := outside_name(name)) is not None}
    weights: dict[str, Tensor] = {}
    for key, weight in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items():
        name, _, kind = key.rpartition(".lora_")
        if name in names:
            weights[f"{PREFIX}{names[name]}.lora_{kind}"] = weight
    save_weights(weights, folder, shard_bytes=2**63, stem="adapter_model")  # peft reads one file
    config: Any = copy(model.peft_config[ADAPTER])  # type: ignore[index]
    config.target_modules, config.inference_mode = sorted(names.values()), True
    config.save_pretrained(folder)


def save_adapters(bundle: ModelBundle, stage: Path) -> None:
    """Write a stage's adapter for this model, and where its decoder is of an outside family, one for that library's.

    Such an adapter (`adapter-llama` ...) holds the decoder's layers by the names they have there; those that the
    family keeps joined with others, as GPT-2 does query, key and value, have no place in it.
    """
    write_folder(stage / "adapter", lambda draft: save_adapter(bundle.model, draft))
    try:
        family = family_of(bundle.model.config.decoder)
    except UserError:
        return
    rules = family_rules(bundle.model.config.decoder)

    def outside_name(module: str) -> str | None:
        weight = f"{module.removeprefix('decoder.')}.weight"
        apart = [rule for rule in rules if len(rule.names) == 1]
        theirs = their_name(weight, apart) if module.startswith("decoder.") else None
        return theirs and theirs.removesuffix(".weight")

    if any(outside_name(name) for name in adapted(bundle.model)):
        write_folder(stage / f"adapter-{family}", lambda draft: save_adapter(bundle.model, draft, outside_name))

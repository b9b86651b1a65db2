"""A model on disk: safetensors, configs and tokenizer in one folder, written atomically and checked when read.

The folder has the Hugging Face look: config.json, model.safetensors (sharded past 5 GB, with an index),
tokenizer.json, processor_config.json, generation_config.json, golden.json, README.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgpt.arguments import place
from mmgpt.checkpoints.gguf import is_gguf
from mmgpt.checkpoints.golden import make_golden, verify_golden
from mmgpt.checkpoints.hf_multimodal import read_language_model, read_multimodal
from mmgpt.checkpoints.hf_multimodal_tables import FORMAT_OF_MODEL_TYPE
from mmgpt.checkpoints.hub import fetch, is_name
from mmgpt.checkpoints.model_card import card_text
from mmgpt.config import UserError, build, old_spellings_allowed
from mmgpt.files import check_weights, load_weights, read_json, save_weights, write_json
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.model.config import ModelConfig
from mmgpt.model.meta import on_meta_device
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.model.quantize import Quantization, check_device, check_types, numbers_of, quantized_layers

TOKEN_TABLES = ("decoder.embedding.weight", "decoder.head.weight")  # a row a token; one weight where it is tied


def save_bundle(bundle: ModelBundle, folder: Path, with_golden: bool = True) -> None:
    """Write a bundle's files into an existing folder."""
    model = bundle.model
    save_weights(unique_weights(model), folder)
    config_json = {
        "model_type": "mmgpt",
        "format_version": 1,
        "vocab_size": model.vocab_size,
        "num_tokens": len(bundle.tokenizer),
        "template": bundle.template,
        "system": bundle.system,
        "media_markup": bundle.media_markup,
        "new_tokens": bundle.new_tokens,
        "model": model.config.model_dump(mode="json"),
    }
    if bundle.quantization:
        config_json["quantization"] = bundle.quantization.model_dump(mode="json")
    write_json(folder / "config.json", config_json)
    bundle.tokenizer.save(folder)
    sizes = {
        m: {"kind": c.kind, "num_tokens": model.config.media_processors()[m].num_tokens(c.max_shape)}
        for m, c in model.config.encoders.items()
    }
    write_json(folder / "processor_config.json", sizes)
    stop = TEMPLATES[bundle.template].end
    write_json(
        folder / "generation_config.json",
        {"do_sample": False, "max_new_tokens": 64, "eos_token_id": bundle.tokenizer.special(stop)},
    )
    if with_golden:
        write_json(folder / "golden.json", make_golden(bundle))
    if bundle.card:
        (folder / "README.md").write_text(card_text(bundle.model, bundle.card), encoding="utf-8")


def load_bundle(
    path: str | Path,
    device: str | torch.device = "cpu",
    verify: bool = False,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> ModelBundle:
    """Read a bundle from a run, a stage's checkpoint, a model folder, or a checkpoint in transformers' layout.

    Args:
        path: the folder, or organisation/name on the hub.
        device: where the weights go.
        verify: compute golden.json's logits again and compare.
        revision: of the hub.
        dtype: of the weights; None leaves them as they are stored.
    Raises:
        UserError: if files are absent or damaged, or weights are missing, unexpected or of another shape.
    """
    folder = find_model(path, revision)
    config_json = read_json(folder / "config.json")
    kind = config_json.get("model_type")
    if kind == "mmgpt":
        bundle, weights = _read_own(folder, config_json)
    else:
        bundle, weights = read_multimodal(folder) if kind in FORMAT_OF_MODEL_TYPE else read_language_model(folder)
    if bundle.quantization:
        check_device(bundle.quantization.scheme, torch.device(device))
    kept = numbers_of(bundle.model)
    moved = {name: w.to(device, None if name in kept else dtype) for name, w in weights.items()}
    set_weights(bundle.model, moved, str(folder))
    for layer in quantized_layers(bundle.model).values():
        layer.dtype = bundle.model.decoder.embedding.weight.dtype
    bundle.model.eval()
    if verify:
        verify_golden(bundle, read_json(folder / "golden.json"), str(folder))
    return bundle


def _read_own(folder: Path, config_json: dict[str, Any]) -> tuple[ModelBundle, dict[str, Tensor]]:
    """A folder that `save_bundle` wrote: its bundle on the meta device, and its weights."""
    if "model" not in config_json:
        raise UserError(f"{folder / 'config.json'}: has no model; take the config.json that was saved with the weights")
    absent = [key for key in ("vocab_size", "template") if key not in config_json]
    if absent or config_json["template"] not in TEMPLATES:
        fault = (
            f"has no {absent[0]}" if absent else f"names the template {config_json['template']!r}, which is not known"
        )
        raise UserError(f"{folder / 'config.json'}: {fault}; take the config.json that was saved with the weights")
    with old_spellings_allowed():
        config = build(ModelConfig, config_json["model"], str(folder / "config.json"))
    tokenizer = Tokenizer.load(folder)
    num_tokens = config_json.get("num_tokens", config_json["vocab_size"])
    if len(tokenizer) != num_tokens:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {num_tokens}")
    with on_meta_device():
        bundle = new_bundle(config, tokenizer, config_json["template"], config_json["vocab_size"])
        if "quantization" in config_json:
            bundle.quantize(build(Quantization, config_json["quantization"], f"{folder / 'config.json'}: quantization"))
    bundle.system, bundle.new_tokens = config_json.get("system"), tuple(config_json.get("new_tokens", ()))
    bundle.media_markup = media_markup_of(config_json)
    return bundle, load_weights(folder)


def media_markup_of(config_json: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Markup before and after each medium of a modality; the release before called it `wraps`."""
    markup = config_json.get("media_markup", config_json.get("wraps", {}))
    return {modality: (before, after) for modality, (before, after) in markup.items()}


def widen(model: MultimodalModel) -> None:
    """Hold weights of bfloat16 in float32, which has all their values; numbers of layers of few bits stay."""
    kept = numbers_of(model)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.dtype == torch.bfloat16 and name not in kept:
            weight.data = weight.data.float()
    for layer in quantized_layers(model).values():
        layer.dtype = torch.float32


def find_model(path: str | Path, revision: str | None = None) -> Path:
    """The folder with a model's files: `path` itself, its `final/`, its newest checkpoint, or that name on the hub.

    Raises:
        UserError: if there is none.
    """
    root = place("path", path)
    if revision or is_name(path) or is_gguf(path):
        return fetch(path, revision)
    newest = sorted(root.glob("*/checkpoint-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for folder in [root, root / "final", *newest]:
        if (folder / "config.json").is_file():
            return folder
    what = "holds no config.json, final/ or checkpoint" if root.is_dir() else "no such folder"
    raise UserError(f"{path}: {what}; give a run (runs/NAME), one of its checkpoints, or an exported model folder")


def unique_weights(model: MultimodalModel) -> dict[str, Tensor]:
    """The state dict, without the output layer where it shares the embedding."""
    tied = model.config.decoder.tied
    return {name: w for name, w in model.state_dict().items() if not (tied and name == "decoder.head.weight")}


def set_weights(model: MultimodalModel, weights: dict[str, Tensor], where: str, *, assign: bool = True) -> None:
    """Give a model exactly these weights.

    Args:
        model: the model, on the meta device or not.
        weights: by parameter name.
        where: what an error begins with.
        assign: take the tensors themselves; else copy them into the parameters there are.
    Raises:
        UserError: if any is missing, unexpected or of another shape; names them.
    """
    wanted = dict(model.state_dict())
    is_tied = model.config.decoder.tied and wanted.pop("decoder.head.weight", None) is not None
    check_weights(wanted, weights, where, "take the config.json they were saved with")
    check_types(model, weights, where)
    if is_tied:
        weights["decoder.head.weight"] = weights["decoder.embedding.weight"]
    model.load_state_dict(weights, assign=assign)
    if assign and is_tied:
        model.decoder.head.weight = model.decoder.embedding.weight

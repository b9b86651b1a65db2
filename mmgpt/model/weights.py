"""A model on disk: safetensors, configs and tokenizer in one folder, written atomically and checked when read.

The folder has the Hugging Face look: config.json, model.safetensors (sharded past 5 GB, with an index),
tokenizer.json, processor_config.json, generation_config.json, golden.json, README.md.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmgpt.config import UserError, build
from mmgpt.datasets.media import LIMITS, Audio, Image, Limits, MediaError
from mmgpt.datasets.sample import Message, parse_messages
from mmgpt.inputs.batch import collate
from mmgpt.inputs.chat import TEMPLATES, Renderer, TooLong
from mmgpt.inputs.tokenizer import SLOTS, Tokenizer
from mmgpt.model.multimodal import ModelConfig, MultimodalModel

SHARD_BYTES = 5 * 10**9
GOLDEN_TOLERANCE = 1e-3  # of logits in float32, across machines


@dataclass
class Bundle:
    """All that answering takes: model, tokenizer, template; `card` is what is known of its origin.

    `limits` are a recipe's, for its training; they are not saved, and prompts are held to the defaults.
    """

    model: MultimodalModel
    tokenizer: Tokenizer
    template: str
    card: dict[str, Any] = field(default_factory=dict)
    limits: Limits = LIMITS

    @property
    def renderer(self) -> Renderer:
        """Renders prompts and samples for this model."""
        config = self.model.config
        specs = config.media_specs(self.limits)
        return Renderer(self.tokenizer, TEMPLATES[self.template], specs, config.decoder.context)


def new_bundle(config: ModelConfig, tokenizer: Tokenizer, template: str) -> Bundle:
    """A bundle with random weights."""
    slots = {modality: tokenizer.special(SLOTS[modality]) for modality in config.encoders}
    return Bundle(MultimodalModel(config, len(tokenizer), slots), tokenizer, template)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name, then move it into place, so that it is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    fill(draft)
    for file in draft.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old)
    else:
        draft.rename(folder)


def write_file(file: Path, text: str) -> None:
    """Write a file under another name, then move it into place, so that it is there whole or not at all."""
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def save_bundle(bundle: Bundle, folder: Path, with_golden: bool = True) -> None:
    """Write a bundle's files into an existing folder."""
    model = bundle.model
    save_weights(_unique_weights(model), folder)
    described = {
        "model_type": "mmgpt",
        "format_version": 1,
        "vocab_size": model.vocab_size,
        "template": bundle.template,
        "model": model.config.model_dump(mode="json"),
    }
    _write_json(folder / "config.json", described)
    bundle.tokenizer.save(folder)
    sizes = {
        m: {"kind": c.kind, "num_tokens": model.config.adapters[m].num_tokens(c.grid_of(c.largest))}
        for m, c in model.config.encoders.items()
    }
    _write_json(folder / "processor_config.json", sizes)
    stop = TEMPLATES[bundle.template].end
    _write_json(
        folder / "generation_config.json",
        {"do_sample": False, "max_new_tokens": 64, "eos_token_id": bundle.tokenizer.special(stop)},
    )
    if with_golden:
        _write_json(folder / "golden.json", make_golden(bundle))
    if bundle.card:
        (folder / "README.md").write_text(_card_text(bundle), encoding="utf-8")


def load_bundle(path: str | Path, device: str | torch.device = "cpu", verify: bool = False) -> Bundle:
    """Read a bundle from a run, a stage's checkpoint, or a model folder.

    Args:
        path: the folder.
        device: where the weights go.
        verify: compute golden.json's logits again and compare.
    Raises:
        UserError: if files are absent or damaged, or weights are missing, unexpected or of another shape.
    """
    folder = find_model(path)
    described = read_json(folder / "config.json")
    if described.get("model_type") != "mmgpt" or "model" not in described:
        raise UserError(f"{folder / 'config.json'}: model_type is {described.get('model_type')!r}, not 'mmgpt'")
    absent = [key for key in ("vocab_size", "template") if key not in described]
    if absent or described["template"] not in TEMPLATES:
        fault = f"has no {absent[0]}" if absent else f"names the template {described['template']!r}, which is not known"
        raise UserError(f"{folder / 'config.json'}: {fault}; take the config.json that was saved with the weights")
    config = build(ModelConfig, described["model"], str(folder / "config.json"))
    tokenizer = Tokenizer.load(folder)
    if len(tokenizer) != described["vocab_size"]:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {described['vocab_size']}")
    with torch.device("meta"):
        bundle = new_bundle(config, tokenizer, described["template"])
    set_weights(bundle.model, load_weights(folder, device), str(folder))
    bundle.model.eval()
    if verify:
        verify_golden(bundle, read_json(folder / "golden.json"), str(folder))
    return bundle


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name}: cannot be used here ({reason}); give cpu, cuda or auto") from None


def find_model(path: str | Path) -> Path:
    """The folder with a model's files: `path` itself, its `final/`, or its newest checkpoint.

    Raises:
        UserError: if there is none.
    """
    root = Path(path)
    newest = sorted(root.glob("*/checkpoint-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for folder in [root, root / "final", *newest]:
        if (folder / "config.json").is_file():
            return folder
    what = "holds no config.json, final/ or checkpoint" if root.is_dir() else "no such folder"
    raise UserError(f"{path}: {what}; give a run (runs/NAME), one of its checkpoints, or an exported model folder")


def _unique_weights(model: MultimodalModel) -> dict[str, Tensor]:
    tied = model.config.decoder.tied
    return {
        name: w.contiguous() for name, w in model.state_dict().items() if not (tied and name == "decoder.head.weight")
    }


def save_weights(weights: Mapping[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or numbered shards with an index where it would pass `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in weights.items():
        if size and size + weight.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(weight.nbytes for weight in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def load_weights(folder: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a folder's safetensors.

    Raises:
        UserError: if a file is absent, truncated or no safetensors file.
    """
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in files:
        try:
            weights |= load_file(folder / name, device=str(device))
        except FileNotFoundError:
            raise UserError(f"{folder / name}: no such file; the checkpoint is incomplete, take another one") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name}: damaged or truncated ({error}); take another checkpoint") from None
    return weights


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
    wanted = {name: weight.shape for name, weight in model.state_dict().items()}
    if model.config.decoder.tied:
        del wanted["decoder.head.weight"]
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    if any(names for _, names in faults):
        told = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in faults if names)
        raise UserError(
            f"{where}: the weights do not fit config.json ({told}); take the config.json they were saved with"
        )
    if model.config.decoder.tied:
        weights["decoder.head.weight"] = weights["decoder.embedding.weight"]
    model.load_state_dict(weights, assign=assign)
    if assign and model.config.decoder.tied:
        model.decoder.head.weight = model.decoder.embedding.weight


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def golden_logits(bundle: Bundle, messages: tuple[Message, ...]) -> Tensor:
    """Logits (V,) for the first token of the reply to `messages`."""
    bundle.model.eval()
    batch = collate([bundle.renderer.prompt(messages)]).to(bundle.model.device)
    return bundle.model.decoder.logits(bundle.model.hidden(batch)[0, -1]).cpu()


def _ramp() -> Image:
    """A small picture."""
    ramp_HWC = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3) % 251
    return Image(PIL.Image.fromarray(ramp_HWC.astype(np.uint8)))


def _chirp() -> Audio:
    """A quarter of a second that rises from 200 Hz to 3200 Hz."""
    seconds_S = np.arange(2000, dtype=np.float32) / 8000
    return Audio(0.5 * np.sin(2 * np.pi * (200 * seconds_S + 6000 * seconds_S**2)), rate=8000)


GOLDEN_MEDIA: dict[str, Callable[[], Image | Audio]] = {"image": _ramp, "audio": _chirp}


def make_golden(bundle: Bundle) -> dict[str, Any]:
    """A prompt with every modality of the model, or the first of them that the context holds, and its logits."""
    media = [GOLDEN_MEDIA[modality]() for modality in bundle.model.config.encoders]
    while True:
        messages = [Message.of("user", *media, "What is this?").to_dict()]
        try:
            logits = golden_logits(bundle, parse_messages(messages))  # of the media as they will be read again
            break
        except (MediaError, TooLong):
            if not media:
                raise
            media.pop()
    return {
        "messages": messages,
        "argmax": int(logits.argmax()),
        "first_logits": logits[:256].tolist(),
    }


def verify_golden(bundle: Bundle, golden: dict[str, Any], where: str) -> None:
    """Compute the golden logits again.

    Raises:
        UserError: if they differ by more than `GOLDEN_TOLERANCE`.
    """
    logits = golden_logits(bundle, parse_messages(golden["messages"]))
    gap = (logits[:256] - torch.tensor(golden["first_logits"])).abs().max()
    if gap > GOLDEN_TOLERANCE or int(logits.argmax()) != golden["argmax"]:
        raise UserError(
            f"{where}: golden.json's logits are off by {gap:.2g}; the weights are not the ones it was written with"
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: if it is absent or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; the folder is incomplete") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not an object")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _card_text(bundle: Bundle) -> str:
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in bundle.model.named_children()}
    rows = [f"| {name} | {count:,} |" for name, count in parts.items()]
    facts = [f"- {key}: {value}" for key, value in bundle.card.items()]
    lines = ["# An mmgpt model", "", *facts, "", "| part | parameters |", "| --- | ---: |", *rows, ""]
    use = [
        "```python",
        "import mmgpt",
        'model = mmgpt.load("THIS_FOLDER")',
        'print(model.ask("...").text)',
        "```",
        "",
    ]
    return "\n".join(lines + use)

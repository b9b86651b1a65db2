"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md) as folders in Hugging Face layout, which all else here reads.

A file is unpacked once, into a cache: weights dequantised by the library `gguf` to float32, settings by the tables
below, tokenizer and chat template by transformers.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmgpt.config import UserError, did_you_mean
from mmgpt.files import cache_folder, first_of, save_weights, write_folder, write_json
from mmgpt.weight_names import Rule, their_name

SHARED_KEYS = {  # of every architecture's metadata, and of transformers' config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
GEMMA_KEYS = {
    **SHARED_KEYS,
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
IGNORED_KEYS = {  # of an architecture: what follows from others, or says nothing of the weights
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}
SHARED_NAMES = {  # transformers' names of weights, and GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
LLAMA_NAMES = {**SHARED_NAMES, "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm"}
QWEN3_NAMES = {
    **LLAMA_NAMES,
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
}
GEMMA_NAMES = {
    **SHARED_NAMES,
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
}
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens (gguf.TokenType)
ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3.1 and later: what each frequency is divided by
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.3, of 3.2


class Architecture(NamedTuple):
    """An architecture of GGUF.

    Attributes:
        names: transformers' names of its modules, and GGUF's.
        keys: its metadata, and transformers' settings.
        settings: those that the metadata leave out.
        has_permuted_heads: query and key are stored for rotations of neighbouring pairs.
        norms_hold_one: norms are stored with the 1 that the model adds.
    """

    names: dict[str, str] = LLAMA_NAMES
    keys: dict[str, str] = SHARED_KEYS
    settings: dict[str, Any] = {}
    has_permuted_heads: bool = False
    norms_hold_one: bool = False


ARCHITECTURES = {
    "llama": Architecture(has_permuted_heads=True),  # Mistral and SmolLM too
    "qwen2": Architecture(),
    "qwen3": Architecture(QWEN3_NAMES),
    "gemma2": Architecture(GEMMA_NAMES, GEMMA_KEYS, {"hidden_activation": "gelu_pytorch_tanh"}, norms_hold_one=True),
}


def is_gguf(path: str | Path) -> bool:
    """True for a file whose name ends in .gguf."""
    return Path(path).suffix.lower() == ".gguf" and not Path(path).is_dir()


def unpacked(file: str | Path) -> Path:
    """The folder in Hugging Face layout that a GGUF file becomes, made where it is not there yet.

    It lies in the cache (`MMGPT_CACHE`), under its name and a hash of the file's place, size and time.

    Raises:
        UserError: if the file is absent or damaged, its architecture or a kind of quantisation is not known, or the
            extra that reads it is not installed.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .gguf file")
    status = path.stat()
    stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = cache_folder() / "gguf" / f"{path.stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        reader = _open(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, lambda draft: _unpack(reader, path, draft))
    return folder


def _open(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(f'{path}: GGUF files need gguf and transformers; pip install "mmgpt[gguf]"') from None
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{path}: not a GGUF file, or damaged ({error}); take another copy") from None


def _unpack(reader: Any, path: Path, folder: Path) -> None:
    metadata = _Metadata(reader, path)
    name = metadata.architecture
    tensors = _Tensors(reader, path, name, metadata)
    config = metadata.config()
    config["vocab_size"] = tensors.shape("token_embd.weight")[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors.stored
    if ROPE_FACTORS in tensors.stored:
        config["rope_scaling"] = _rope_scaling(tensors.stored[ROPE_FACTORS], config, path)
    write_json(folder / "config.json", {**config, "torch_dtype": "float32"})
    _write_tokenizer(path, metadata, folder)
    save_weights(tensors, folder)


class _Metadata:
    """What the head of a file says."""

    def __init__(self, reader: Any, path: Path) -> None:
        self.path, self.fields = path, {name: field for name, field in reader.fields.items()}
        self.architecture = str(self.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            near = did_you_mean(self.architecture, ARCHITECTURES)
            raise UserError(f"{path}: its architecture {self.architecture!r} is not read; {near}")

    def get(self, name: str, default: Any = None) -> Any:
        """A value by its whole name."""
        return self.fields[name].contents() if name in self.fields else default

    def config(self) -> dict[str, Any]:
        """What transformers' config.json would hold."""
        kind, start = ARCHITECTURES[self.architecture], f"{self.architecture}."
        own = {name.removeprefix(start): self.get(name) for name in self.fields if name.startswith(start)}
        unknown = own.keys() - kind.keys.keys() - IGNORED_KEYS
        if unknown:
            key = min(unknown)
            raise UserError(f"{self.path}: {start}{key}={own[key]!r} is not known; take a file of a plainer model")
        scaling = own.get("rope.scaling.type", "none")
        if scaling not in ("none", "linear", "yarn"):
            raise UserError(f"{self.path}: {start}rope.scaling.type={scaling!r} is not known; known: linear, yarn")
        config = {"model_type": self.architecture, **kind.settings}
        config |= {theirs: own[ours] for ours, theirs in kind.keys.items() if ours in own}
        if "head_dim" not in config:
            config["head_dim"] = own.get("rope.dimension_count") or (
                config["hidden_size"] // config["num_attention_heads"]
            )
        if scaling != "none":
            config["rope_scaling"] = {"rope_type": scaling, "factor": own["rope.scaling.factor"]}
            if "rope.scaling.original_context_length" in own:
                config["rope_scaling"]["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
        return config


class _Tensors(Mapping[str, Tensor]):
    """A file's weights by transformers' names, each dequantised when it is asked for."""

    def __init__(self, reader: Any, path: Path, architecture: str, metadata: _Metadata) -> None:
        self.path, self.metadata = path, metadata
        self.kind = ARCHITECTURES[architecture]
        self.stored = {tensor.name: tensor for tensor in reader.tensors}
        rules = [
            Rule(f"{hf}.{end}", f"{own}.{end}") for hf, own in self.kind.names.items() for end in ("weight", "bias")
        ]
        named = {name: their_name(name, rules) for name in self.stored if name != ROPE_FACTORS}
        unknown = [name for name, outside in named.items() if outside is None]
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} unexpected weights: {first_of(unknown)}; is it a plain {architecture}?"
            )
        if "token_embd.weight" not in self.stored:
            raise UserError(f"{path}: holds no token_embd.weight; take a whole model, not a part of one")
        self.names = {str(outside): name for name, outside in named.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        own = self.names[name]
        weight = torch.from_numpy(np.array(_dequantised(self.stored[own], self.path), dtype=np.float32))
        weight = weight.reshape(self.shape(own))
        if self.kind.norms_hold_one and own.endswith("norm.weight"):
            weight = weight - 1
        if self.kind.has_permuted_heads and ".attn_q." in own:
            return _in_halves(weight, self._heads("attention.head_count"))
        if self.kind.has_permuted_heads and ".attn_k." in own:
            return _in_halves(weight, self._heads("attention.head_count_kv"))
        return weight

    def shape(self, own: str) -> tuple[int, ...]:
        """Of a tensor by GGUF's name, rows first."""
        return tuple(int(size) for size in self.stored[own].shape[::-1])

    def _heads(self, key: str) -> int:
        every = self.metadata.get(f"{self.metadata.architecture}.attention.head_count")
        return int(self.metadata.get(f"{self.metadata.architecture}.{key}", every))


def _dequantised(tensor: Any, path: Path) -> Any:
    import gguf

    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise UserError(
            f"{path}: {tensor.name} is quantised as {kind}, which gguf cannot read; take another file"
        ) from None


def _in_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key for rotations of neighbours as those for rotations of halves."""
    rows = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)


def _rope_scaling(tensor: Any, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of Llama 3's scaling whose factors a file stores; it does not store the settings.

    Raises:
        UserError: if they are none of Llama's.
    """
    stored = np.array(tensor.data, dtype=np.float64)
    for factor in LLAMA3_FACTORS:
        if np.allclose(stored, _llama3_factors(config, factor), rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    raise UserError(f"{path}: {ROPE_FACTORS} holds factors of no Llama 3; take the model's safetensors")


def _llama3_factors(config: Mapping[str, Any], factor: float) -> Any:
    """What each frequency is divided by, as transformers scales them (modeling_rope_utils)."""
    width, context = config["head_dim"], LLAMA3_ROPE["original_max_position_embeddings"]
    slow, fast = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    share = ((context / wavelengths - slow) / (fast - slow)).clip(0, 1)
    return 1 / ((1 - share) / factor + share)


def _write_tokenizer(path: Path, metadata: _Metadata, folder: Path) -> None:
    """tokenizer.json and chat_template.jinja, by transformers' reading of the file."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(f'{path}: GGUF files need gguf and transformers; pip install "mmgpt[gguf]"') from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        kind = metadata.get("tokenizer.ggml.model")
        raise UserError(f"{path}: its tokenizer, {kind!r}, is not read by transformers ({error})") from None
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["added_tokens"] = _added_tokens(described["added_tokens"], metadata)
    (folder / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    template = metadata.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _added_tokens(read: list[dict[str, Any]], metadata: _Metadata) -> list[dict[str, Any]]:
    """Those that stand in the file, its control tokens among them, without those that transformers brings along."""
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens")
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    known = {one["id"]: one for one in read if one["id"] < len(tokens)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number, kind in enumerate(kinds):
        if kind in (CONTROL, USER_DEFINED):
            own = {"id": number, "content": tokens[number], **plain}
            known[number] = {**known.get(number, own), "special": kind == CONTROL}
    return [known[number] for number in sorted(known)]

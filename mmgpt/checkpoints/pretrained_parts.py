"""Parts from outside checkpoints: what they fix is written into a recipe, and their weights into a fresh model.

New token rows begin as the mean of the rows there are (Hewitt 2021, "Initializing new word embeddings for pretrained
language models"), so that an untrained token is about as likely as any.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights
from mmgpt.checkpoints.hub import fetch
from mmgpt.config import Config, PretrainedConfig, UserError, build, did_you_mean
from mmgpt.encoders.registry import ENCODERS
from mmgpt.files import check_weights, read_json
from mmgpt.inputs.templates import read_template
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.config import ModelConfig
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.multimodal import MultimodalModel

# what a recipe may set otherwise than the checkpoint
UNCHECKED_FIELDS = {"context", "dropout", "max_patches", "crop", "crop_pct"}
ROWS_MULTIPLE = 64  # rows of an embedding that grew: what matrix products like


def folder_of(part: PretrainedConfig) -> Path:
    """The folder of the checkpoint that a part begins from."""
    assert part.pretrained is not None  # asked for such parts alone
    return fetch(part.pretrained, part.revision, part.pickles)


def fill_from_checkpoint(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A recipe's `model` with the fields that outside checkpoints fix filled in.

    Args:
        tree: the mapping as written.
        where: what an error begins with.
    Raises:
        UserError: if a checkpoint cannot be had or is of no known kind, or the recipe says otherwise than it.
    """
    filled = dict(tree)
    decoder = tree.get("decoder")
    if _begins_outside(decoder):
        place = f"{where}: model.decoder"
        filled["decoder"] = _fill(decoder, decoder_fields(_fetch(decoder, place)), DecoderConfig, place)
    encoders = tree.get("encoders")
    if isinstance(encoders, Mapping):
        filled["encoders"] = {
            modality: _fill_encoder(part, f"{where}: model.encoders.{modality}") if _begins_outside(part) else part
            for modality, part in encoders.items()
        }
    return filled


def chat_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`template` and `system` of a recipe whose decoder begins from a checkpoint that brings a chat template."""
    decoder = tree.get("decoder")
    if not _begins_outside(decoder):
        return {}
    name, system = read_template(_fetch(decoder, "model.decoder"))
    return {} if name == "plain" else {"template": name, "system": system}


def _begins_outside(part: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(part, Mapping) and bool(part.get("pretrained"))


def _fetch(part: Mapping[str, Any], where: str) -> Path:
    return folder_of(
        build(PretrainedConfig, {k: v for k, v in part.items() if k in PretrainedConfig.model_fields}, where)
    )


def _fill_encoder(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = str(part.get("kind"))
    readers = {name: one.fields for name, one in ENCODERS.items() if one.fields}
    if kind not in readers:
        raise UserError(f"{where}.kind={kind} does not begin from a checkpoint; {did_you_mean(kind, readers)}")
    fields, size = readers[kind](_fetch(part, where)), part.get("image_size")
    resized = ENCODERS[kind].resized
    if resized and isinstance(size, int) and size != fields["image_size"]:
        try:
            fields = resized(fields, size)
        except UserError as error:
            raise UserError(f"{where}.{error}") from None
    return _fill(part, fields, ENCODERS[kind].config, where)


def _fill(part: Mapping[str, Any], fields: Mapping[str, Any], cls: type[Config], where: str) -> dict[str, Any]:
    given = {cls.renamed.get(name, name) for name in part}
    for old, value in part.items():
        name = cls.renamed.get(old, old)
        if name in fields and name not in UNCHECKED_FIELDS and _plain(value) != _plain(fields[name]):
            raise UserError(
                f"{where}.{name}={value} disagrees with {part['pretrained']}, where it is {fields[name]}; leave it out"
            )
    return {**{name: value for name, value in fields.items() if name not in given}, **part}


def _plain(value: Any) -> Any:
    """As YAML gives it back: tuples as lists, configs as mappings."""
    return json.loads(json.dumps(value.model_dump(mode="json") if isinstance(value, Config) else value))


def tokenizer_of(config: ModelConfig) -> Tokenizer | None:
    """The tokenizer that the decoder's checkpoint brings; None where it begins from none.

    Raises:
        UserError: if it has more tokens than the embedding rows.
    """
    if not config.decoder.pretrained:
        return None
    folder = folder_of(config.decoder)
    tokenizer, rows = Tokenizer.load(folder), vocab_size_of(folder)
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows; "
            "take the tokenizer.json that belongs to the weights"
        )
    return tokenizer


def vocab_size_of(folder: Path) -> int:
    """Rows of the embedding of an outside language model."""
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if not isinstance(rows, int):
        raise UserError(f"{folder / 'config.json'}: has no vocab_size; take the one that belongs to the weights")
    return rows


def embedding_rows(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """Rows of a model's embedding: a checkpoint's own while they suffice, else the next multiple of 64."""
    if not config.decoder.pretrained:
        return len(tokenizer)
    rows = vocab_size_of(folder_of(config.decoder))
    return rows if len(tokenizer) <= rows else -(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE


@torch.no_grad()
def load_parts(model: MultimodalModel, new_tokens: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """Give a fresh model the weights of the checkpoints that its config names; nothing is changed if any is wrong.

    Args:
        model: with random weights.
        new_tokens: ids that the decoder's checkpoint does not know; their rows become the mean of the others.
    Returns:
        By part, where it begins (`from`) and its `parameters`.
    Raises:
        UserError: if weights are missing, unexpected, misshapen or damaged.
    """
    read: dict[str, dict[str, Tensor]] = {}
    decoder = model.config.decoder
    if decoder.pretrained:
        weights = decoder_weights(folder_of(decoder), decoder)
        for name in ("embedding.weight", "head.weight"):
            if name in weights:
                weights[name] = resize_embedding(weights[name], model.vocab_size, new_tokens)
        if decoder.tied:
            weights["head.weight"] = weights["embedding.weight"]
        read["decoder"] = weights
    for modality, encoder in model.config.encoders.items():
        reader = ENCODERS[encoder.kind].weights
        if reader and encoder.pretrained:
            read[f"encoders.{modality}"] = reader(folder_of(encoder), encoder)
    sources = {part: _source_of(model.config, part) for part in read}
    for part, weights in read.items():
        check_weights(model.get_submodule(part).state_dict(), weights, sources[part], "take another checkpoint")
    for part, weights in read.items():
        model.get_submodule(part).load_state_dict(weights)
    return {
        part: {"from": sources[part], "parameters": sum(p.numel() for p in model.get_submodule(part).parameters())}
        for part in read
    }


def _source_of(config: ModelConfig, part: str) -> str:
    own = config.decoder if part == "decoder" else config.encoders[part.removeprefix("encoders.")]
    return f"{own.pretrained}{f'@{own.revision}' if own.revision else ''}"


def resize_embedding(weight_VD: Tensor, rows: int, new_tokens: Sequence[int]) -> Tensor:
    """An embedding or output layer with `rows` rows; new tokens' and added rows are the mean of the others."""
    is_new = torch.zeros(rows, dtype=torch.bool)
    is_new[len(weight_VD) :] = True
    is_new[list(new_tokens)] = True
    if not is_new.any():
        return weight_VD
    larger_VD = weight_VD.new_empty(rows, weight_VD.shape[1])
    larger_VD[: len(weight_VD)] = weight_VD
    larger_VD[is_new] = weight_VD[~is_new[: len(weight_VD)]].float().mean(dim=0).to(weight_VD.dtype)
    return larger_VD

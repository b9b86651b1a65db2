"""Vectors of prompts: pictures, sounds, videos, texts and mixtures as points whose products say how alike they are.

Shape letters: N prompts, B rows of a batch, T tokens, D width, P pieces of media, F features.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmgpt.config import UserError, did_you_mean
from mmgpt.datasets.sample import Message, Part
from mmgpt.generation.prompts import parse_prompt
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.bundle import ModelBundle

Pooling = Literal["encoder", "decoder", "last"]
Prompt = Part | str | Sequence[Part | str]  # of one vector


@torch.inference_mode()
def embed(bundle: ModelBundle, prompts: Sequence[Prompt], pool: Pooling = "decoder", *, batch_size: int = 32) -> Tensor:
    """A vector of length 1 for each prompt: float32 (N, D) on the CPU, the same alone and in any batch.

    Args:
        bundle: a model; its encoders and decoder are used as they are, without a head.
        prompts: texts, media, or lists of both, read without a chat template.
        pool: `encoder`: the mean of the encoder's features of a prompt's media, which must be of one modality; its
            texts do not count. `decoder`: the mean of the decoder's last states over all tokens but those that the
            tokenizer begins every text with. `last`: the state of the last token.
        batch_size: prompts at a time.
    Raises:
        UserError: if there is no prompt, one is empty, over the context, or has no media of one modality for `encoder`;
            MediaError: if a medium cannot be used.
    """
    if pool not in get_args(Pooling):
        raise UserError(f"pool={pool} is not known; {did_you_mean(str(pool), get_args(Pooling))}")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise UserError("embed takes a list of prompts, at least one; write [prompt]")
    bundle.model.eval()
    found: list[Tensor] = []
    for at in range(0, len(prompts), batch_size):
        rendered = [_render(bundle, one, f"prompt {at + i}") for i, one in enumerate(prompts[at : at + batch_size])]
        if pool == "encoder":
            found += _of_encoder(bundle, rendered)
        else:
            found.append(_of_decoder(bundle, rendered, pool))
    widths = {vectors.shape[1] for vectors in found}
    if len(widths) > 1:
        raise UserError(
            f"the encoders' features are {sorted(widths)} wide; embed one modality at a time, or pool=decoder"
        )
    return F.normalize(torch.cat(found).float(), dim=-1).cpu()


def _render(bundle: ModelBundle, prompt: Prompt, key: str) -> Rendered:
    parts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Sequence) else prompt
    (message,) = parse_prompt([Message.of("user", *parts)], bundle.limits)
    return bundle.renderer.parts(message.parts, key)


def _of_decoder(bundle: ModelBundle, rendered: Sequence[Rendered], pool: Pooling) -> Tensor:
    batch = collate(rendered).to(bundle.model.device)
    states_BTD = bundle.model.hidden(batch).float()
    lengths_B = torch.tensor([len(one.ids) for one in rendered], device=states_BTD.device)
    if pool == "last":
        return states_BTD[torch.arange(len(rendered), device=states_BTD.device), lengths_B - 1]
    begun = len(bundle.tokenizer.begin)  # the states of the first tokens are out of proportion in many models
    places_T = torch.arange(states_BTD.shape[1], device=states_BTD.device)
    counts_BT = (places_T >= begun) & (places_T < lengths_B[:, None])
    return (states_BTD * counts_BT[..., None]).sum(dim=1) / counts_BT.sum(dim=1, keepdim=True)


def _of_encoder(bundle: ModelBundle, rendered: Sequence[Rendered]) -> list[Tensor]:
    """A vector (1, D) for each prompt."""
    for one in rendered:
        held = sorted({medium.modality for medium in one.media})
        if len(held) != 1:
            raise UserError(
                f"{one.key}: holds {' and '.join(held) or 'no media'}; pool=encoder takes media of one modality, so "
                "give it such, or pool=decoder"
            )
    vectors: dict[str, Tensor] = {}
    for modality, media in collate(rendered).to(bundle.model.device).media.items():
        features_PFD, grids = bundle.model.encode(modality, media)
        counted = zip(features_PFD, grids, strict=True)
        sums = iter([features_FD[: math.prod(grid)].float().sum(dim=0) for features_FD, grid in counted])
        owners = [one.key for one in rendered for medium in one.media if medium.modality == modality]
        for owner, size in zip(owners, media.sizes(), strict=True):
            for _ in bundle.model.config.encoders[modality].grids_of(size):
                vectors[owner] = vectors[owner] + next(sums) if owner in vectors else next(sums)
    return [vectors[one.key][None] for one in rendered]  # a mean, but for its length

"""Retrieval: how often the right text of a source is among the k nearest to a medium.

Shape letters: M media, K distinct texts, W width of the space that they share.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.datasets.sample import Sample
from mmgpt.datasets.source import Source
from mmgpt.evaluation.metrics import recall_at_k
from mmgpt.inputs.batch import collate
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.bundle import ModelBundle


@torch.inference_mode()
def retrieval_recall(
    bundle: ModelBundle, source: Source, *, modality: str = "image", k: Sequence[int] = (1, 5), batch_size: int = 64
) -> dict[str, float]:
    """Recall of each medium's text among all distinct texts of a source, by a contrastive head.

    Args:
        bundle: a model with a contrastive head for the modality.
        source: samples that each give a pair: one medium, one reply in words.
        modality: of the media.
        k: how many texts may be looked at.
        batch_size: media, and texts, at a time; the recall does not depend on it.
    Returns:
        `{"recall@1": ..., "recall@5": ..., "media": M, "texts": K}`.
    Raises:
        UserError: if the model has no such head, a sample gives no pair, or a `k` is below 1.
    """
    if min(k) < 1:
        raise UserError(f"k={min(k)} looks at no text; give 1 or more")
    model, renderer = bundle.model.eval(), bundle.renderer
    model.head(modality, "contrastive")
    embedded: list[Tensor] = []
    texts: list[Any] = []
    for at in range(0, len(source), batch_size):
        indexes = range(at, min(at + batch_size, len(source)))
        rendered = [_pair(renderer, one, modality) for index in indexes for one in source[index].unbranched()]
        media = collate(rendered).to(model.device).media[modality]
        embedded.append(model.embed_media(modality, media))
        texts += media.texts
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = [text.ids for text in distinct]
    groups = [ids[at : at + batch_size] for at in range(0, len(ids), batch_size)]
    texts_KW = torch.cat([model.embed_texts(modality, group) for group in groups])
    scores_MK = torch.cat(embedded) @ texts_KW.T
    wanted_M = torch.tensor([distinct[text] for text in texts], device=scores_MK.device)
    matches_MK = torch.nn.functional.one_hot(wanted_M, len(distinct)).bool()
    recalls = {f"recall@{number}": recall_at_k(scores_MK, matches_MK, number) for number in k}
    return recalls | {"media": len(texts), "texts": len(distinct)}


def _pair(renderer: Renderer, sample: Sample, modality: str) -> Rendered:
    rendered = renderer.render(sample, "contrastive")
    if not any(medium.modality == modality and medium.text for medium in rendered.media):
        raise UserError(f"{sample.key}: gives no pair of {modality} and text; name the modality of the source's media")
    return rendered

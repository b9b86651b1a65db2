"""Tokens of a rendered sample hidden from the model: for it to guess, or for it to have to look."""

import random
from dataclasses import replace

from mmgpt.inputs.rendered import IGNORED, Rendered


def words_dropped(rendered: Rendered, share: float, mask: int, rng: random.Random) -> Rendered:
    """Hide words of a reply from those after, which then have to look (Bowman et al. 2016, arXiv:1511.06349)."""
    ids = list(rendered.ids)
    for at, label in enumerate(rendered.labels):
        if label != IGNORED and rng.random() < share:
            ids[at] = mask
    return replace(rendered, ids=ids)


def masked(rendered: Rendered, mask: int, rng: random.Random) -> Rendered:
    """Hide 15 % of the text tokens: 80 % as the mask token, 10 % as another, 10 % unchanged (arXiv:1810.04805)."""
    texts = [at for at, label in enumerate(rendered.labels) if label != IGNORED]
    hidden = sorted(rng.sample(texts, max(1, round(0.15 * len(texts)))))
    ids, labels = list(rendered.ids), [IGNORED] * len(rendered.ids)
    for at in hidden:
        labels[at] = ids[at]
        fate = rng.random()
        if fate < 0.8:
            ids[at] = mask
        elif fate < 0.9:
            ids[at] = ids[rng.choice(texts)]
    return replace(rendered, ids=ids, labels=labels)

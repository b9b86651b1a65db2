"""What a stage's objective makes of a rendered sample: hidden tokens to guess, or pairs of a medium and its text."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from mmgpt.config import UserError
from mmgpt.datasets.sample import Sample, Text
from mmgpt.inputs.rendered import (
    IGNORED,
    MediaProcessor,
    Objective,
    Rendered,
    TargetText,
)


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


def rows_of(sample: Sample, objective: Objective) -> list[Sample]:
    """What is rendered of a sample: branches together where a stage learns to respond, else apart."""
    return [sample] if objective == "respond" else sample.unbranched()


def is_document(sample: Sample) -> bool:
    """True for one assistant message alone: text for language-model pretraining."""
    is_alone = not sample.branches and len(sample.messages) == 1
    return is_alone and sample.messages[0].role == "assistant" and not sample.messages[0].calls


def only_reply(sample: Sample) -> str:
    """The words of a sample's only reply; empty where there are several, or it is not learned or not all in words."""
    replies = [turn for turn in sample.turns if turn.role == "assistant"]
    if len(replies) != 1 or not replies[0].is_learned or replies[0].calls:
        return ""
    return replies[0].text if all(isinstance(part, Text) for part in replies[0].parts) else ""


def paired(rendered: Rendered, pair: TargetText) -> Rendered:
    """Give a reply to each medium that is the only one of its modality."""
    counts = Counter(medium.modality for medium in rendered.media)
    media = [replace(one, text=pair) if counts[one.modality] == 1 else one for one in rendered.media]
    return replace(rendered, media=media)


def only_pairs(rendered: Rendered, objective: Objective, processors: Mapping[str, MediaProcessor]) -> Rendered:
    """Drop all targets, for a head learns from the pairs of a medium and its text.

    Raises:
        UserError: if there is no pair that it can learn from; TooLong: if a transcript does not fit its clip.
    """
    modalities = [modality for modality, one in processors.items() if objective in one.heads]
    pairs = [medium for medium in rendered.media if medium.text and medium.modality in modalities]
    if not pairs:
        counts = Counter(medium.modality for medium in rendered.media)
        held = ", ".join(f"{count} {modality}" for modality, count in counts.items()) or "no media"
        raise UserError(
            f"gives {objective} no pair, which is exactly one medium ({' or '.join(modalities)}) and exactly one "
            f"assistant turn, in words; it holds {held}; leave it out of this stage's data"
        )
    for one in pairs:
        processor = processors[one.modality]
        fault = one.text and processor.pair_error(objective, one.text.text, tuple(one.values.shape))
        if fault:
            raise fault
    return replace(rendered, labels=[IGNORED] * len(rendered.labels))

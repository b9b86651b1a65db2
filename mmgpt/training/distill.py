"""A stage that learns from another model's probabilities beside the labels (Hinton et al. 2015, arXiv:1503.02531).

The teacher reads the same batches as the student: the same ids, and media as the student's encoders prepare them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from mmgpt.checkpoints.save_load import load_bundle
from mmgpt.config import Config, UserError
from mmgpt.datasets.media import Audio, Image, MediaError
from mmgpt.inputs.batch import Batch
from mmgpt.inputs.rendered import MediaProcessor
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import ModelBundle
from mmgpt.model.loss import TeacherTargets
from mmgpt.model.multimodal import MultimodalModel


class DistillConfig(Config):
    """How much a teacher counts."""

    weight: float = Field(default=0.5, ge=0, le=1)  # of the teacher's part; the labels have the rest
    temperature: PositiveFloat = 2.0  # divides both models' logits, so that unlikely tokens teach too


@dataclass(frozen=True)
class Teacher:
    """A frozen model to learn from; `num_tokens` of its rows are tokens."""

    model: MultimodalModel
    config: DistillConfig
    num_tokens: int

    @torch.no_grad()
    def targets(self, batch: Batch) -> TeacherTargets | None:
        """What it makes of a batch's targets; None where there are none."""
        if not batch.num_targets:
            return None
        decoder = self.model.decoder
        states_ND = self.model.target_states(batch)
        softcap, config = decoder.config.logit_softcap, self.config
        return TeacherTargets(
            states_ND, decoder.head.weight, softcap, self.num_tokens, config.weight, config.temperature
        )


def open_teachers(
    teachers: Mapping[str, tuple[str, DistillConfig]], student: ModelBundle, device: str | torch.device = "cpu"
) -> dict[str, Teacher]:
    """The teachers of stages by the stages' names; a model that teaches in several is loaded once.

    Args:
        teachers: the path of each stage's teacher, and how much that counts; one that counts nothing is left out.
        student: who learns.
        device: of the teachers' weights.
    Raises:
        UserError: if there is no such model, or it reads other ids or media than the student; says how they differ.
    """
    loaded: dict[str, ModelBundle] = {}
    for path in dict.fromkeys(path for path, config in teachers.values() if config.weight):
        loaded[path] = load_bundle(path, device)
        loaded[path].model.requires_grad_(False)
        _check_suits(path, loaded[path], student)
    return {
        stage: Teacher(loaded[path].model, config, len(loaded[path].tokenizer))
        for stage, (path, config) in teachers.items()
        if path in loaded and config.weight
    }


def _check_suits(path: str, bundle: ModelBundle, student: ModelBundle) -> None:
    _check_tokens(path, bundle.tokenizer, student.tokenizer)
    ours, theirs = student.model.config, bundle.model.config
    for name in ("template", "system", "media_markup"):
        own, other = getattr(student, name), getattr(bundle, name)
        if own != other:
            raise UserError(
                f"teacher {path}: its {name} is {other!r}, the student's {own!r}; give the recipe the teacher's"
            )
    if theirs.decoder.context < ours.decoder.context:
        raise UserError(
            f"teacher {path}: reads {theirs.decoder.context} tokens, the student {ours.decoder.context}; "
            "set model.decoder.context to the teacher's, or to less"
        )
    processors = theirs.media_processors()
    for modality, processor in ours.media_processors().items():
        if modality not in processors:
            raise UserError(f"teacher {path}: has no encoder for {modality}, the student has; take a teacher with one")
        _check_media(path, modality, processor, processors[modality])


def _check_tokens(path: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    there, here = ({place: token for token, place in one.core.get_vocab().items()} for one in (theirs, ours))
    if there == here:
        return
    first = next(place for place in range(max(len(there), len(here))) if there.get(place) != here.get(place))
    raise UserError(
        f"teacher {path}: its tokenizer has {len(there)} tokens, the student's {len(here)}; token {first} is "
        f"{there.get(first)!r} there, {here.get(first)!r} here; give the recipe tokenizer: {{path: {path}}}"
    )


def _check_media(path: str, modality: str, ours: MediaProcessor, theirs: MediaProcessor) -> None:
    """Compare what becomes of a small and a large medium: encoders may differ in all else, such as their width."""
    for medium in _probes(modality):
        here, there = _prepared(ours, medium), _prepared(theirs, medium)
        if here is None and there is None:
            continue
        if here is None or there is None or not torch.equal(here, there):
            shown = ["nothing" if one is None else tuple(one.shape) for one in (there, here)]
            raise UserError(
                f"teacher {path}: prepares {modality} otherwise than the student ({shown[0]} and {shown[1]}); "
                "give both encoders the same sizes and settings"
            )
        counts = [one.num_tokens(tuple(here.shape)) for one in (theirs, ours)]
        if counts[0] != counts[1]:
            raise UserError(
                f"teacher {path}: takes {counts[0]} tokens for {modality}, the student {counts[1]}; "
                "give both adapters the same stride"
            )


def _prepared(processor: MediaProcessor, medium: Image | Audio) -> Tensor | None:
    """The tensor of a medium; None where it is refused, as too long a sound is."""
    try:
        return processor.preprocess(medium, None)
    except MediaError:
        return None


def _probes(modality: str) -> list[Image | Audio]:
    if modality == "image":
        pixels_HWC = (np.arange(700 * 500 * 3, dtype=np.uint32).reshape(500, 700, 3) % 251).astype(np.uint8)
        return [Image(PIL.Image.fromarray(pixels)) for pixels in (pixels_HWC[:16, :16], pixels_HWC)]
    seconds_S = np.arange(40 * 8000, dtype=np.float32) / 8000
    samples_S = 0.5 * np.sin(2 * np.pi * 200 * seconds_S)
    return [Audio(samples, rate=8000) for samples in (samples_S[:2000], samples_S)]

"""Sounds and pictures are augmented where a model trains on them, by the draw, and nowhere else."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from mmgpt.datasets.media import Audio
from mmgpt.datasets.mixture import MixtureSampler
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.dataloader import StepDataset, iterate_steps
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS

LOUD = {"speed": 0.1, "noise_snr": [10, 30]}
CLIP = Audio(np.sin(np.arange(8000) / 3).astype(np.float32), rate=8000)
ASKED = (Message.of("user", CLIP, "What is this?"),)
TALK = Sample((*ASKED, Message.of("assistant", "A tone.")), key="k")


@pytest.fixture(scope="module")
def make_renderer(make_bundle) -> Callable[..., Renderer]:
    return lambda **conformer: make_bundle(audio={"kind": "mlp", "stride": 2}, conformer=conformer).renderer


@pytest.fixture(scope="module")
def renderer(make_renderer) -> Renderer:
    return make_renderer(**LOUD)


def heard(rendered: Rendered) -> Tensor:
    (medium,) = rendered.media
    return medium.values


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def test_a_sample_and_its_draw_give_the_tensor_and_another_draw_another(renderer):
    assert same(heard(renderer.render(TALK, sample_number=5)), heard(renderer.render(TALK, sample_number=5)))
    shown = [heard(renderer.render(TALK, sample_number=draw)) for draw in range(8)]
    assert not any(same(one, other) for at, one in enumerate(shown) for other in shown[:at])
    assert len({values.shape for values in shown}) > 1


def test_a_sample_holds_as_many_tokens_as_the_sound_that_was_made(renderer):
    slot = renderer.tokenizer.special(PLACEHOLDER_TOKENS["audio"])
    for draw in range(8):
        rendered = renderer.render(TALK, sample_number=draw)
        expected = renderer.processors["audio"].num_tokens(tuple(heard(rendered).shape))
        assert rendered.ids.count(slot) == rendered.media[0].num_tokens == expected


def test_prompts_choices_and_samples_without_a_draw_are_never_augmented(renderer, make_renderer):
    plain = heard(make_renderer().prompt(ASKED))
    for rendered in (renderer.prompt(ASKED), renderer.choices(ASKED, ["yes", "no"])[0], renderer.render(TALK)):
        assert same(heard(rendered), plain)


def test_without_augmentation_a_draw_changes_nothing_of_a_sound(make_renderer):
    renderer = make_renderer()
    assert same(heard(renderer.render(TALK, sample_number=1)), heard(renderer.prompt(ASKED)))


@pytest.mark.parametrize("start", [0, 2])
def test_augmented_batches_are_equal_for_any_workers_and_from_any_step_on(start, renderer, open_world):
    options = {"objective": "respond", "batch_size": 3, "micro_batch_tokens": 600}
    source = open_world("sounds", size=20)
    order = MixtureSampler([20], [1.0], 5)
    steps = list(islice(iterate_steps(StepDataset([source], order, renderer, **options), 0), 4))
    for workers in (0, 2):
        later = iterate_steps(StepDataset([source], order, renderer, start=start, **options), workers)
        for expected, step in zip(steps[start:], later, strict=False):
            assert expected.batches
            for one, other in zip(expected.batches, step.batches, strict=True):
                assert torch.equal(one.ids, other.ids)
                assert same(one.media["audio"].values, other.media["audio"].values)


LIVELY = [{"name": "RandomResizedCrop", "scale": [0.3, 0.6]}, {"name": "ColorJitter", "brightness": 0.5}]


def test_pictures_are_augmented_by_the_draw_in_any_number_of_workers_and_from_any_step_on(make_bundle, open_world):
    sees, plain = make_bundle(image={"augment": LIVELY}).renderer, make_bundle().renderer
    options = {"objective": "respond", "batch_size": 3, "micro_batch_tokens": 600}
    order = MixtureSampler([20], [1.0], 5)
    source = open_world("scenes", size=20)
    sample = source[0]
    assert not same(
        sees.render(sample, sample_number=1).media[0].values, sees.render(sample, sample_number=2).media[0].values
    )
    assert same(sees.render(sample).media[0].values, plain.render(sample).media[0].values)
    rendered = sees.render(sample, sample_number=1)
    assert rendered.ids == plain.render(sample, sample_number=1).ids
    steps = list(islice(iterate_steps(StepDataset([source], order, sees, **options), 0), 4))
    for workers, start in ((0, 2), (2, 0), (2, 2)):
        later = iterate_steps(StepDataset([source], order, sees, start=start, **options), workers)
        for expected, step in zip(steps[start:], later, strict=False):
            assert expected.batches
            for one, other in zip(expected.batches, step.batches, strict=True):
                assert torch.equal(one.ids, other.ids)
                assert same(one.media["image"].values, other.media["image"].values)

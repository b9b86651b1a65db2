import random

import numpy as np
import pytest
import torch

from mmgpt.config import UserError, build
from mmgpt.encoders.augment import add_noise, change_speed
from mmgpt.encoders.conformer import ConformerConfig
from mmgpt.encoders.mel import log_mel

RATE = 8000
LOUD = {"rate": RATE, "mels": 16, "width": 16, "heads": 2, "speed": 0.1, "noise_snr": [10, 30]}


def tone(hertz: float = 440.0, seconds: float = 2.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


def pitch(samples: torch.Tensor) -> float:
    return torch.fft.rfft(samples * torch.hann_window(len(samples))).abs().argmax().item() * RATE / len(samples)


@pytest.mark.parametrize("snr", [-5.0, 10.0, 17.3, 30.0])
@pytest.mark.parametrize("samples", [tone(), 1e-3 * tone(), tone(seconds=0.01), torch.ones(1)])
def test_the_noise_lies_below_the_sound_by_the_decibels_asked_for(samples, snr):
    noise = (add_noise(samples.double(), snr, seed=3) - samples.double()).float()
    assert 10 * torch.log10(samples.square().mean() / noise.square().mean()) == pytest.approx(snr, abs=0.1)


def test_silence_stays_silent():
    assert not add_noise(torch.zeros(100), 10.0, seed=0).any()


@pytest.mark.parametrize("percent", [90, 97, 100, 110])
def test_another_speed_shortens_a_sound_and_raises_its_frequency_by_the_same_factor(percent):
    faster = change_speed(tone(), percent)
    assert len(faster) == pytest.approx(len(tone()) * 100 / percent, abs=1)
    assert pitch(faster) == pytest.approx(440 * percent / 100, abs=RATE / len(faster))
    assert faster.square().mean() == pytest.approx(0.5, rel=0.01)


def test_the_speeds_drawn_are_all_within_the_range_and_the_count_is_of_the_tensor_made():
    config = ConformerConfig(**{**LOUD, "noise_snr": None})
    sound = (tone().numpy(), RATE)
    lengths = {config.preprocess(sound, random.Random(seed)).shape[1] for seed in range(200)}
    assert (min(lengths), max(lengths)) == (1 + 200 * 10 // 11, 1 + 200 * 10 // 9)
    assert len(lengths) == 21


def test_a_clip_at_the_limit_is_never_slowed_over_it():
    config = ConformerConfig(**{**LOUD, "max_seconds": 2.05})
    lengths = {config.preprocess((tone().numpy(), RATE), random.Random(seed)).shape[1] for seed in range(60)}
    assert max(lengths) == 205  # 98 % of its speed
    assert max(lengths) <= config.max_shape[1]


def test_one_generator_one_tensor_and_none_leaves_the_sound_as_it_is():
    config, sound = ConformerConfig(**LOUD), (tone().numpy(), RATE)
    first, again, other = (config.preprocess(sound, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    plain = log_mel(tone(), rate=RATE, target_rate=RATE, bands=16)
    assert torch.equal(config.preprocess(sound), plain)
    quiet = ConformerConfig(**{**LOUD, "speed": 0, "noise_snr": None})
    assert torch.equal(quiet.preprocess(sound, random.Random(1)), plain)


@pytest.mark.parametrize("samples", [np.zeros(1), np.ones(1), np.zeros(500), np.full(500, 0.3)])
def test_a_single_sample_and_silence_are_augmented_to_finite_features(samples):
    mel_FT = ConformerConfig(**LOUD).preprocess((samples.astype(np.float32), 44_100), random.Random(0))
    assert torch.isfinite(mel_FT).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"noise_snr": [30, 10]}, r"noise_snr=\[30.0, 10.0\]: the lowest ratio comes first"),
        ({"noise_snr": [10]}, "noise_snr"),
        ({"speed": 1}, "speed"),
        ({"speed": -0.1}, "speed"),
    ],
)
def test_ranges_that_are_none_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        build(ConformerConfig, {"kind": "conformer", **LOUD, **options}, "conformer")

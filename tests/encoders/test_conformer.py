import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRelPositionalEmbedding,
    Wav2Vec2ConformerSelfAttention,
)

from mmgpt.config import UserError, build
from mmgpt.encoders.audio_config import _small_terms
from mmgpt.encoders.conformer import ConformerConfig, ConformerEncoder, RelativeAttention, _sinusoids, mask_spectrogram
from mmgpt.encoders.mel import log_mel

TINY = {"mels": 10, "width": 16, "depth": 2, "heads": 2, "stem": 4, "kernel": 5}
SAME = {"atol": 1e-5, "rtol": 1e-5}


def shapes(*lengths: int) -> torch.Tensor:
    return torch.tensor([(TINY["mels"], length) for length in lengths])


def make(**options) -> ConformerEncoder:
    torch.manual_seed(0)
    encoder = ConformerEncoder(ConformerConfig(**{**TINY, **options})).eval()
    for parameter in encoder.parameters():  # biases, at zero in the beginning, would hide that padding enters
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize("bands", [40, 80])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_mel_front_end_gives_torchaudios_features(rate, bands):
    samples = torch.randn(rate)
    at_16k = torchaudio.functional.resample(samples, rate, 16000)
    theirs = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=400, hop_length=160, n_mels=bands, pad_mode="constant"
    )(at_16k)
    log = (theirs + 1e-6).log()
    expected = (log - log.mean()) / (log.std(correction=0) + 1e-3)
    torch.testing.assert_close(log_mel(samples, rate=rate, target_rate=16000, bands=bands), expected, **SAME)


RATES = [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000]


@given(rate=st.integers(1, 2**31 - 1) | st.integers(7000, 50_000), target_rate=st.sampled_from(RATES))
def test_the_rates_in_use_are_met_exactly_and_any_other_to_half_a_thousandth_by_small_filters(rate, target_rate):
    for usual in RATES:
        before, after = _small_terms(usual, target_rate)
        assert before * target_rate == after * usual
    before, after = _small_terms(rate, target_rate)
    assert before / after == pytest.approx(rate / target_rate, rel=5e-4)
    assert before * after <= 1.1 * max(10**6, rate / target_rate)


@given(
    num_samples=st.integers(1, 40_000),
    subsampling=st.sampled_from([2, 4, 8]),
    rate=st.sampled_from([8000, 16000, 22050]),
)
@settings(max_examples=30)
def test_the_formula_counts_the_features_of_a_clip_of_any_length(num_samples, subsampling, rate):
    config = ConformerConfig(**{**TINY, "subsampling": subsampling})
    mel_FT = config.preprocess((np.random.default_rng(0).normal(size=num_samples).astype(np.float32), rate))
    features = make(subsampling=subsampling)(mel_FT[None], shapes(mel_FT.shape[1]))
    assert features.shape == (1, config.num_tokens(tuple(mel_FT.shape)), 16)
    assert config.num_tokens(config.max_shape) == math.ceil(3001 / subsampling)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("samples", [np.zeros(1), np.zeros(16000), np.ones(5), np.full(16000, 0.3)])
def test_silence_and_a_single_sample_give_finite_features(samples):
    mel_FT = ConformerConfig(**TINY).preprocess((samples.astype(np.float32), 16000))
    assert torch.isfinite(mel_FT).all()


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    padding=st.integers(0, 9),
    subsampling=st.sampled_from([2, 4, 8]),
    window=st.sampled_from([None, 2]),
)
@settings(max_examples=40)
def test_a_clip_has_the_same_features_alone_and_in_any_batch_at_any_padding(lengths, padding, subsampling, window):
    encoder = make(subsampling=subsampling, window=window)
    clips = [torch.randn(10, length) for length in lengths]
    batch = torch.full((len(clips), 10, max(lengths) + padding), 7.0)
    for row, clip in enumerate(clips):
        batch[row, :, : clip.shape[1]] = clip
    with torch.no_grad():
        together = encoder(batch, shapes(*lengths))
        for row, clip in enumerate(clips):
            alone = encoder(clip[None], shapes(clip.shape[1]))[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, **SAME)
            assert not together[row, len(alone) :].any()


@given(
    length=st.integers(1, 200),
    chunk=st.integers(1, 12),
    subsampling=st.sampled_from([2, 4]),
    switches=st.sampled_from([{}, {"causal": True, "distances": (3, 1)}, {"stem_kind": "separable"}]),
)
@settings(max_examples=30)
def test_a_long_clip_has_the_same_features_in_chunks(length, chunk, subsampling, switches):
    whole, chunked = (make(subsampling=subsampling, window=2, chunk=c, **switches) for c in (None, chunk))
    clips, sizes = torch.randn(2, 10, length), shapes(length, max(1, length // 2))
    with torch.no_grad():
        torch.testing.assert_close(chunked(clips, sizes), whole(clips, sizes), **SAME)


@given(
    frames=st.integers(1, 400),
    seconds=st.floats(0.01, 2),
    subsampling=st.sampled_from([2, 4, 8]),
    training=st.booleans(),
)
@settings(max_examples=30)
def test_pieces_are_as_few_as_their_longest_allows_and_their_features_add_up(frames, seconds, subsampling, training):
    encoder = make(subsampling=subsampling, piece_seconds=seconds).train(training)
    config = encoder.config
    piece, most = config.piece(frames), max(subsampling, math.floor(100 * seconds + 1e-3))
    cuts = [min(piece, frames - start) for start in range(0, frames, piece)]
    assert piece <= most
    assert len(cuts) == math.ceil(config.num_tokens((10, frames)) / (most // subsampling))
    assert sum(config.num_tokens((10, cut)) for cut in cuts) == config.num_tokens((10, frames))
    features = encoder(torch.randn(2, 10, frames), shapes(frames, 1))
    assert features.shape == (2, config.num_tokens((10, frames)), 16)
    assert not features[1, 1:].any()


def test_no_gradient_reaches_padded_frames():
    clips = torch.randn(3, 10, 30, requires_grad=True)
    lengths = (30, 17, 1)
    make()(clips, shapes(*lengths)).square().sum().backward()
    for row, length in enumerate(lengths):
        assert clips.grad[row, :, :length].abs().sum() > 0
        assert not clips.grad[row, :, length:].any()


def test_attention_gives_the_result_of_transformers_relative_attention():
    theirs_config = Wav2Vec2ConformerConfig(
        hidden_size=16, num_attention_heads=2, attention_dropout=0.0, position_embeddings_type="relative"
    )
    theirs = Wav2Vec2ConformerSelfAttention(theirs_config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = RelativeAttention(ConformerConfig(**TINY)).eval()
    names = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "out": "linear_out", "distance": "linear_pos"}
    for our, their in names.items():
        getattr(ours, our).load_state_dict(getattr(theirs, their).state_dict())
    ours.content_bias_HE.data, ours.distance_bias_HE.data = theirs.pos_bias_u.data, theirs.pos_bias_v.data
    x_MND = torch.randn(2, 9, 16)
    distances = Wav2Vec2ConformerRelPositionalEmbedding(theirs_config)(x_MND)
    expected = theirs(x_MND, relative_position_embeddings=distances)[0]
    attention_mask = torch.ones(2, 1, 9, dtype=torch.bool)
    torch.testing.assert_close(ours(x_MND, attention_mask, distances[0]), expected, **SAME)


def test_the_encoder_uses_the_distances_that_transformers_computes():
    config = Wav2Vec2ConformerConfig(hidden_size=16, num_attention_heads=2)
    x_MND = torch.randn(1, 9, 16)
    torch.testing.assert_close(
        _sinusoids(9, 16, x_MND), Wav2Vec2ConformerRelPositionalEmbedding(config)(x_MND)[0], **SAME
    )


def test_spectrogram_masks_hide_stretches_inside_the_clip_and_only_while_training():
    config = ConformerConfig(**TINY, time_masks=1, band_masks=1, time_mask=0.5, band_mask=0.5)
    mel, lengths = torch.ones(200, 10, 40), torch.full((200,), 20)
    masked = mask_spectrogram(mel, lengths, config)
    assert 0.5 < masked[:, :, :20].mean() < 0.65  # (1 - 1/4)^2
    assert masked[:, :, 20:].amax(dim=1).all()
    encoder = make(time_masks=2, band_masks=2, time_mask=0.9)
    clip, length = torch.randn(1, 10, 40), torch.tensor([40])
    assert torch.equal(encoder(clip, shapes(40)), encoder(clip, shapes(40)))
    encoder.train()
    assert not torch.equal(encoder(clip, shapes(40)), encoder(clip, shapes(40)))
    assert mask_spectrogram(clip, length, ConformerConfig(**TINY)) is clip


def test_a_clip_over_the_limit_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"31.00 s of sound, over the encoder's limit of 30 s; cut it, or raise"):
        ConformerConfig(**TINY).preprocess((np.zeros(31 * 8000, np.float32), 8000))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"heads": 3}, "heads=3 does not divide width=16"),
        ({"kernel": 4}, "kernel=4 is even"),
        ({"chunk": 8}, "chunk=8 needs a window"),
        ({"mells": 40}, "did you mean mels"),
        ({"subsampling": 3}, "subsampling"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        build(ConformerConfig, {"kind": "conformer", **TINY, **options}, "conformer")

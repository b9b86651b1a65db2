import json

import pytest
import torch
from conformers import read
from safetensors.torch import load_file, save_file
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
)

from mmgpt.config import UserError, build
from mmgpt.encoders.conformer import ConformerConfig, ConformerEncoder
from mmgpt.encoders.pretrained.conformers import conformer_fields

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "subsampling_conv_channels": 8,
    "conv_kernel_size": 5,
}


@pytest.fixture
def saved(tmp_path, randomise):
    def save(**options) -> ParakeetEncoder:
        model = randomise(ParakeetEncoder(ParakeetEncoderConfig(**{**SIZES, **options})))
        model.save_pretrained(tmp_path)
        ParakeetFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(tmp_path)
        return model

    return save


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale_input": False, "attention_bias": False, "convolution_bias": False, "num_mel_bins": 128},
        {"subsampling_factor": 4, "subsampling_conv_channels": 6},
    ],
)
def test_the_features_are_those_of_transformers_alone_and_in_a_batch_whose_padding_is_garbage(tmp_path, options, saved):
    theirs = saved(**options)
    ours = read(tmp_path)
    lengths = torch.tensor([83, 41, 8, 1])
    batch = torch.randn(4, ours.config.mels, 90)
    with torch.no_grad():
        together = ours(batch, lengths[:, None])
        for row, length in enumerate(lengths.tolist()):
            clip = batch[row : row + 1, :, :length]
            expected = theirs(clip.mT, torch.ones(1, length, dtype=torch.long)).last_hidden_state
            assert expected.shape[1] == ours.config.num_tokens(clip.shape)
            torch.testing.assert_close(ours(clip, lengths[row : row + 1][:, None]), expected, **SAME)
            torch.testing.assert_close(together[row, : expected.shape[1]], expected[0], **SAME)
            assert not together[row, expected.shape[1] :].any()


@pytest.mark.parametrize("seconds", [0.011, 0.1, 0.737, 2.0])
@pytest.mark.parametrize("bands", [80, 128])
def test_the_front_end_gives_the_extractors_frames(tmp_path, seconds, bands, saved, sound):
    saved(num_mel_bins=bands)
    config = build(ConformerConfig, {"kind": "conformer", **conformer_fields(tmp_path)}, "encoder")
    extractor = ParakeetFeatureExtractor.from_pretrained(tmp_path)
    samples = sound(seconds)
    ours = config.preprocess((samples, 16_000))
    theirs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    frames = int(theirs["attention_mask"].sum())
    assert ours.shape == (bands, frames)
    if frames > 1:  # a single frame divides by its deviation over no others: the extractor's is no number
        torch.testing.assert_close(ours, theirs["input_features"][0, :frames].mT, atol=1e-5, rtol=0)
    assert torch.isfinite(ours).all()


def test_a_sound_shorter_than_a_frame_has_one(tmp_path, saved, sound):
    saved()
    config = build(ConformerConfig, {"kind": "conformer", **conformer_fields(tmp_path)}, "encoder")
    mel_FT = config.preprocess((sound(0.005), 16_000))
    assert mel_FT.shape == (80, 1)
    assert torch.isfinite(mel_FT).all()


def test_from_samples_to_features_the_whole_way_is_theirs(tmp_path, saved, sound):
    theirs = saved()
    ours = read(tmp_path)
    samples = sound(1.3)
    mel_FT = ours.config.preprocess((samples, 16_000))
    with torch.no_grad():
        expected = theirs(**ParakeetFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt"))
        features = ours(mel_FT[None], torch.tensor([mel_FT.shape[1]])[:, None])[0]
    real = int(expected.attention_mask.sum())
    assert len(features) == real
    torch.testing.assert_close(features, expected.last_hidden_state[0, :real], **SAME)


def test_the_encoder_of_a_ctc_model_is_read_and_its_head_is_left_out(tmp_path, randomise):
    config = ParakeetCTCConfig(vocab_size=11, pad_token_id=10, encoder_config=ParakeetEncoderConfig(**SIZES).to_dict())
    model = randomise(ParakeetForCTC(config))
    model.save_pretrained(tmp_path)
    extractor = json.loads(ParakeetFeatureExtractor().to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    clip = torch.randn(1, 80, 50)
    with torch.no_grad():
        expected = model.encoder(clip.mT, torch.ones(1, 50, dtype=torch.long)).last_hidden_state
        torch.testing.assert_close(read(tmp_path)(clip, torch.tensor([50])[:, None]), expected, **SAME)


def test_saved_and_loaded_by_its_own_names_it_gives_the_same_bits(tmp_path, saved):
    saved()
    ours, clip, length = read(tmp_path), torch.randn(1, 80, 50), torch.tensor([50])
    save_file(ours.state_dict(), tmp_path / "ours.safetensors")
    again = ConformerEncoder(build(ConformerConfig, ours.config.model_dump(mode="json"), "saved")).eval()
    again.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    assert torch.equal(again(clip, length[:, None]), ours(clip, length[:, None]))


def test_training_keeps_no_statistics_and_padding_never_reaches_a_clip(tmp_path, saved):
    saved()
    ours = read(tmp_path).train()
    clip, other = torch.randn(1, 80, 40), torch.randn(1, 80, 40)
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    alone = ours(clip, torch.tensor([40])[:, None])
    together = ours(torch.cat([clip, 9 * other]), torch.tensor([40, 17])[:, None])
    torch.testing.assert_close(together[:1], alone, **SAME)
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items())


def test_bfloat16_stays_within_a_fiftieth(tmp_path, saved):
    saved()
    ours, clip, length = read(tmp_path), torch.randn(1, 80, 64), torch.tensor([64])
    with torch.no_grad():
        exact = ours(clip, length[:, None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = ours(clip, length[:, None])
    assert (rough - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"model_type": "parakeet_rnn"}, "parakeet_rnn is no conformer .* mean parakeet_rnnt"),
        ("config.json", {"model_type": "parakeet_ctc"}, "encoder_config is missing"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu' and 'swish'"),
        ("config.json", {"scale_input": None}, "config.json: scale_input is missing, and is not guessed"),
        ("config.json", {"num_mel_bins": 64}, "feature_size=80 is not supported, only 64"),
        ("config.json", {"num_hidden_layers": 0}, "num_hidden_layers=0 must be a whole number above zero"),
        ("preprocessor_config.json", {"n_fft": None}, "preprocessor_config.json: n_fft is missing"),
        ("preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"}, "only 'ParakeetFeature"),
    ],
)
def test_settings_that_are_missing_or_not_supported_are_refused_by_name(tmp_path, file, changes, told, saved, edit):
    saved()
    edit(tmp_path / file, changes)
    with pytest.raises(UserError, match=told):
        conformer_fields(tmp_path)


def test_a_checkpoint_without_its_preprocessor_is_refused(tmp_path, saved):
    saved()
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json: no such file"):
        conformer_fields(tmp_path)


@pytest.mark.parametrize(
    ("taken", "added", "told"),
    [
        ("layers.1.conv.norm.running_var", None, "layers.1.conv.norm.running_var is missing: a batch norm"),
        ("layers.0.norm_out.bias", None, "1 missing: blocks.0.norms.4.bias"),
        (None, "layers.0.self_attn.gate.weight", "1 unexpected weights: layers.0.self_attn.gate.weight"),
    ],
)
def test_weights_too_few_or_too_many_are_refused_by_name(tmp_path, taken, added, told, saved):
    saved()
    weights = load_file(tmp_path / "model.safetensors")
    if taken:
        del weights[taken]
    if added:
        weights[added] = torch.ones(2)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=told):
        read(tmp_path)

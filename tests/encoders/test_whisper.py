import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers import WhisperConfig as TheirConfig

from mmgpt.config import UserError, build
from mmgpt.encoders.pretrained.whisper import (
    whisper_config_dict,
    whisper_fields,
    whisper_preprocessor_dict,
    whisper_rules,
    whisper_weights,
)
from mmgpt.encoders.whisper import WhisperConfig, WhisperEncoder, log_mel_of
from mmgpt.files import check_weights, load_weights, write_json
from mmgpt.weight_names import to_theirs

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 16}
SECOND = {"max_source_positions": 50}  # windows of one second
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 20}
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}


@pytest.fixture
def saved(tmp_path, randomise):
    def save(cls=WhisperForConditionalGeneration, bands=16):
        if cls is Qwen2AudioEncoder:
            config = Qwen2AudioEncoderConfig(**{**SIZES, **SECOND, "num_mel_bins": bands})
        else:
            config = TheirConfig(**{**SIZES, **SECOND, **DECODER, **TOKENS, "num_mel_bins": bands})
        model = randomise(cls(config))
        model.save_pretrained(tmp_path)
        WhisperFeatureExtractor(feature_size=bands, chunk_length=1).save_pretrained(tmp_path)
        return model

    return save


def read(folder) -> WhisperEncoder:
    config = build(WhisperConfig, {"kind": "whisper", **whisper_fields(folder)}, "encoder")
    encoder = WhisperEncoder(config).eval()
    weights = whisper_weights(folder, config)
    check_weights(encoder.state_dict(), weights, str(folder), "take another")
    encoder.load_state_dict(weights)
    return encoder


def encode(encoder: WhisperEncoder, samples: np.ndarray) -> torch.Tensor:
    samples_S = encoder.config.preprocess((samples, 16_000))
    with torch.no_grad():
        return encoder(samples_S[None], torch.tensor([len(samples_S)])[:, None])[0]


@pytest.mark.parametrize("cls", [WhisperForConditionalGeneration, WhisperModel, Qwen2AudioEncoder])
def test_the_features_of_a_window_of_log_mels_are_those_of_transformers(tmp_path, saved, cls):
    theirs, ours = saved(cls), read(tmp_path)
    encoder = theirs if cls is Qwen2AudioEncoder else theirs.get_encoder()
    mel_PFT = torch.randn(2, 16, 100)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_windows(mel_PFT), encoder(mel_PFT).last_hidden_state, **SAME)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.001, 0.3, 0.9999, 1.0])
def test_the_front_end_gives_the_extractors_log_mels(seconds, bands, sound):
    samples = sound(seconds)
    extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=1)
    theirs = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    filled = torch.nn.functional.pad(torch.from_numpy(samples), (0, 16_000 - len(samples)))
    ours = log_mel_of(filled[None], WhisperConfig(mels=bands, positions=50))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("cls", "pool"), [(WhisperModel, 1), (Qwen2AudioEncoder, 2)])
@pytest.mark.parametrize("seconds", [0.0301, 0.4, 1.0])
def test_from_samples_to_features_the_whole_way_is_theirs_in_a_batch_too(tmp_path, saved, sound, cls, pool, seconds):
    theirs, ours = saved(cls, bands=80), read(tmp_path)
    encoder = theirs if pool == 2 else theirs.get_encoder()
    samples = sound(seconds)
    inputs = WhisperFeatureExtractor.from_pretrained(tmp_path)(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(inputs["input_features"]).last_hidden_state[0]
        padded = torch.full((2, 18_000), 3.0)
        padded[1, : len(samples)] = torch.from_numpy(samples)
        together = ours(padded, torch.tensor([18_000, len(samples)])[:, None])[1]
    count = ours.config.num_tokens((len(samples),))
    torch.testing.assert_close(encode(ours, samples), expected[:count], **SAME)
    torch.testing.assert_close(together[:count], expected[:count], **SAME)
    assert not together[count:].any()


def test_a_long_sound_has_the_features_of_its_windows_in_a_row(tmp_path, saved, sound):
    saved()
    ours, samples = read(tmp_path), sound(2.345)
    alone = [encode(ours, part) for part in (samples[:16_000], samples[16_000:32_000], samples[32_000:])]
    assert [len(features) for features in alone] == [50, 50, 18]
    torch.testing.assert_close(encode(ours, samples), torch.cat(alone), **SAME)


def test_no_gradient_reaches_the_padding(tmp_path, saved):
    saved()
    samples = torch.randn(2, 20_000, requires_grad=True)
    read(tmp_path)(samples, torch.tensor([20_000, 5_000])[:, None]).square().sum().backward()
    assert samples.grad[1, :5_000].any()
    assert not samples.grad[1, 5_000:].any()


def test_a_clip_counts_as_many_tokens_as_qwen2_audio_gives_it():
    config = WhisperConfig(pool=2)
    extractor = WhisperFeatureExtractor(feature_size=80)
    towers = Qwen2AudioEncoder._get_feat_extract_output_lengths
    for samples in (321, 480, 481, 640, 641, 16_000, 16_001, 123_457, 479_681, 479_999, 480_000):
        mask = np.zeros((1, extractor.n_samples), np.int32)
        mask[:, :samples] = 1
        frames = torch.tensor(mask[:, :: extractor.hop_length].sum(-1))  # as the extractor makes its attention mask
        assert config.num_tokens((samples,)) == int(towers(None, frames)[1])


def test_qwen2_audios_own_mask_is_the_one_that_the_count_was_held_against(sound):
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    config = WhisperConfig(pool=2, positions=50)
    for samples in (321, 5_000, 16_000):
        mask = extractor(sound(1.0)[:samples], sampling_rate=16_000, return_attention_mask=True)["attention_mask"]
        frames = torch.from_numpy(np.asarray(mask)).sum(-1)
        assert config.num_tokens((samples,)) == int(Qwen2AudioEncoder._get_feat_extract_output_lengths(None, frames)[1])


@pytest.mark.parametrize("pool", [1, 2])
def test_the_shortest_sound_has_one_feature(pool):
    config = WhisperConfig(pool=pool, positions=50, mels=16, width=8, heads=2, depth=1, inner=8)
    features = encode(WhisperEncoder(config), np.ones(1, np.float32))
    assert features.shape == (1, 8)
    assert torch.isfinite(features).all()


def test_there_and_back_every_weight_and_setting_is_the_same(tmp_path, saved):
    saved(Qwen2AudioEncoder)
    ours, theirs = read(tmp_path), load_weights(tmp_path)
    back = to_theirs(ours.state_dict(), whisper_rules(""))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    folder = tmp_path / "back"
    folder.mkdir()
    with pytest.raises(UserError, match=r"masked=False: Qwen2-Audio never attends to the silence .* masked=True"):
        whisper_config_dict(ours.config)
    masked = ours.config.model_copy(update={"masked": True})
    write_json(folder / "config.json", whisper_config_dict(masked))
    write_json(folder / "preprocessor_config.json", whisper_preprocessor_dict(ours.config))
    assert whisper_fields(folder) == whisper_fields(tmp_path)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    assert extractor.n_samples == ours.config.window
    samples, lengths = torch.randn(1, 7_000), torch.tensor([7_000])
    save_file({name: weight.clone() for name, weight in ours.state_dict().items()}, folder / "ours.safetensors")
    again = WhisperEncoder(ours.config).eval()
    again.load_state_dict(load_file(folder / "ours.safetensors"))
    assert torch.equal(again(samples, lengths[:, None]), ours(samples, lengths[:, None]))


def test_the_sound_tower_of_a_whole_qwen2_audio_is_read(tmp_path, randomise):
    audio = {"model_type": "qwen2_audio_encoder", **SIZES, **SECOND}
    text = {"model_type": "qwen2", "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    theirs = randomise(
        Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=3))
    )
    theirs.save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(tmp_path)
    mel_PFT = torch.randn(1, 16, 100)
    with torch.no_grad():
        expected = theirs.model.audio_tower(mel_PFT).last_hidden_state
        torch.testing.assert_close(read(tmp_path).encode_windows(mel_PFT), expected, **SAME)


def test_an_encoder_from_scratch_has_whispers_positions():
    theirs = WhisperModel(TheirConfig(**{**SIZES, **SECOND, **DECODER, **TOKENS})).encoder.embed_positions.weight
    ours = WhisperEncoder(WhisperConfig(positions=50, width=32, heads=4, depth=1, inner=8, mels=16))
    torch.testing.assert_close(ours.position_ND, theirs, **SAME)


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"model_type": "wisper"}, "model_type=wisper has no Whisper encoder; did you mean whisper"),
        ("config.json", {"activation_function": "relu"}, "activation_function='relu' is not supported, only 'gelu'"),
        ("config.json", {"encoder_ffn_dim": None}, "config.json: encoder_ffn_dim is missing"),
        ("config.json", {"max_source_positions": 60}, "chunk_length=1 s is not the window of 19200 samples"),
        ("config.json", {"model_type": "qwen2_audio"}, "audio_config is missing"),
        ("preprocessor_config.json", {"hop_length": None}, "preprocessor_config.json: hop_length is missing"),
        ("preprocessor_config.json", {"feature_size": 80}, "feature_size=80 is not supported, only 16"),
        ("preprocessor_config.json", {"dither": 0.1}, "dither=0.1 is not supported"),
    ],
)
def test_settings_that_are_missing_or_not_supported_are_refused_by_name(tmp_path, saved, edit, file, changes, told):
    saved()
    edit(tmp_path / file, changes)
    with pytest.raises(UserError, match=told):
        whisper_fields(tmp_path)


@pytest.mark.parametrize(
    ("taken", "added", "told"),
    [
        ("model.encoder.layers.0.fc1.bias", None, "1 missing: blocks.0.mlp.0.bias"),
        ("model.encoder.conv1.weight", None, "holds no conv1.weight"),
        (None, "model.encoder.layers.0.self_attn.k_proj.bias", "1 unexpected: blocks.0.key.bias"),
        (None, "model.encoder.cls", "1 unexpected weights: model.encoder.cls; is it of this family"),
    ],
)
def test_weights_too_few_or_too_many_are_refused_by_name(tmp_path, saved, taken, added, told):
    saved()
    weights = load_file(tmp_path / "model.safetensors")
    if taken:
        del weights[taken]
    if added:
        weights[added] = torch.ones(32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=told):
        read(tmp_path)


def test_what_transformers_cannot_say_is_not_exported():
    with pytest.raises(UserError, match="pool=1: Qwen2-Audio always averages"):
        whisper_config_dict(WhisperConfig())
    with pytest.raises(UserError, match=r"positions=60: a window of 1\.2 s"):
        whisper_preprocessor_dict(WhisperConfig(positions=60))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"heads": 5}, "heads=5 does not divide width=384"),
        ({"width": 3, "heads": 3}, "width=3 must be even"),
        ({"positions": 1, "hop": 100}, "fft=400 takes more than a window of 200 samples"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        build(WhisperConfig, {"kind": "whisper", **options}, "whisper")

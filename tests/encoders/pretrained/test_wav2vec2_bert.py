import pytest
import torch
from conformers import read
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertForCTC, Wav2Vec2BertModel

from mmgpt.config import UserError, build
from mmgpt.encoders.conformer import ConformerConfig
from mmgpt.encoders.pretrained.conformers import conformer_fields

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_depthwise_kernel_size": 7,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
}


@pytest.fixture
def saved(tmp_path, randomise):
    def save(cls=Wav2Vec2BertModel, **options):
        model = randomise(cls(Wav2Vec2BertConfig(**{**SIZES, **options})))
        model.save_pretrained(tmp_path)
        SeamlessM4TFeatureExtractor().save_pretrained(tmp_path)
        return model

    return save


def stacked(mel_MFT: torch.Tensor) -> torch.Tensor:
    return mel_MFT.mT.reshape(len(mel_MFT), mel_MFT.shape[2] // 2, -1)


def test_the_features_are_those_of_transformers_alone_and_in_a_batch_whose_padding_is_garbage(tmp_path, saved):
    theirs, ours = saved(), read(tmp_path)
    lengths = torch.tensor([60, 26, 2])
    batch = torch.randn(3, 80, 67)
    with torch.no_grad():
        together = ours(batch, lengths[:, None])
        for row, length in enumerate(lengths.tolist()):
            clip = batch[row : row + 1, :, :length]
            expected = theirs(stacked(clip)).last_hidden_state
            assert expected.shape[1] == ours.config.num_tokens(clip.shape)
            torch.testing.assert_close(ours(clip, lengths[row : row + 1][:, None]), expected, **SAME)
            torch.testing.assert_close(together[row, : expected.shape[1]], expected[0], **SAME)
            assert not together[row, expected.shape[1] :].any()


@pytest.mark.parametrize("seconds", [0.035, 0.1, 0.737, 2.0])
def test_the_front_end_gives_the_extractors_frames(tmp_path, seconds, saved, sound):
    saved()
    config = build(ConformerConfig, {"kind": "conformer", **conformer_fields(tmp_path)}, "encoder")
    samples = sound(seconds)
    ours = config.preprocess((samples, 16_000))
    theirs = SeamlessM4TFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")
    real = int(theirs["attention_mask"].sum())
    assert config.num_tokens(ours.shape) == real
    torch.testing.assert_close(stacked(ours[None])[0], theirs["input_features"][0, :real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.03])
def test_a_sound_too_short_for_two_windows_has_one_feature(tmp_path, seconds, saved, sound):
    saved()
    ours = read(tmp_path)
    mel_FT = ours.config.preprocess((sound(seconds), 16_000))
    assert mel_FT.shape == (80, 2)
    assert torch.isfinite(ours(mel_FT[None], torch.tensor([2])[:, None])).all()


def test_from_samples_to_features_the_whole_way_is_theirs_in_a_batch_too(tmp_path, saved, sound):
    theirs, ours = saved(), read(tmp_path)
    # in digital silence all bands are nearly equal, and the first norm magnifies the last bit of their differences
    sounds = [sound(1.3, silence=False), sound(0.52, silence=False)]
    mels = [ours.config.preprocess((samples, 16_000)) for samples in sounds]
    batch = torch.nn.utils.rnn.pad_sequence([mel_FT.mT for mel_FT in mels], batch_first=True).mT
    inputs = SeamlessM4TFeatureExtractor()(sounds, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
        features = ours(batch, torch.tensor([mel_FT.shape[1] for mel_FT in mels])[:, None])
    for row, real in enumerate(inputs["attention_mask"].sum(1).tolist()):
        assert real == ours.config.num_tokens(mels[row].shape)
        torch.testing.assert_close(features[row, :real], expected[row, :real], atol=2e-5, rtol=1e-5)


def test_the_encoder_of_a_ctc_model_is_read_and_its_head_is_left_out(tmp_path, saved):
    theirs, ours = saved(Wav2Vec2BertForCTC, vocab_size=12), read(tmp_path)
    clip = torch.randn(1, 80, 30)
    with torch.no_grad():
        expected = theirs.wav2vec2_bert(stacked(clip)).last_hidden_state
        torch.testing.assert_close(ours(clip, torch.tensor([30])[:, None]), expected, **SAME)


def test_a_long_clip_in_pieces_has_the_features_of_the_pieces_alone_in_a_row(tmp_path, saved):
    saved()
    ours = read(tmp_path, piece_seconds=0.25)  # 12 features at most
    lengths = torch.tensor([90, 40, 24])
    batch = torch.randn(3, 80, 90)
    with torch.no_grad():
        together = ours(batch, lengths[:, None])
        for row, cuts in enumerate([(24, 24, 24, 18), (20, 20), (24,)]):
            parts = torch.split(batch[row, :, : sum(cuts)], cuts, dim=1)
            alone = torch.cat([ours(part[None], torch.tensor([part.shape[1]])[:, None])[0] for part in parts])
            assert len(alone) == ours.config.num_tokens((80, sum(cuts)))
            torch.testing.assert_close(together[row, : len(alone)], alone, **SAME)
            assert not together[row, len(alone) :].any()


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"model_type": "wav2vec2_bert"}, "is no conformer .* did you mean wav2vec2-bert"),
        ("config.json", {"position_embeddings_type": "rotary"}, "'rotary' is not supported, only 'relative_key'"),
        ("config.json", {"add_adapter": True}, "add_adapter=True is not supported, only False"),
        ("config.json", {"left_max_position_embeddings": None}, "left_max_position_embeddings is missing"),
        ("preprocessor_config.json", {"stride": 4}, "feature_projection_input_dim=160 is not supported, only 320"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate=8000 is not supported, only 16000"),
    ],
)
def test_settings_that_are_missing_or_not_supported_are_refused_by_name(tmp_path, saved, edit, file, changes, told):
    saved()
    edit(tmp_path / file, changes)
    with pytest.raises(UserError, match=told):
        conformer_fields(tmp_path)

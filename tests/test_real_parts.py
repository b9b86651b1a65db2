"""Real checkpoints against the libraries they came from; their folder is named by MMGPT_PARTS."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import timm
import torch
import transformers

import mmgpt
from mmgpt.checkpoints.pretrained_parts import fill_from_checkpoint
from mmgpt.config import build
from mmgpt.encoders.registry import ENCODERS

EXACT = {"atol": 1e-5, "rtol": 1e-5}
TOPICS = ("the sea", "a dog", "winter", "bread", "a bridge", "music", "Paris", "an engine", "rain", "chess")
ASKED = [ask.format(topic) for ask in ("Tell me about {}.", "Write two short sentences on {}.") for topic in TOPICS]


@pytest.fixture(scope="module")
def parts() -> Path:
    folder = os.environ.get("MMGPT_PARTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real checkpoints; name their folder in MMGPT_PARTS")
    return Path(folder)


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def language_model(request, parts, tmp_path_factory):
    """SmolLM2 opened here and by transformers, from the same file."""
    path = parts / "smollm2-135m-instruct"
    given = {}
    if request.param == "gguf":
        path = parts / "SmolLM2-135M-Instruct.Q4_1.gguf"
        given = {"gguf_file": path.name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        ours = mmgpt.load(path, dtype="float32")
    source = path if path.is_dir() else path.parent
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **given).eval()
    return ours, theirs, transformers.AutoTokenizer.from_pretrained(source, **given)


@torch.no_grad()
def test_smollm2_has_the_ids_logits_and_greedy_tokens_of_transformers(language_model):
    ours, theirs, tokenizer = language_model
    talks = [[{"role": "user", "content": one}] for one in ASKED]
    replies = ours.chat(talks, max_new_tokens=60)
    for talk, reply in zip(talks, replies, strict=True):
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        prompt = ours.renderer.prompt(mmgpt.generation.prompts.parse_prompt(talk))
        assert prompt.ids == list(ids)
        ids_1T = torch.tensor([ids])
        positions_1T = torch.arange(len(ids))[None]
        logits_1TV = ours.model.decoder.logits(ours.model.decoder(ours.model.decoder.embed(ids_1T), positions_1T))
        wanted_1TV = theirs(ids_1T).logits
        scale = wanted_1TV.abs().max()
        torch.testing.assert_close(logits_1TV / scale, wanted_1TV / scale, atol=1e-5, rtol=0)
        out = theirs.generate(
            ids_1T, do_sample=False, max_new_tokens=60, eos_token_id=ours.eos_token_id, pad_token_id=0
        )
        assert reply.tokens == out[0, len(ids) :].tolist()


def read_encoder(kind: str, folder: Path, **options):
    """As a recipe reads it."""
    tree = {"kind": kind, "pretrained": str(folder), **options}
    modality = ENCODERS[kind].modality
    filled = fill_from_checkpoint({"encoders": {modality: tree}}, "recipe")["encoders"][modality]
    config = build(ENCODERS[kind].config, filled, "recipe")
    encoder = ENCODERS[kind].module(config)
    encoder.load_state_dict(ENCODERS[kind].weights(folder, config))
    return encoder.eval()


@pytest.mark.parametrize("size", [224, 280, 518])
@torch.no_grad()
def test_dinov2_at_any_size_has_the_features_of_transformers_and_of_timm(size, parts, data_packs):
    files = (
        sorted((data_packs / "flickr8k_full").rglob("*.jpg"))[:4]
        or sorted((data_packs / "vqa_v2_mini").rglob("*.jpg"))[:4]
    )
    ours = read_encoder("timm", parts / "dinov2-small", image_size=size)
    pictures = [PIL.Image.open(file).convert("RGB").resize((640, 480)) for file in files]
    pixels_MCHW = torch.stack([ours.config.preprocess(one) for one in pictures])
    shapes_M3 = torch.tensor([[3, size, size]] * len(pictures))
    theirs = transformers.Dinov2Model.from_pretrained(parts / "dinov2-small").eval()
    wanted = theirs(ours.normalise(pixels_MCHW)).last_hidden_state[:, 1:]
    torch.testing.assert_close(ours(pixels_MCHW, shapes_M3), wanted, atol=5e-5, rtol=1e-5)

    ours = read_encoder("timm", parts / "dinov2-small-timm", image_size=size)
    file = {"file": str(parts / "dinov2-small-timm" / "model.safetensors")}
    tower = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=True, pretrained_cfg_overlay=file, num_classes=0, img_size=size
    ).eval()
    wanted = tower.forward_features(ours.normalise(pixels_MCHW))[:, 1:]
    torch.testing.assert_close(ours(pixels_MCHW, shapes_M3), wanted, **EXACT)


@torch.no_grad()
def test_whisper_s_encoder_has_the_features_of_transformers_for_ten_recordings(parts, data_packs):
    files = sorted((data_packs / "speechocean762").rglob("*.ogg"))[:10]
    assert len(files) == 10
    ours = read_encoder("whisper", parts / "whisper-tiny.en").float()
    theirs = transformers.WhisperModel.from_pretrained(parts / "whisper-tiny.en", dtype=torch.float32).encoder.eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(parts / "whisper-tiny.en")
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        assert rate == 16_000
        values = ours.config.preprocess((np.asarray(samples), rate))
        features = ours(values[None], torch.tensor([values.shape]))[0]
        mels = extract(samples, sampling_rate=rate, return_tensors="pt").input_features
        wanted = theirs(mels).last_hidden_state[0, : len(features)]
        torch.testing.assert_close(features, wanted, atol=2e-4, rtol=1e-4)

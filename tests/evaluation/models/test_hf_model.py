"""Our own tiny models, exported: through transformers they score and answer as they do here."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import mmgpt
from mmgpt.checkpoints.convert import export
from mmgpt.checkpoints.hf_multimodal_tables import EXPORT_FORMATS
from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message
from mmgpt.encoders.registry import ENCODERS
from mmgpt.evaluation.models.hf_model import HFModel
from mmgpt.evaluation.models.model import open_model
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import END
from mmgpt.model.bundle import new_bundle
from mmgpt.model.config import ModelConfig

CHOICES = ["yes", "no", "a red circle of some size", "two"]
DECODER = {"width": 64, "ffn_width": 96, "depth": 2, "heads": 4, "kv_heads": 2, "context": 512, "zero_init": False}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
FORMS = ["hf-llava", "hf-qwen2-audio", "hf-lm"]


def save_tower(form: str, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """A random tower as transformers saves it: modality, kind here, what a recipe says of it."""
    if form == "hf-llava":
        vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **SIZES)
        transformers.CLIPVisionModel(vision).save_pretrained(folder)
        size = {"height": 32, "width": 32}
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
        return "image", "timm", {"layer": -2, "post_norm": False}
    sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
    config = transformers.Qwen2AudioEncoderConfig(num_mel_bins=80, max_source_positions=50, **sizes)
    transformers.Qwen2AudioEncoder(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return "audio", "whisper", {"max_seconds": 1.0, "masked": True}


@pytest.fixture(scope="module")
def both(tokenizer, tmp_path_factory):
    """Of each form our assistant and the same weights in transformers, made once."""
    made: dict[str, tuple[Assistant, HFModel, Path]] = {}

    def get(form: str) -> tuple[Assistant, HFModel, Path]:
        if form in made:
            return made[form]
        folder = tmp_path_factory.mktemp("form")
        family = {"family": "qwen2", "bias": "qkv"} if form == "hf-qwen2-audio" else {"family": "llama"}
        tree: dict[str, Any] = {"decoder": {**DECODER, **family}}
        if form != "hf-lm":
            modality, kind, given = save_tower(form, folder / "tower")
            fields = ENCODERS[kind].fields(folder / "tower")
            encoder = {"kind": kind, **fields, "pretrained": str(folder / "tower"), **given}
            tree |= {"encoders": {modality: encoder}, "adapters": {modality: EXPORT_FORMATS[form].adapter.model_dump()}}
        extended = tokenizer.extended(token for token in TEMPLATES["chatml"].tokens if token != END)
        torch.manual_seed(0)
        bundle = new_bundle(build(ModelConfig, tree, "tiny"), extended, "chatml", 448)
        if form != "hf-lm":
            bundle.media_markup = {modality: EXPORT_FORMATS[form].wrap or ("<", ">\n")}
        for name, weight in bundle.model.named_parameters():
            is_norm = weight.dim() == 1 and "norm" in name and name.endswith("weight")
            torch.nn.init.normal_(weight, mean=float(is_norm), std=0.15)
        export(bundle, folder / "out", form)
        made[form] = mmgpt.load(folder / "out", device="cpu"), open_model(f"hf:{folder / 'out'}", "cpu"), folder / "out"
        return made[form]

    return get


def medium(form: str, number: int) -> tuple[Any, ...]:
    if form == "hf-llava":
        return (Image(PIL.Image.effect_mandelbrot((90, 70 + number), (-2, -1, 1, 1 + number), 60).convert("RGB")),)
    if form == "hf-qwen2-audio":
        return (Audio((0.3 * np.sin(np.arange(5000 + 900 * number) / (5 + number))).astype(np.float32), rate=16_000),)
    return ()


def talks(form: str, *, shots: int = 0) -> list[tuple[Message, ...]]:
    texts = ["What is this?", "Yes or no?", "How many red circles are there?"]
    exchange = [Message.of("user", *medium(form, 4), "And this?"), Message.of("assistant", "no")]
    return [(*exchange * shots, Message.of("user", *medium(form, n), text)) for n, text in enumerate(texts)]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_choices_have_the_logprobs_that_our_engine_gives_them(form, normalise, both):
    ours, theirs, _ = both(form)
    asked = talks(form) + talks(form, shots=1)
    lists = [CHOICES] * len(asked)
    expected = ours.choose(asked, lists, normalise=normalise)
    for size in (1, 32):
        found = theirs.choose(asked, lists, normalise=normalise, batch_size=size)
        assert [one.text for one in found] == [one.text for one in expected]
        gaps = np.subtract([one.logprobs for one in found], [one.logprobs for one in expected])
        assert np.abs(gaps).max() < 1e-4
    assert np.std([one.logprobs for one in expected], axis=0).min() > 0.01, "the medium and the words must matter"


@pytest.mark.parametrize("form", FORMS)
def test_greedy_answers_are_ours_whatever_the_batch(form, both):
    ours, theirs, _ = both(form)
    asked = talks(form, shots=1) + talks(form)
    expected = [reply.tokens for reply in ours.chat(asked, max_new_tokens=12)]
    for size in (1, 4):
        found = theirs.chat(asked, batch_size=size, max_new_tokens=12)
        assert [reply.tokens for reply in found] == expected
    assert [reply.text for reply in found] == [reply.text for reply in ours.chat(asked, max_new_tokens=12)]
    assert len({tuple(tokens) for tokens in expected}) > 3


def test_plain_texts_have_the_logprobs_that_our_engine_gives_them(both):
    ours, theirs, _ = both("hf-lm")
    pairs = ["Once upon a", "Once upon a", "How many"], [" time there was", " red", "?"]
    for mine, other in zip(ours.score_texts(*pairs), theirs.score_texts(*pairs), strict=True):
        assert len(mine) == len(other)
        np.testing.assert_allclose(other, mine, atol=1e-4)


def test_sampled_answers_depend_on_their_seed_and_not_on_the_batch(both):
    _, theirs, _ = both("hf-lm")
    draws = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 8}
    before = torch.random.get_rng_state()
    runs = [
        [reply.tokens for reply in theirs.chat(talks("hf-lm"), batch_size=size, seed=seed, **draws)]
        for size, seed in ((1, 5), (3, 5), (3, 6))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_answer_ends_at_a_stop_string_an_end_token_or_the_budget(both):
    _, theirs, _ = both("hf-lm")
    (whole,) = theirs.chat(talks("hf-lm")[:1], max_new_tokens=24)
    assert (whole.finish_reason, len(whole.tokens)) == ("length", 24)
    stop = whole.text[3:5]
    (cut,) = theirs.chat(talks("hf-lm")[:1], max_new_tokens=24, stop=(stop,))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    theirs.ends.add(whole.tokens[5])
    (ended,) = theirs.chat(talks("hf-lm")[:1], max_new_tokens=24)
    theirs.ends.discard(whole.tokens[5])
    assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[5]) + 1]
    assert ended.finish_reason == "stop"


def test_each_talk_may_have_its_own_options(both):
    _, theirs, _ = both("hf-lm")
    replies = theirs.chat(talks("hf-lm"), each=[{"max_new_tokens": n} for n in (3, 3, 5)])
    assert [len(reply.tokens) for reply in replies] == [3, 3, 5]


def test_what_is_over_the_context_is_counted_as_ours(both):
    ours, theirs, _ = both("hf-llava")
    for asked in talks("hf-llava", shots=1):
        assert theirs.tokens_over_context(asked, 8) == ours.tokens_over_context(asked, 8) < 0


def test_the_fingerprint_tells_weights_apart(both):
    _, theirs, folder = both("hf-lm")
    before = theirs.fingerprint()
    assert open_model(f"hf:{folder}", "cpu").fingerprint() == before
    weight = next(theirs.model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
        assert theirs.fingerprint() != before
        weight[0, 0] -= 1


def test_media_and_options_that_it_does_not_take_are_refused(both):
    _, reads, _ = both("hf-lm")
    _, sees, _ = both("hf-llava")
    picture, sound = medium("hf-llava", 0)[0], medium("hf-qwen2-audio", 0)[0]
    with pytest.raises(UserError, match="a language model, which takes no image"):
        reads.chat([(Message.of("user", picture, "What?"),)])
    for part, kind in ((sound, "audio"), (Video("a.mp4"), "video")):
        with pytest.raises(UserError, match=f"LlavaProcessor takes no {kind}"):
            sees.chat([(Message.of("user", part, "What?"),)])
    with pytest.raises(UserError, match="best_of=2 is not handed on to transformers"):
        reads.chat(talks("hf-lm"), temperature=1.0, best_of=2)


def test_a_name_without_a_kind_opens_our_own_reading_of_the_folder(both):
    ours, theirs, folder = both("hf-llava")
    opened = open_model(folder, "cpu")
    assert isinstance(opened, Assistant)
    assert opened.fingerprint() == ours.fingerprint() != theirs.fingerprint()
    assert (opened.name, theirs.name) == (str(folder), f"hf:{folder}")


def test_what_is_no_model_to_answer_is_refused(both, tmp_path):
    with pytest.raises(UserError, match=r"hf:.*none: cannot be opened"):
        open_model(f"hf:{tmp_path / 'none'}")
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel is no model that answers in words"):
        open_model(f"hf:{tmp_path}")
    _, reads, _ = both("hf-lm")
    template, reads.tokenizer.chat_template = reads.tokenizer.chat_template, None
    with pytest.raises(UserError, match="has no chat template"):
        HFModel(reads.model, reads.tokenizer, "bare")
    reads.tokenizer.chat_template = template

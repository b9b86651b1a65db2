"""Exports, read by transformers: the same logits and the same answers, with their pictures and sounds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import mmgpt
from mmgpt.checkpoints.convert import convert, export
from mmgpt.checkpoints.hf_multimodal_tables import EXPORT_FORMATS
from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import UserError, build
from mmgpt.encoders.registry import ENCODERS
from mmgpt.files import load_weights, save_weights
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import END
from mmgpt.model.bundle import ModelBundle, new_bundle
from mmgpt.model.config import ModelConfig

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = {"width": 64, "ffn_width": 96, "depth": 2, "heads": 4, "kv_heads": 2, "context": 512, "zero_init": False}
FAMILY = {"llama": {}, "mistral": {"window": 40}, "qwen2": {"bias": "qkv"}}
WRAP = EXPORT_FORMATS["hf-smolvlm"].wrap


def picture() -> PIL.Image.Image:
    return PIL.Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 60).convert("RGB")


def sound() -> np.ndarray:
    return (0.3 * np.sin(np.arange(9_000) / 7 + np.arange(9_000) ** 2 / 9e5)).astype(np.float32)


@dataclass
class Form:
    """One export, as made here and as read there."""

    name: str
    bundle: ModelBundle
    cls: Any
    medium: Any
    raw: Any


def tower_of(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """A tiny random tower as transformers saves it: its kind here, and what a recipe says of it."""
    if kind == "clip":
        config = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **SIZES)
        pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        model, more = transformers.CLIPVisionModel(config), {"layer": -2}
    elif kind == "siglip":
        config = transformers.SiglipVisionConfig(image_size=32, patch_size=8, vision_use_head=False, **SIZES)
        pixels = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        model, more = transformers.SiglipVisionModel(config), {}
    else:
        sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
        config = transformers.Qwen2AudioEncoderConfig(num_mel_bins=80, max_source_positions=50, **sizes)
        pixels = transformers.WhisperFeatureExtractor(chunk_length=1)
        model, more = transformers.Qwen2AudioEncoder(config), {"max_seconds": 1.0, "masked": True}
    model.save_pretrained(folder)
    pixels.save_pretrained(folder)
    return "whisper" if kind == "whisper" else "timm", {"pretrained": str(folder), **more}


@pytest.fixture
def make_form(tmp_path, tokenizer):
    def make(name: str, kind: str, family: str = "llama", template: str = "chatml", **changes: Any) -> Form:
        target = EXPORT_FORMATS[name]
        encoder, given = tower_of(kind, tmp_path / "tower")
        given |= {"post_norm": False} if name == "hf-llava" else {}
        fields = ENCODERS[encoder].fields(tmp_path / "tower")
        tied = changes.pop("tied", False)
        tree = {
            "decoder": {**DECODER, **FAMILY[family], "family": family, "tied": tied},
            "encoders": {target.modality: {"kind": encoder, **fields, **given}},
            "adapters": {target.modality: target.adapter.model_dump()},
            **changes,
        }
        tokens = [*TEMPLATES[template].tokens, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
        extended = tokenizer.extended(token for token in tokens if token != END)
        bundle = new_bundle(build(ModelConfig, tree, "tiny"), extended, template, 448)
        bundle.media_markup = {target.modality: target.wrap or ("<", ">\n")}
        for parameter_name, parameter in bundle.model.named_parameters():
            is_norm = parameter.dim() == 1 and "norm" in parameter_name and parameter_name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.1)
        bundle.model.eval()
        raw = picture() if target.modality == "image" else sound()
        medium = mmgpt.Image(raw) if target.modality == "image" else mmgpt.Audio(raw, rate=16_000)
        return Form(name, bundle, getattr(transformers, target.architecture), medium, raw)

    return make


FORMAT_OF_MODEL_TYPE = [
    ("hf-llava", "clip", {"family": "llama"}),
    ("hf-llava", "clip", {"family": "mistral", "tied": True}),
    ("hf-llava", "siglip", {"family": "qwen2", "template": "plain"}),
    ("hf-smolvlm", "siglip", {"tied": True}),
    ("hf-smolvlm", "siglip", {}),
    ("hf-qwen2-audio", "whisper", {"family": "qwen2"}),
]


def prompt_of(form: Form) -> tuple[list[mmgpt.Message], Rendered]:
    messages = [mmgpt.Message.of("user", form.medium, "What is this?")]
    return messages, form.bundle.renderer.prompt(tuple(messages))


def inputs_of(form: Form, folder: Any) -> Any:
    """What transformers' own processor makes of the same conversation."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    kind = EXPORT_FORMATS[form.name].modality
    content = [{"type": kind}, {"type": "text", "text": "What is this?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    media = {"images": [form.raw]} if kind == "image" else {"audio": [form.raw], "sampling_rate": 16_000}
    return processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)


@pytest.mark.parametrize(("name", "kind", "options"), FORMAT_OF_MODEL_TYPE)
@torch.no_grad()
def test_an_export_has_the_same_prompt_logits_and_answer_in_transformers(name, kind, options, make_form, tmp_path):
    form = make_form(name, kind, **options)
    export(form.bundle, tmp_path / "out", name)
    theirs = form.cls.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    messages, prompt = prompt_of(form)
    inputs = inputs_of(form, tmp_path / "out")
    assert inputs["input_ids"][0].tolist() == prompt.ids
    batch = collate([prompt])
    expected = form.bundle.model.decoder.logits(form.bundle.model.hidden(batch))[0]
    torch.testing.assert_close(theirs(**inputs).logits[0], expected, atol=1e-5, rtol=0)
    answer = theirs.generate(**inputs, max_new_tokens=24, do_sample=False)[0, len(prompt.ids) :].tolist()
    model = mmgpt.load(tmp_path / "out", device="cpu", verify=True)
    assert model.chat(messages, max_new_tokens=24).tokens == answer


@pytest.mark.parametrize(("name", "kind", "options"), FORMAT_OF_MODEL_TYPE)
def test_there_and_back_every_weight_is_bitwise_the_same(name, kind, options, make_form, tmp_path):
    form = make_form(name, kind, **options)
    export(form.bundle, tmp_path / "out", name)
    convert(tmp_path / "out", tmp_path / "back")
    back = load_bundle(tmp_path / "back", verify=True)
    ours, again = form.bundle.model.state_dict(), back.model.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(again[key], weight) for key, weight in ours.items())
    assert (back.template, back.system, back.media_markup) == (form.bundle.template, None, form.bundle.media_markup)
    export(back, tmp_path / "again", name)
    first, second = load_weights(tmp_path / "out"), load_weights(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_bfloat16_stays_bfloat16(make_form, tmp_path):
    form = make_form("hf-smolvlm", "siglip")
    save_bundle(form.bundle, (tmp_path / "own").mkdir() or tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "out", to="hf-smolvlm", dtype="bfloat16")
    assert {weight.dtype for weight in load_weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("form", "change", "told"),
    [
        (
            "hf-llava",
            {"adapters": {"image": {"kind": "resampler", "heads": 4}}},
            "an adapter of kind resampler",
        ),
        ("hf-llava", {"adapters": {"image": {"kind": "mlp", "stride": 2}}}, "an adapter of kind mlp as it is set"),
        ("hf-qwen2-audio", {}, "encoders of image, but for one of audio; this model can be hf-llava or mmgpt"),
        (
            "hf-smolvlm",
            {},
            "no class token .*; an adapter of kind mlp .*; media in '<' and .* media_markup of '<fake_token",
        ),
        ("hf-lm", {}, "encoders of image; this model can be hf-llava or mmgpt"),
    ],
)
def test_what_a_form_has_no_place_for_is_refused_with_the_forms_that_have(form, change, told, make_form, tmp_path):
    bundle = make_form("hf-llava", "clip", **change).bundle
    with pytest.raises(UserError, match=f"^{form} has no place for .*{told}") as refused:
        export(bundle, tmp_path / "out", form)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_parts_that_no_outside_form_has_are_refused(make_bundle, tmp_path):
    for bundle, told in [
        (make_bundle(), "token_shift=True"),
        (make_bundle(token_shift=False, ffn_width=64), "a vit encoder, not a CLIP or SigLIP tower"),
        (
            make_bundle(audio={"kind": "mlp"}, token_shift=False, ffn_width=64),
            "encoders of image and audio, but for one of",
        ),
    ]:
        with pytest.raises(UserError, match=f"hf-llava has no place for .*{told}.*this model can be mmgpt$"):
            export(bundle, tmp_path / "out", "hf-llava")
    hears = make_bundle(image=None, audio={"kind": "linear"}, token_shift=False, ffn_width=64, bias="qkv")
    with pytest.raises(UserError, match="hf-qwen2-audio has no place for a conformer encoder, not a whisper one"):
        export(hears, tmp_path / "out", "hf-qwen2-audio")


def test_a_form_that_is_none_is_refused_with_the_nearest(make_bundle, tmp_path):
    with pytest.raises(UserError, match=r"form hf-lava: is not known; did you mean hf-llava\?"):
        convert(tmp_path, tmp_path / "out", to="hf-lava")


def test_an_export_that_reads_back_otherwise_is_not_moved_into_place(make_form, tmp_path, monkeypatch):
    form = make_form("hf-smolvlm", "siglip")
    write = "mmgpt.checkpoints.convert.save_weights"
    monkeypatch.setattr(write, lambda weights, folder: save_weights({k: 1.5 * w for k, w in weights.items()}, folder))
    with pytest.raises(UserError, match=r"golden.json's logits are off by"):
        export(form.bundle, tmp_path / "out", "hf-smolvlm")
    assert not (tmp_path / "out").exists()


def test_a_text_model_goes_to_its_own_family_and_back(make_bundle, tmp_path):
    bundle = make_bundle(image=None, token_shift=False, ffn_width=64, template="chatml")
    bundle.system = "Be kind."
    export(bundle, tmp_path / "out", "hf-lm")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    talk = [{"role": "user", "content": "How many?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ours = mmgpt.load(tmp_path / "out", verify=True, device="cpu")
    assert ids["input_ids"][0].tolist() == ours.renderer.prompt((mmgpt.Message.of("user", "How many?"),)).ids
    answer = theirs.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    assert ours.chat(talk, max_new_tokens=16).tokens == answer
    back = load_bundle(convert(tmp_path / "out", tmp_path / "back"))
    assert back.system == "Be kind."
    assert all(torch.equal(w, bundle.model.state_dict()[k]) for k, w in back.model.state_dict().items())


def test_the_form_that_a_folder_is_said_to_have_is_held_against_it(make_form, tmp_path, mmgpt_says):
    export(make_form("hf-smolvlm", "siglip").bundle, tmp_path / "vlm", "hf-smolvlm")
    code, out, _ = mmgpt_says("convert", tmp_path / "vlm", tmp_path / "own", "--from", "hf-smolvlm")
    assert (code, out.strip()) == (0, f"mmgpt: {tmp_path / 'own'}")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["model_type"] == "mmgpt"
    code, _, told = mmgpt_says("convert", tmp_path / "vlm", tmp_path / "more", "--from", "hf-llava")
    assert code == 2
    assert "model_type is 'idefics3', which is hf-smolvlm, not hf-llava; leave --from out" in told

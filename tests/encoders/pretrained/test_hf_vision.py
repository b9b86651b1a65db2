import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmgpt.config import UserError
from mmgpt.encoders.pretrained.hf_vision import _share, hf_vision_config, to_hf_vision, tower_fields
from mmgpt.encoders.pretrained.timm import fill_from_tower, mlp_ratio
from mmgpt.encoders.timm_vit import TimmConfig

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 51,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SHORT = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
SQUASH = {"size": {"height": 32, "width": 32}, "resample": 2}
ANY_RATIO = {"patch_size": 8, "max_num_patches": 20}
CLIP, SIGLIP, SIGLIP2 = transformers.CLIPVisionModel, transformers.SiglipVisionModel, transformers.Siglip2VisionModel
PROCESSORS = {
    CLIP: lambda: transformers.CLIPImageProcessor(**SHORT),
    SIGLIP: lambda: transformers.SiglipImageProcessor(**SQUASH),
    SIGLIP2: lambda: transformers.Siglip2ImageProcessor(**ANY_RATIO),
}
FAMILIES = [(CLIP, {"hidden_act": "quick_gelu"}), (CLIP, {"hidden_act": "gelu"}), (SIGLIP, {})]


@pytest.fixture
def save(tmp_path, randomise):
    """Saves a tiny tower and its image processor as transformers does."""

    def save(model, **options):
        sizes = {name: size for name, size in {**SIZES, **options}.items() if size is not None}
        tower = randomise(model(model.config_class(**sizes)))
        tower.save_pretrained(tmp_path)
        processor = PROCESSORS[model]()
        processor.save_pretrained(tmp_path)
        return tower, processor

    return save


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("model", "options"), FAMILIES)
@torch.no_grad()
def test_a_tower_gives_transformers_hidden_states(model, options, tmp_path, save, read_tower):
    tower, _ = save(model, **options)
    pixels, shapes = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[3, 32, 32]] * 2)
    encoder = read_tower(tmp_path)
    out = tower(encoder.normalise(pixels), output_hidden_states=True)
    first = encoder.config.prefix_tokens  # which LLaVA's "default" leaves out
    assert first == (1 if model is CLIP else 0)
    norm = tower.post_layernorm
    torch.testing.assert_close(encoder(pixels, shapes), norm(out.hidden_states[-1])[:, first:], **SAME)
    if model is SIGLIP:  # what SmolVLM takes
        torch.testing.assert_close(encoder(pixels, shapes), out.last_hidden_state, **SAME)
    for layer in (-1, -2, -3):  # what LLaVA takes at this vision_feature_layer
        taken = read_tower(tmp_path, layer=layer, post_norm=False)(pixels, shapes)
        torch.testing.assert_close(taken, out.hidden_states[layer][:, first:], **SAME)
    assert taken.std() > 0.1


NAFLEX = {"num_patches": 16, "image_size": None}


@torch.no_grad()
def test_pictures_of_any_ratio_get_transformers_pixels_and_features(tmp_path, save, read_tower, photograph):
    tower, processor = save(SIGLIP2, **NAFLEX)
    assert read_tower(tmp_path).config.max_patches == 20
    for layer in (-1, -2):
        encoder = read_tower(tmp_path, layer=layer)
        for size in ((40, 40), (200, 31), (31, 200), (77, 100)):
            picture = photograph(*size)
            given = processor(picture, return_tensors="pt")
            out = tower(**given, output_hidden_states=True)
            pixels_CHW = encoder.config.preprocess(picture)
            ours = encoder(pixels_CHW[None], torch.tensor([pixels_CHW.shape]))
            theirs = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
            assert encoder.config.grids_of(tuple(pixels_CHW.shape)) == (tuple(given["spatial_shapes"][0].tolist()),)
            torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], **SAME)


@pytest.mark.parametrize(("model", "options"), [*FAMILIES, (SIGLIP2, NAFLEX)])
def test_a_tower_comes_back_bitwise_with_a_config_that_transformers_reads(model, options, tmp_path, save, read_tower):
    tower, processor = save(model, **options)
    encoder = read_tower(tmp_path)
    back = to_hf_vision(encoder.state_dict(), encoder.config, "vision_tower.")
    theirs = {f"vision_tower.{k}": w for k, w in tower.state_dict().items() if not k.startswith("head.")}
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], weight) for name, weight in theirs.items())
    vision, pixels = hf_vision_config(encoder.config)
    read = model.config_class(**vision)
    sizes = {name: size for name, size in {**SIZES, **options}.items() if size is not None}
    assert {name: getattr(read, name) for name in sizes} == sizes
    assert (read.hidden_act, read.layer_norm_eps) == (tower.config.hidden_act, tower.config.layer_norm_eps)
    again = type(processor)(**{k: v for k, v in pixels.items() if k != "image_processor_type"})
    for name in ("size", "resample", "image_mean", "image_std", *(ANY_RATIO if model is SIGLIP2 else ())):
        assert getattr(again, name) == getattr(processor, name), name
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    (tmp_path / "config.json").write_text(json.dumps(vision))
    assert TimmConfig(**tower_fields(tmp_path)) == encoder.config


@pytest.mark.parametrize("model", [CLIP, SIGLIP])
@pytest.mark.parametrize("size", [(300, 200), (61, 90), (90, 73), (20, 11)])
def test_pixels_are_those_of_transformers_processors(model, size, tmp_path, save, read_tower, photograph):
    _, processor = save(model)
    encoder, picture = read_tower(tmp_path), photograph(*size)
    ours = encoder.normalise(encoder.config.preprocess(picture)[None])
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, **SAME)


def test_shares_and_ratios_give_back_the_whole_numbers_they_come_from():
    for size in range(16, 600, 7):
        for larger in range(size, 3 * size):
            assert int(size / _share(size, larger)) == larger
            assert int(size * mlp_ratio(larger, size)) == larger


def test_the_tower_of_a_whole_clip_model_is_found_under_its_prefix(tmp_path, save, read_tower):
    save(CLIP)
    weights = load_file(tmp_path / "model.safetensors")
    alone = read_tower(tmp_path).state_dict()
    whole = {f"vision_model.{name}": weight for name, weight in weights.items()}
    whole |= {"vision_model.embeddings.position_ids": torch.arange(17), "logit_scale": torch.zeros(1)}
    whole |= {"text_model.embeddings.token_embedding.weight": torch.zeros(5, 4)}
    save_file(whole, tmp_path / "model.safetensors")
    vision = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    found = read_tower(tmp_path).state_dict()
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[name], weight) for name, weight in alone.items())


def test_what_a_config_leaves_out_is_as_transformers_has_it(tmp_path, save):
    save(CLIP)
    for model, kind in ((CLIP, "clip_vision_model"), (SIGLIP, "siglip_vision_model")):
        full = model.config_class()
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        change(tmp_path / "preprocessor_config.json", size={"height": 224, "width": 224}, do_center_crop=False)
        fields = tower_fields(tmp_path)
        assert (fields["width"], fields["depth"], fields["patch_size"], fields["image_size"]) == (
            *(full.hidden_size, full.num_hidden_layers, full.patch_size, full.image_size),
        )
        assert hf_vision_config(TimmConfig(**fields))[0]["hidden_act"] == full.hidden_act


@pytest.mark.parametrize(
    ("file", "values", "rule"),
    [
        ("config", {"hidden_act": "relu"}, "hidden_act=relu is not known; known: quick_gelu"),
        ("config", {"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06; a clip tower is read with 1e-05 alone"),
        ("config", {"image_size": 64}, "make no square of image_size=64"),
        ("preprocessor_config", {"image_mean": None}, "has no image_mean; write it into"),
        ("preprocessor_config", {"resample": 0}, "resample=0; known: 2 "),
        ("preprocessor_config", {"do_normalize": False}, "do_normalize: false"),
        ("preprocessor_config", {"crop_size": {"height": 32, "width": 40}}, "make no square of image_size=32"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_value(file, values, rule, tmp_path, save):
    save(CLIP)
    change(tmp_path / f"{file}.json", **values)
    with pytest.raises(UserError, match=rule):
        tower_fields(tmp_path)


def test_wrong_weights_are_refused_by_name(tmp_path, save, read_tower):
    save(CLIP)
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.layers.1.self_attn.k_proj.weight"
    for wrong, rule in (
        ({k: w for k, w in weights.items() if k != name}, f"is stored with {name}, which is missing"),
        ({**weights, "encoder.layers.1.gate": torch.zeros(2)}, "encoder.layers.1.gate: this family has no place"),
        ({"x": weights[name]}, "holds 0 weights named embeddings.patch_embedding.weight"),
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=rule):
            read_tower(tmp_path)


TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("eva02_base_patch16_clip_224", {"img_size": 32}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 32}),
        ("naflexvit_base_patch16_siglip", {}),
        ("vit_base_patch16_siglip_224", {"img_size": 32, "fc_norm": True}),
        ("vit_base_patch16_224", {"img_size": 32}),
        ("vit_base_patch16_clip_224", {"img_size": 32, "act_layer": "relu"}),
    ],
)
def test_a_tower_that_transformers_has_not_is_refused_by_name(architecture, args):
    fields = fill_from_tower({"architecture": architecture, "model_args": {**TINY, **args}, "image_size": 32})
    pixels = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop": "squash"}
    with pytest.raises(UserError, match=f"{architecture}: transformers' CLIP and SigLIPs are no such tower"):
        hf_vision_config(TimmConfig(**fields, **pixels))

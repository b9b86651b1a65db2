import json

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf

from mmgpt.checkpoints.pretrained_parts import fill_from_checkpoint
from mmgpt.config import UserError, build
from mmgpt.encoders.pretrained.hf_vision import tower_fields
from mmgpt.model.config import ModelConfig

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 8}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 56, "width": 56},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
DINO2, REGISTERS, DINO3 = (
    transformers.Dinov2Model,
    transformers.Dinov2WithRegistersModel,
    transformers.DINOv3ViTModel,
)
TOWERS = [
    pytest.param(DINO2, {}, id="dinov2"),
    pytest.param(DINO2, {"use_swiglu_ffn": True, "mlp_ratio": 4}, id="dinov2 gated"),
    pytest.param(DINO2, {"qkv_bias": False}, id="dinov2 without biases"),
    pytest.param(REGISTERS, {"num_register_tokens": 3}, id="registers"),
    pytest.param(REGISTERS, {"use_swiglu_ffn": True}, id="registers gated"),
    pytest.param(DINO3, {"intermediate_size": 51, "num_register_tokens": 4}, id="dinov3"),
    pytest.param(DINO3, {"intermediate_size": 48, "use_gated_mlp": True, "hidden_act": "silu"}, id="dinov3 gated"),
    pytest.param(DINO3, {"query_bias": False, "value_bias": False, "rope_theta": 30.0}, id="dinov3 without biases"),
]


@pytest.fixture
def save(tmp_path, randomise):
    """Saves a tiny tower as transformers does, with an image processor beside it."""

    def save(model, **options):
        tower = randomise(model(model.config_class(**{**SIZES, **options})))
        tower.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        return tower

    return save


@pytest.fixture
def read_at(tmp_path, read_tower):
    """Makes the encoder of the saved tower for pictures of some size, as a recipe with `image_size:` does."""

    def read(size, kind="timm", **options):
        tree = {"kind": kind, "pretrained": str(tmp_path), **({"image_size": size} if size else {})}
        filled = fill_from_checkpoint({"encoders": {"image": tree}}, "r.yaml")["encoders"]["image"]
        return read_tower(tmp_path, kind, **{k: v for k, v in filled.items() if k != "kind"}, **options)

    return read


@pytest.mark.parametrize("size", [None, 24, 40, 80])
@pytest.mark.parametrize(("model", "options"), TOWERS)
@torch.no_grad()
def test_a_tower_gives_transformers_features_at_any_size(model, options, size, save, read_at):
    tower = save(model, **options)
    side = size or 56
    pixels, shapes = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), torch.tensor([[3, side, side]] * 2)
    encoder = read_at(size)
    assert encoder.config.image_size == side
    out = tower(encoder.normalise(pixels), output_hidden_states=True)
    first = encoder.config.prefix_tokens
    features = encoder(pixels, shapes)
    assert features.shape[1] == encoder.config.num_tokens((3, side, side)) == (side // 8) ** 2
    torch.testing.assert_close(features, out.last_hidden_state[:, first:], **SAME)
    torch.testing.assert_close(read_at(size, tokens="all")(pixels, shapes), out.last_hidden_state, **SAME)
    before = read_at(size, layer=-2)(pixels, shapes)
    torch.testing.assert_close(before, out.hidden_states[-2][:, first:], **SAME)
    assert features.std() > 0.1


def test_pixels_are_those_of_transformers_processor(save, read_at, photograph):
    save(DINO2)
    processor = transformers.BitImageProcessor(**{k: v for k, v in PROCESSOR.items() if k != "image_processor_type"})
    encoder = read_at(None)
    for size in ((300, 200), (61, 90), (90, 73)):
        picture = photograph(*size)
        ours = encoder.normalise(encoder.config.preprocess(picture)[None])
        torch.testing.assert_close(ours, processor(picture, return_tensors="pt")["pixel_values"], **SAME)


def test_the_size_is_the_image_processor_s_where_a_recipe_says_nothing(tmp_path, save):
    save(DINO2, image_size=80)  # as DINOv2's own: positions for 518, pictures of 224
    assert tower_fields(tmp_path)["image_size"] == 56


TIMM = [
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
]


@pytest.mark.parametrize("size", [24, 48])
@pytest.mark.parametrize("architecture", TIMM)
@torch.no_grad()
def test_a_tower_of_timm_at_another_size_is_timm_s(architecture, size, tmp_path, randomise, read_at):
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    tower = randomise(timm.create_model(architecture, num_classes=0, **args))
    save_for_hf(tower, tmp_path, safe_serialization=True, model_args=args)
    file = tmp_path / "config.json"
    described = json.loads(file.read_text())
    described["pretrained_cfg"] |= {"input_size": [3, 32, 32], "crop_pct": 1.0}
    file.write_text(json.dumps(described))
    file = {"file": str(tmp_path / "model.safetensors"), "custom_load": False}
    own = {**args, "img_size": size, "num_classes": 0}
    theirs = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=file, **own)
    encoder = read_at(size)
    pixels, shapes = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8), torch.tensor([[3, size, size]] * 2)
    wanted = theirs.eval().forward_features(encoder.normalise(pixels))[:, theirs.num_prefix_tokens :]
    torch.testing.assert_close(encoder(pixels, shapes), wanted, **SAME)


def test_a_size_that_the_patches_do_not_fill_is_refused_with_those_beside_it(save, read_at):
    save(DINO2)
    with pytest.raises(UserError, match=r"r\.yaml: model\.encoders\.image\.image_size=30: .* take 24 or 32"):
        read_at(30)
    with pytest.raises(UserError, match=r"image_size=3: patch_size=8 does not divide it; take 8"):
        read_at(3)


def test_a_fold_names_the_sizes_that_fit_it(save, tmp_path):
    save(DINO2)
    tree = {"kind": "timm", "pretrained": str(tmp_path)}
    filled = fill_from_checkpoint({"encoders": {"image": tree}}, "r.yaml")
    filled |= {"decoder": {"width": 32, "depth": 1, "heads": 2}, "adapters": {"image": {"kind": "fold", "stride": 2}}}
    told = r"stride=2 does not divide the 7x7 patch grid.*image_size 48, which gives 6 x 6, 64, which gives 8 x 8, 224"
    with pytest.raises(UserError, match=told):
        build(ModelConfig, filled, "r.yaml")


@pytest.mark.parametrize(
    ("model", "values", "told"),
    [
        (DINO2, {"hidden_act": "relu"}, "hidden_act=relu; a dinov2 tower is read with gelu alone"),
        (DINO2, {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05; a dinov2 tower is read with 1e-06 alone"),
        (DINO3, {"query_bias": False}, "query_bias=False, value_bias=True; timm's towers have both or none"),
        (DINO3, {"hidden_act": "silu"}, "hidden_act=silu; read are gelu, and silu with use_gated_mlp"),
        (DINO3, {"key_bias": True}, "key_bias=True; a dinov3_vit tower is read with False alone"),
    ],
)
def test_what_timm_s_towers_cannot_be_is_refused_by_its_name(model, values, told, save, tmp_path, edit):
    save(model)
    edit(tmp_path / "config.json", values)
    with pytest.raises(UserError, match=told):
        tower_fields(tmp_path)


def test_weights_of_another_tower_are_refused(save, tmp_path, read_at):
    save(DINO2)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"missing.*blocks\.3"):
        read_at(None)


def test_an_unknown_tower_is_told_what_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(UserError, match=r"model_type 'swin' is no CLIP, SigLIP or DINO"):
        tower_fields(tmp_path)

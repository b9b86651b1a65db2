import json

import open_clip
import pytest
import timm
import torch
from open_clip.push_to_hf_hub import save_for_hf

from mmgpt.config import UserError
from mmgpt.encoders.pretrained.hf_vision import hf_vision_config
from mmgpt.encoders.registry import ENCODERS

SAME = {"atol": 1e-5, "rtol": 1e-5}
NATIVE = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
TIMM = {"timm_pool": "", "timm_proj": "linear", "image_size": 32}


class NoTokenizer:
    def save_pretrained(self, folder):
        pass


@pytest.fixture
def save(tmp_path, randomise):
    """Saves a tiny model as open_clip does."""

    def save(vision, **options):
        described = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, **options}
        make = open_clip.CustomTextCLIP if "timm_model_name" in vision else open_clip.CLIP
        model = randomise(make(**described))
        model.visual.image_mean, model.visual.image_std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
        save_for_hf(model, NoTokenizer(), described, tmp_path, safe_serialization=True)
        return model.visual

    return save


@pytest.mark.parametrize(
    ("vision", "options"),
    [
        (NATIVE, {}),
        ({**NATIVE, "mlp_ratio": 2.5, "ls_init_value": 0.3, "patch_dropout": 0.5}, {"quick_gelu": True}),
        ({**NATIVE, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, {}),
        ({**NATIVE, "attentional_pool": True, "attn_pooler_heads": 2}, {}),
    ],
)
@torch.no_grad()
def test_a_vit_of_open_clip_gives_its_features_after_every_block(vision, options, tmp_path, save, read_tower):
    visual = save(vision, **options)
    pixels, shapes = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[3, 32, 32]] * 2)
    encoder = read_tower(tmp_path, kind="open_clip")
    own_norm = not ("attentional_pool" in vision or "final_ln_after_pool" in vision)
    for layer in (-1, -2):
        theirs = visual.forward_intermediates(
            encoder.normalise(pixels),
            indices=[3 + layer],
            normalize_intermediates=own_norm and layer == -1,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        ours = read_tower(tmp_path, kind="open_clip", layer=layer, tokens="all")(pixels, shapes)
        expected = torch.cat([theirs["image_intermediates_prefix"][0], theirs["image_intermediates"][0]], dim=1)
        torch.testing.assert_close(ours, expected, **SAME)
        assert ours.std() > 0.1


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_base_patch16_siglip_224", {"timm_pool": "map", "timm_proj": "none"}),
        ("vit_base_patch16_224", {"timm_pool": "avg", "timm_proj": ""}),  # its norm stands behind the pooling
        ("vit_base_patch16_224", {"timm_pool": "avg", "timm_proj": "linear"}),  # and here before it
        ("eva02_base_patch16_clip_224", {"timm_pool": "token", "timm_proj": None}),
    ],
)
@torch.no_grad()
def test_a_tower_of_timm_inside_open_clip_gives_its_features(
    architecture, options, tmp_path, save, read_tower, monkeypatch
):
    whole = timm.create_model
    tiny = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    monkeypatch.setattr(timm, "create_model", lambda name, **args: whole(name, **{**tiny, **args}))
    visual = save({"timm_model_name": architecture, "image_size": 32, **options})
    pixels, shapes = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([[3, 32, 32]] * 2)
    encoder = read_tower(tmp_path, kind="open_clip")
    expected = visual.trunk.forward_features(encoder.normalise(pixels))[:, encoder.config.prefix_tokens :]
    torch.testing.assert_close(encoder(pixels, shapes), expected, **SAME)
    assert expected.std() > 0.1


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_open_clips_to_a_fraction_of_a_level(mode, tmp_path, save, read_tower, photograph):
    save(NATIVE)
    file = tmp_path / "open_clip_config.json"
    described = json.loads(file.read_text())
    described["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": "bicubic"}
    file.write_text(json.dumps(described))
    encoder = read_tower(tmp_path, kind="open_clip")
    theirs = open_clip.image_transform(32, False, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), resize_mode=mode)
    for size in ((300, 200), (61, 90)):
        picture = photograph(*size)
        gaps = (encoder.normalise(encoder.config.preprocess(picture)[None])[0] - theirs(picture)).abs() * 255 * 0.27
        assert gaps.max() <= 3.5
        assert gaps.mean() < 0.2


def test_an_open_clip_tower_can_be_written_as_transformers_clip(tmp_path, save, read_tower):
    save(NATIVE, quick_gelu=True)
    vision, _ = hf_vision_config(read_tower(tmp_path, kind="open_clip").config)
    told = vision["model_type"], vision["hidden_act"], vision["hidden_size"]
    assert told == ("clip_vision_model", "quick_gelu", 32)


@pytest.mark.parametrize(
    ("part", "values", "rule"),
    [
        ("preprocess_cfg", {"mean": None}, "has no mean, so the tower's pixels are unknown; write it into"),
        ("preprocess_cfg", {"resize_mode": "longest"}, "resize_mode=longest is not known; known: shortest, squash"),
        ("vision_cfg", {"qk_norm": True}, "vision_cfg has qk_norm=True, which is not read"),
        ("vision_cfg", {"layers": [2, 2, 2, 2]}, "a ResNet"),
        ("vision_cfg", {"image_size": [32, 64]}, "image_size 32x64 is no square"),
    ],
)
def test_what_is_not_read_is_refused_with_its_value(part, values, rule, tmp_path, save):
    save(NATIVE)
    file = tmp_path / "open_clip_config.json"
    described = json.loads(file.read_text())
    (described["model_cfg"] if part == "vision_cfg" else described)[part] |= values
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match=rule):
        ENCODERS["open_clip"].fields(tmp_path)

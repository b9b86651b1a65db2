"""Models whose pictures are encoded in pieces, or in grids of many shapes."""

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from mmgpt.checkpoints.pretrained_parts import fill_from_checkpoint, load_parts
from mmgpt.checkpoints.save_load import load_bundle, new_bundle, save_bundle
from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.encoders.pretrained.timm import fill_from_tower
from mmgpt.inputs.batch import collate
from mmgpt.model.config import ModelConfig
from mmgpt.model.multimodal import MultimodalModel

SAME = {"atol": 1e-5, "rtol": 1e-5}
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
PIXELS = {"mean": (0.5,) * 3, "std": (0.3,) * 3, "interpolation": "bicubic", "crop": "squash", "image_size": 32}
MODELS = [
    ("vit_small_patch16_dinov3", {"img_size": 32}, {"tiles": 4}, {"kind": "fold", "stride": 2, "places": True}),
    ("eva02_base_patch16_clip_224", {"img_size": 32}, {"tiles": 4, "tokens": "all"}, {"kind": "mlp", "stride": 3}),
    ("vit_base_patch16_siglip_224", {"img_size": 32}, {"tiles": 3, "layer": -2}, {"kind": "resampler", "heads": 2}),
    ("naflexvit_base_patch16_siglip", {}, {"max_patches": 20, "multiple": 2}, {"kind": "fold", "stride": 2}),
    ("naflexvit_base_patch16_siglip", {}, {"max_patches": 20}, {"kind": "mlp", "stride": 3}),
]


def picture(height, width, seed):
    return Image(PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)))


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]}-{next(iter(model[2]))}-{model[3]['kind']}")
def bundle(request, tokenizer):
    architecture, args, options, adapter = request.param
    fields = {**PIXELS, **fill_from_tower({"architecture": architecture, "model_args": {**TINY, **args}})}
    tree = {
        "decoder": {"width": 32, "depth": 2, "heads": 2, "context": 500, "zero_init": False},
        "encoders": {"image": {"kind": "timm", **fields, **options}},
        "adapters": {"image": adapter},
    }
    made = new_bundle(build(ModelConfig, tree, "x"), tokenizer, "plain")
    for name, parameter in made.model.encoders.named_parameters():  # layer scales begin so small that blocks do nothing
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_pictures_of_many_shapes_give_the_same_loss_and_gradients_alone_and_together(bundle, gradients):
    asked = [
        (picture(30, 30, 0), "What?"),
        (picture(60, 90, 1), "And here", picture(10, 70, 2), "?"),
        (picture(500, 40, 3),),
    ]
    samples = [Sample((Message.of("user", *parts), Message.of("assistant", "a dot"))) for parts in asked]
    rendered = [bundle.renderer.render(sample) for sample in samples]
    for one in rendered:
        assert one.ids.count(bundle.model.placeholder_ids["image"]) == sum(medium.num_tokens for medium in one.media)
    loss, grads = gradients(bundle.model, [collate(rendered)])
    expected_loss, expected = gradients(bundle.model, [collate([one]) for one in rendered])
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    torch.testing.assert_close(grads, expected, **SAME)
    assert sum(grad.abs().sum() for name, grad in grads.items() if name.startswith("encoders")) > 0.01


def test_a_saved_model_gives_its_golden_logits_when_loaded(bundle, tmp_path):
    bundle.model.eval()
    save_bundle(bundle, tmp_path)
    loaded = load_bundle(tmp_path, verify=True)
    assert loaded.model.config == bundle.model.config


def test_a_recipe_begins_from_a_tower_and_says_what_is_taken_of_it(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8))
    tower.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    image = {"kind": "timm", "pretrained": str(tmp_path), "layer": -2, "tiles": 4}
    tree = {
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "encoders": {"image": image},
        "adapters": {"image": {"kind": "mlp"}},
    }
    config = build(ModelConfig, fill_from_checkpoint(tree, "x"), "x")
    model = MultimodalModel(config, 10, {"image": 3}).eval()
    parameters = sum(p.numel() for p in tower.parameters())
    assert load_parts(model) == {"encoders.image": {"from": str(tmp_path), "parameters": parameters}}
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    encoder: torch.nn.Module = model.encoders["image"]
    with torch.no_grad():
        out = tower(encoder.normalise(pixels), output_hidden_states=True)
        torch.testing.assert_close(encoder(pixels, torch.tensor([[3, 32, 32]])), out.hidden_states[-2][:, 1:], **SAME)
    with pytest.raises(UserError, match=r"model.encoders.image.patch_size=16 disagrees with .*, where it is 8"):
        fill_from_checkpoint({**tree, "encoders": {"image": {**image, "patch_size": 16}}}, "x")

import numpy as np
import pytest
import torch

from mmgpt.checkpoints.save_load import load_bundle, new_bundle, save_bundle
from mmgpt.config import build
from mmgpt.datasets.media import Audio
from mmgpt.datasets.sample import Message, Sample
from mmgpt.inputs.batch import collate
from mmgpt.model.config import ModelConfig

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"mels": 16, "width": 32, "depth": 1, "heads": 2}
CONFORMER = {"kind": "conformer", "kernel": 5, **SIZES}
KINDS = {  # small ones of the makes that outside checkpoints have
    "whisper": {"kind": "whisper", "positions": 20, "inner": 32, "pool": 2, **SIZES},
    "w2v-bert": {
        **{
            **CONFORMER,
            "feature_extractor": {"kind": "kaldi"},
            "stem_kind": "stack",
            "subsampling": 2,
            "piece_seconds": 0.3,
        },
        **{"causal": True, "distances": [4, 2], "conv_bias": False},
    },
    "parakeet": {
        **{
            **CONFORMER,
            "feature_extractor": {"kind": "mel", "scale": "slaney", "last_frame": False, "normalise": "band"},
        },
        **{"stem_kind": "separable", "subsampling": 8, "stem": 4, "conv_norm": "affine", "scale_stem": True},
    },
}


@pytest.fixture(params=KINDS)
def bundle(request, tokenizer):
    tree = {
        "decoder": {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "context": 320, "zero_init": False},
        "encoders": {"audio": KINDS[request.param]},
        "adapters": {"audio": {"kind": "mlp", "stride": 2}},
    }
    return new_bundle(build(ModelConfig, tree, request.param), tokenizer, "plain")


def spoken(seconds: float, seed: int) -> Sample:
    noise = Audio(np.random.default_rng(seed).normal(size=round(8000 * seconds)).astype(np.float32), rate=8000)
    return Sample((Message.of("user", noise, "What is heard?"), Message.of("assistant", "a beep")))


def test_sounds_of_any_length_give_the_same_loss_and_gradients_alone_and_together(bundle, gradients):
    rendered = [bundle.renderer.render(spoken(seconds, seed)) for seed, seconds in enumerate((0.5, 0.001, 0.9, 0.08))]
    together = gradients(bundle.model, [collate(rendered)])
    alone = gradients(bundle.model, [collate([one]) for one in rendered])
    torch.testing.assert_close(together, alone, **SAME)


def test_a_saved_model_is_whole_without_any_outside_file(bundle, tmp_path):
    save_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path, verify=True)
    batch = collate([bundle.renderer.render(spoken(0.3, 0))])
    with torch.no_grad():
        assert torch.equal(again.model(batch).total, bundle.model.eval()(batch).total)

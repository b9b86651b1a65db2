"""Vectors of prompts: what is pooled, and that company does not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Text
from mmgpt.generation.embedding import embed
from mmgpt.inputs.batch import collate
from mmgpt.inputs.trimming import TooLong


def noise(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8))


def hiss(seconds: float) -> Audio:
    return Audio(np.random.default_rng(0).uniform(-0.5, 0.5, int(8000 * seconds)).astype(np.float32), rate=8000)


@pytest.fixture
def bundle(make_bundle):
    return make_bundle(audio={"kind": "linear"}, conformer={"piece_seconds": 1.0}, context=600)


MIXED = [
    "a",
    "a red circle and a blue square",
    noise(0),
    [noise(1), "What?", noise(2)],
    hiss(0.3),
    hiss(2.5),
    [hiss(1)],
]


@pytest.mark.parametrize("pool", ["decoder", "last"])
def test_a_vector_is_the_same_alone_and_in_any_batch(pool, bundle):
    together = embed(bundle, MIXED, pool)
    assert together.shape == (7, 32)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(together, torch.cat([embed(bundle, [one], pool) for one in MIXED]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together, embed(bundle, MIXED, pool, batch_size=3), atol=1e-5, rtol=0)
    assert torch.pdist(together).min() > 1e-3


@pytest.mark.parametrize("medium", ["image", "audio"])
def test_an_encoders_vector_is_the_mean_of_its_features_alone_and_in_any_batch(medium, bundle):
    prompts = {
        "image": [noise(0), [noise(1), "and", noise(2)], [noise(3), "words do not count"]],
        "audio": [hiss(0.3), [hiss(2.5), "and", hiss(1)], hiss(4)],
    }[medium]
    together = embed(bundle, prompts, "encoder")
    wanted = []
    for prompt in prompts:
        parts = prompt if isinstance(prompt, list) else [prompt]
        rendered = bundle.renderer.parts([part for part in parts if not isinstance(part, str)])
        features_ND = torch.cat([features_of(bundle, replace(rendered, media=[one])) for one in rendered.media])
        wanted.append(torch.nn.functional.normalize(features_ND.mean(dim=0), dim=0))
    torch.testing.assert_close(together, torch.stack(wanted), atol=1e-5, rtol=0)
    alone = torch.cat([embed(bundle, [one], "encoder") for one in prompts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.pdist(together).min() > 1e-3


@torch.no_grad()
def features_of(bundle, rendered) -> torch.Tensor:
    """The encoder's features of a prompt's only medium, piece after piece."""
    modality = rendered.media[0].modality
    features_PFD, grids = bundle.model.eval().encode(modality, collate([rendered]).media[modality])
    return torch.cat([one_FD[: int(np.prod(grid))] for one_FD, grid in zip(features_PFD, grids, strict=True)])


def test_the_decoders_vectors_are_of_its_states(bundle):
    states_TD = bundle.model.eval().hidden(collate([bundle.renderer.parts(embed_parts("a red circle"))]))[0].detach()
    torch.testing.assert_close(embed(bundle, ["a red circle"], "last")[0], unit(states_TD[-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(bundle, ["a red circle"])[0], unit(states_TD.mean(dim=0)), atol=1e-5, rtol=0)


def embed_parts(text: str):
    return [Text(text)]


def unit(vector_D: torch.Tensor) -> torch.Tensor:
    return vector_D / vector_D.norm()


def test_tokens_that_begin_every_text_do_not_count(bundle, monkeypatch):
    ids = bundle.tokenizer.encode("zq")[:1]
    monkeypatch.setattr(bundle.tokenizer, "begin", ids)
    states_TD = bundle.model.eval().hidden(collate([bundle.renderer.parts(embed_parts("a red circle"))]))[0].detach()
    torch.testing.assert_close(embed(bundle, ["a red circle"])[0], unit(states_TD[1:].mean(dim=0)), atol=1e-5, rtol=0)


def test_a_video_is_embedded_by_the_decoder(bundle, make_clip):
    vectors = embed(bundle, [Video(make_clip(2)), [Video(make_clip(2)), "What?"], Video(make_clip(3))])
    assert torch.pdist(vectors).min() > 1e-3


@pytest.mark.parametrize(
    ("prompts", "pool", "told"),
    [
        (["a"], "mean", "pool=mean is not known; "),
        ([], "decoder", "a list of prompts, at least one"),
        ("a text", "decoder", "a list of prompts, at least one"),
        (["a", ""], "decoder", "prompt 1: is empty; give it a text or a medium"),
        (["a"], "encoder", "prompt 0: holds no media; pool=encoder takes media of one modality"),
        ([[noise(0), hiss(1)]], "encoder", "holds audio and image; pool=encoder"),
        ([noise(0), hiss(1)], "encoder", r"features are \[16, 32\] wide; embed one modality at a time"),
    ],
)
def test_what_has_no_vector_is_refused(prompts, pool, told, bundle):
    with pytest.raises(UserError, match=told):
        embed(bundle, prompts, pool)


def test_a_text_over_the_context_is_refused_and_not_cut(bundle):
    with pytest.raises(TooLong, match="prompt 1: 601 tokens, over the context of 600; cut it into several"):
        embed(bundle, ["a", "1" * 601])

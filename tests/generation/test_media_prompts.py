"""Pictures anywhere in a turn, tiles, ratios kept, long recordings, videos: one count, one answer in any batch."""

import numpy as np
import pytest
import torch
from torch import nn

from mmgpt.config import build
from mmgpt.datasets.media import Audio, Image, Video
from mmgpt.datasets.sample import Message
from mmgpt.encoders.pretrained.timm import fill_from_tower
from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.trimming import TooLong
from mmgpt.model.bundle import new_bundle
from mmgpt.model.config import ModelConfig

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
TOWER = {
    "kind": "timm",
    "mean": (0.5,) * 3,
    "std": (0.3,) * 3,
    "interpolation": "bicubic",
    "crop": "squash",
    "image_size": 32,
}
WHISPER = {"kind": "whisper", "rate": 8000, "mels": 16, "hop": 80, "fft": 200, "positions": 50, "width": 32, "depth": 1}
CONFORMER = {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2, "stem": 4, "kernel": 5}
FOLD, LINEAR = {"kind": "fold", "stride": 2}, {"kind": "linear"}


def noise(height: int, width: int, seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hiss(seconds: float, seed: int) -> Audio:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(8000 * seconds)).astype(np.float32)
    return Audio(samples, rate=8000)


def tower(architecture: str, args: dict, **options) -> dict:
    return {**TOWER, **fill_from_tower({"architecture": architecture, "model_args": {**VIT, **args}}), **options}


@pytest.fixture
def assistant_with(tokenizer):
    """A loud random model of some encoders, each of which makes a difference."""

    def make(context: int = 1500, **encoders) -> Assistant:
        tree = {
            "decoder": {"width": 32, "depth": 2, "heads": 2, "context": context, "zero_init": False},
            "encoders": encoders,
            "adapters": {kind: FOLD if kind == "image" else LINEAR for kind in encoders},
        }
        bundle = new_bundle(build(ModelConfig, tree, "tiny model"), tokenizer, "plain")
        for name, parameter in bundle.model.encoders.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.2)
        with torch.no_grad():
            bundle.model.decoder.head.weight *= 20
        return Assistant(bundle)

    return make


def check(assistant: Assistant, prompts: list[list], counts: list[list[int]]) -> None:
    """Placeholders and tokens are as many as expected; together = alone; each prompt has an answer of its own."""
    told = []
    for prompt, expected in zip(prompts, counts, strict=True):
        rendered = assistant.renderer.prompt((Message.of("user", *prompt),))
        assert [medium.num_tokens for medium in rendered.media] == expected
        assert sum(rendered.ids.count(slot) for slot in assistant.model.placeholder_ids.values()) == sum(expected)
        told.append(assistant.ask(*prompt, max_new_tokens=12))
    together = assistant.ask(*prompts, max_new_tokens=12)
    assert [reply.tokens for reply in together] == [reply.tokens for reply in told]
    for one, alone in zip(together, told, strict=True):
        assert one.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert len({tuple(reply.tokens) for reply in told}) == len(prompts)


def test_several_pictures_stand_anywhere_in_a_turn(assistant_with):
    assistant = assistant_with(image=tower("vit_base_patch16_siglip_224", {"img_size": 32}))
    a, b = noise(30, 30, 0), noise(60, 20, 1)
    prompts = [[a, b, "What?"], ["Here", a, "and there", b], [b, a, "What?"], [a, "What?"], ["What?"], [a, a, a]]
    check(assistant, prompts, [[4, 4], [4, 4], [4, 4], [4], [], [4, 4, 4]])


def test_large_pictures_are_tiles_and_a_thumbnail(assistant_with):
    assistant = assistant_with(image=tower("vit_base_patch16_siglip_224", {"img_size": 32}, tiles=4))
    prompts = [[noise(32, 32, 0), "What?"], [noise(64, 64, 1), "What?"], [noise(30, 90, 2), noise(90, 30, 3), "What?"]]
    check(assistant, prompts, [[4], [20], [16, 16]])


def test_pictures_that_keep_their_ratio_take_as_many_tokens_as_their_grids(assistant_with):
    naflex = tower("naflexvit_base_patch16_siglip", {}, max_patches=32, multiple=2)
    prompts = [[noise(40, 40, 0), "What?"], [noise(20, 90, 1), "What?", noise(90, 20, 2)], [noise(64, 32, 3)]]
    counts = [[4], [5, 5], [8]]  # of grids of 4 x 4, 2 x 10, 10 x 2 and 8 x 4 patches, each folded by 2 x 2
    check(assistant_with(image=naflex), prompts, counts)


def test_long_recordings_are_encoded_in_pieces_of_a_conformer_and_in_whispers_windows(assistant_with):
    conformer = {**CONFORMER, "piece_seconds": 1.0, "max_seconds": 20}
    whisper = {**WHISPER, "heads": 2, "inner": 64, "max_seconds": 20}
    for encoder in (conformer, whisper):
        assistant = assistant_with(audio=encoder)
        prompts = [[hiss(seconds, at), "What?"] for at, seconds in enumerate((0.3, 3.4, 7.0))]
        counts = [
            [assistant.model.config.encoders["audio"].num_tokens(m.values.shape)] for m in media(assistant, prompts)
        ]
        assert counts[0] < counts[1] < counts[2]
        check(assistant, prompts, counts)


def media(assistant: Assistant, prompts: list[list]):
    return [one for p in prompts for one in assistant.renderer.prompt((Message.of("user", *p),)).media]


def test_a_video_among_pictures_and_sounds(assistant_with, make_clip):
    assistant = assistant_with(image=tower("vit_base_patch16_siglip_224", {"img_size": 32}), audio=CONFORMER)
    video, sound = Video(make_clip(2)), hiss(0.5, 0)
    heard = [one.num_tokens for one in media(assistant, [[sound], [video]]) if one.modality == "audio"]
    prompts = [[noise(30, 30, 0), video, "What?"], [video, sound], ["What?", Video(make_clip(3, sound=False))]]
    check(assistant, prompts, [[4, 4, 4, heard[1]], [4, 4, *heard[::-1]], [4, 4, 4]])


def test_a_prompt_over_the_context_names_the_media_that_weigh_most(assistant_with, make_clip):
    tiled = tower("vit_base_patch16_siglip_224", {"img_size": 32}, tiles=4)
    assistant = assistant_with(context=48, image=tiled)
    video = Video(make_clip(6), label="holiday.mp4")
    large, small = noise(64, 64, 0), noise(32, 32, 1)
    with pytest.raises(
        TooLong, match=r"too many for the context of 48 \(heaviest media: holiday.mp4 24, .* 20, .* 4\)"
    ):
        assistant.ask(small, large, video, "What?")

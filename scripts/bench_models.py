"""The models that generation is timed with: a ViT before a Llama, ours and transformers' LLaVA of equal shape."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from mmgpt.inputs.rendered import IGNORED, Medium, Rendered
from mmgpt.model.config import ModelConfig
from mmgpt.model.multimodal import MultimodalModel

SHAPES = {
    "23m": {"width": 384, "depth": 6, "heads": 6, "ffn_width": 1536, "vocabulary": 8192, "tied": False},
    "135m": {
        "width": 576,
        "depth": 30,
        "heads": 9,
        "kv_heads": 3,
        "ffn_width": 1536,
        "vocabulary": 49152,
        "tied": True,
    },
}
TOWER = {"image_size": 224, "patch_size": 16, "width": 192, "depth": 6, "heads": 6}
IMAGE, IMAGE_TOKENS = 3, 196
CONTEXT = 4096


def our_model(shape: str) -> MultimodalModel:
    """A ViT of 196 tokens before a Llama."""
    decoder = dict(SHAPES[shape])
    vocabulary = decoder.pop("vocabulary")
    tree = {
        "decoder": {**decoder, "context": CONTEXT},
        "encoders": {"image": {"kind": "vit", **TOWER}},
        "adapters": {"image": {"kind": "mlp"}},
    }
    return MultimodalModel(ModelConfig.model_validate(tree), vocabulary, {"image": IMAGE}).eval()


def their_model(shape: str) -> Any:
    """transformers' LLaVA of the same shape."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    sizes = SHAPES[shape]
    vision = SiglipVisionConfig(
        hidden_size=TOWER["width"],
        intermediate_size=4 * TOWER["width"],
        num_hidden_layers=TOWER["depth"],
        num_attention_heads=TOWER["heads"],
        image_size=TOWER["image_size"],
        patch_size=TOWER["patch_size"],
        vision_use_head=False,
    )
    text = LlamaConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["ffn_width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes.get("kv_heads", sizes["heads"]),
        vocab_size=sizes["vocabulary"],
        tie_word_embeddings=sizes["tied"],
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=sizes["tied"],
    )
    return LlavaForConditionalGeneration(config).eval()


def picture(seed: int) -> Medium:
    """Random bytes of a picture, as an encoder's `preprocess` gives them."""
    side = TOWER["image_size"]
    values = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Medium("image", values, IMAGE_TOKENS, f"picture {seed}")


def words(rng: random.Random, count: int) -> list[int]:
    """Random ids, none of them a placeholder."""
    return [rng.randrange(10, 8000) for _ in range(count)]


def prompt_of(ids: list[int], media: Sequence[Medium] = ()) -> Rendered:
    """A prompt as rendering gives it."""
    return Rendered(ids, [IGNORED] * len(ids), [0] * len(ids), list(range(len(ids))), list(media), "prompt", "")

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from mmgpt.generation.assistant import Assistant
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.bundle import Bundle, new_bundle

SHAPES = ("circle", "triangle", "rectangle")
COLOURS = ("red", "green", "blue", "teal")


def questions(image: int) -> list[list[Any]]:
    """Rows as easy-VQA has them: [question, answer, image_id]."""
    shape, colour = SHAPES[image % 3], COLOURS[image % 4]
    return [
        ["what shape is in the image?", shape, image],
        ["what is the color of the shape?", colour, image],
        ["does the image contain a circle?", "yes" if shape == "circle" else "no", image],
    ]


@pytest.fixture(scope="session")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with easy-VQA's layout: 12 pictures to train on, 7 others to be tested on."""
    root = tmp_path_factory.mktemp("data")
    for split, images in (("train", range(12)), ("test", range(20, 27))):
        folder = root / "easy_vqa" / split
        (folder / "images").mkdir(parents=True)
        for image in images:
            picture = PIL.Image.effect_noise((64, 64), 20 + 8 * image).convert("RGB")
            picture.save(folder / "images" / f"{image}.png")
        rows = [row for image in images for row in questions(image)]
        (folder / "questions.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def answerer(easy_vqa: Path, make_bundle: Callable[..., Bundle]) -> Assistant:
    """A random model whose tokenizer comes from the training questions; loud, so that its answers differ."""
    rows = json.loads((easy_vqa / "easy_vqa" / "train" / "questions.json").read_text())
    tokenizer = Tokenizer.train((str(text) for row in rows for text in row[:2]), 330)
    torch.manual_seed(0)
    bundle = new_bundle(make_bundle().model.config, tokenizer, "plain")
    with torch.no_grad():
        bundle.model.decoder.head.weight *= 20
    return Assistant(bundle)

"""mmgpt: train, evaluate and prompt GPT-4-style models from parts you choose.

The public names, imported when asked for, so that `import mmgpt` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmgpt.applications.pipeline import run_recipe as train
    from mmgpt.checkpoints.convert import convert
    from mmgpt.checkpoints.hub import push
    from mmgpt.config import UserError
    from mmgpt.datasets.media import Audio, Image, Video
    from mmgpt.datasets.sample import Message, Sample, Text
    from mmgpt.evaluation.run import evaluate
    from mmgpt.generation.assistant import Assistant, Choice, load
    from mmgpt.generation.decode import Reply
    from mmgpt.generation.prompts import FewShot

_PUBLIC = {
    "Assistant": "generation.assistant",
    "Audio": "datasets.media",
    "Choice": "generation.assistant",
    "FewShot": "generation.prompts",
    "Image": "datasets.media",
    "Message": "datasets.sample",
    "Reply": "generation.decode",
    "Sample": "datasets.sample",
    "Text": "datasets.sample",
    "UserError": "config",
    "Video": "datasets.media",
    "convert": "checkpoints.convert",
    "evaluate": "evaluation.run",
    "load": "generation.assistant",
    "push": "checkpoints.hub",
    "train": "applications.pipeline",
}

__all__ = [
    "Assistant",
    "Audio",
    "Choice",
    "FewShot",
    "Image",
    "Message",
    "Reply",
    "Sample",
    "Text",
    "UserError",
    "Video",
    "convert",
    "evaluate",
    "load",
    "push",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmgpt' has no attribute {name!r}")
    return getattr(import_module(f"mmgpt.{_PUBLIC[name]}"), "run_recipe" if name == "train" else name)


def __dir__() -> list[str]:
    return __all__

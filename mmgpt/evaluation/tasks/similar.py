"""Exemplars that are like the question: retrieval in-context example selection (RICES).

Source: Yang et al. 2022, arXiv:2109.05014; Alayrac et al. 2022, arXiv:2204.14198, appendix A.2.
Shape letters: R different questions, N items of the pool, D width, P pictures.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmgpt.config import UserError
from mmgpt.datasets.file_names import split_zip
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Part, Text
from mmgpt.evaluation.models.model import Model
from mmgpt.evaluation.tasks.exemplar_pool import Entry, Pool, identity
from mmgpt.evaluation.tasks.item import TaskItem
from mmgpt.files import name_disk_errors
from mmgpt.processor import pick_device

OPEN_CLIP = "open_clip:"
POOL_BATCH_SIZE = 32  # questions of the pool; a question of the task is embedded alone, so that no other one changes it
SIMILARITY_TIE = 1e-5  # similarities nearer than this are a tie: rounding differs between batches and machines

EmbedParts = Literal["media", "text", "both"]
PromptedItem = Sequence[Part]


class Embedder(NamedTuple):
    """Makes vectors of length 1 of questions, float32 (R, D); `name` tells them from those of another."""

    name: str
    embed: Callable[[Sequence[PromptedItem]], Tensor]


def open_embedder(name: str, model: Model | None) -> Embedder:
    """The embedder of a name: a pool of the model's `embed`, or `open_clip:FOLDER`.

    Raises:
        UserError: if the model cannot embed, or the folder holds no model of open_clip.
    """
    if name.startswith(OPEN_CLIP):
        return _open_clip(Path(name.removeprefix(OPEN_CLIP)))
    embed: Any = getattr(model, "embed", None)
    if model is None or embed is None:
        reason = "no model is given" if model is None else f"{model.name} gives no embeddings"
        raise UserError(f"embedder={name}: {reason}; say embedder: open_clip:FOLDER, a CLIP model saved by open_clip")
    return Embedder(
        f"{model.fingerprint()}/{name}", lambda questions: embed(questions, name, batch_size=POOL_BATCH_SIZE)
    )


def _open_clip(folder: Path) -> Embedder:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"{folder}: no model of open_clip, which is an open_clip_config.json and a .safetensors file; "
            "save it with open_clip.push_to_hf_hub.save_for_hf, or download it"
        )
    try:
        import open_clip  # takes a second
    except ImportError:
        raise UserError(f'embedder={OPEN_CLIP}{folder} needs open_clip; pip install "mmgpt[eval]"') from None
    try:
        clip, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: open_clip cannot read it ({error}); download it again") from None
    device = pick_device("auto")
    clip = clip.to(device).eval()

    @torch.inference_mode()
    def embed(questions: Sequence[PromptedItem]) -> Tensor:
        for part in (part for question in questions for part in question):
            if not isinstance(part, Image):
                raise UserError(f"{getattr(part, 'label', part)!r} is no picture, which is all that open_clip embeds")
        pixels_PCHW = torch.stack([prepare(part.load()) for one in questions for part in one])  # type: ignore[union-attr]
        features_PD = clip.encode_image(pixels_PCHW.to(device), normalize=True).float().cpu()
        means = [features.mean(dim=0) for features in features_PD.split([len(one) for one in questions])]
        return F.normalize(torch.stack(means), dim=-1)

    with weights[0].open("rb") as file:
        return Embedder(f"{OPEN_CLIP}{hashlib.file_digest(file, 'sha256').hexdigest()}", embed)


class Similar:
    """The items of a pool by how like a question they are, by cosine similarity.

    The pool is embedded once, in its own order; with `cache`, a folder, its vectors are kept there, in a file named by
    a hash of the embedder and of the pool's questions (of media with a path, by path, time and bytes).
    """

    def __init__(self, pool: Pool, embedder: Embedder, embed_parts: EmbedParts, cache: Path | None = None) -> None:
        self.pool, self.embedder, self.embed_parts = pool, embedder, embed_parts
        row_of: dict[tuple[int, int], int] = {}
        for row, (sample, numbers, _) in enumerate(self._questions()):
            row_of.update({(sample, number): row for number in numbers})
        self.entries = sorted(pool.entries, key=lambda entry: entry.key)  # the order of ties
        self.rows_N = torch.tensor([row_of[entry.sample, entry.number] for entry in self.entries])
        self.vectors_RD = self._embed_all() if cache is None else self._cached(cache)

    def nearest(self, item: TaskItem) -> Iterator[Entry]:
        """All of the pool, the most similar first; ties by key."""
        (query_D,) = self.embedder.embed([question_of(item, self.embed_parts)])
        alike_N = torch.round((self.vectors_RD @ query_D)[self.rows_N] / SIMILARITY_TIE)
        return (self.entries[at] for at in torch.argsort(alike_N, descending=True, stable=True).tolist())

    def _questions(self) -> Iterator[tuple[int, list[int], PromptedItem]]:
        """A sample's number, the numbers of its items that ask the same, and what these ask."""
        for sample in range(len(self.pool.source)):
            asked: dict[tuple[Part, ...], list[int]] = {}
            for number, item in enumerate(self.pool.items(sample)):
                asked.setdefault(tuple(question_of(item, self.embed_parts)), []).append(number)
            yield from ((sample, numbers, question) for question, numbers in asked.items())

    def _embed_all(self) -> Tensor:
        questions = (question for _, _, question in self._questions())
        chunks = iter(lambda: list(islice(questions, POOL_BATCH_SIZE)), [])
        return torch.cat([self.embedder.embed(chunk) for chunk in chunks])

    def _cached(self, folder: Path) -> Tensor:
        digest = hashlib.sha256(json.dumps([self.embedder.name, self.embed_parts]).encode())
        for _, _, question in self._questions():
            digest.update(json.dumps([_stamp(part) for part in question]).encode())
        file = folder / f"similar-{digest.hexdigest()[:32]}.safetensors"
        if file.is_file():
            return load_file(file)["vectors"]
        vectors_RD = self._embed_all()
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")  # several processes may write the same
        with name_disk_errors(file):
            save_file({"vectors": vectors_RD}, draft)
            draft.replace(file)
        return vectors_RD


def question_of(item: TaskItem, embed_parts: EmbedParts) -> list[Part]:
    """The parts of an item's user turns that are embedded.

    Raises:
        UserError: if there are none.
    """
    parts = [part for message in item.messages if message.role == "user" for part in message.parts]
    kept = [part for part in parts if embed_parts == "both" or isinstance(part, Text) == (embed_parts == "text")]
    if not kept:
        other = "text" if embed_parts == "media" else "media"
        raise UserError(f"{item.key}: has no {embed_parts} to be found by; say shots.embed_parts: {other}")
    return kept


def _stamp(part: Part) -> list[Any]:
    if isinstance(part, Text):
        return ["text", part.text]
    path = part.path
    file, _ = split_zip(path or "")
    seen = os.stat(file) if path and os.path.exists(file) else None
    return [part.modality, identity(part), *((seen.st_mtime_ns, seen.st_size) if seen else ())]

"""Features of frozen encoders on disk, so that a medium is encoded once for all epochs, stages, runs and evaluations.

A file a medium, found by a hash of its prepared tensor, in a folder a version of the encoder, found by a hash of its
config and weights. Media are encoded one by one, so that what is read back is to the bit what would be computed.

Shape letters: M media, P pieces, F features of the longest piece, E width of the encoder.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import Config
from mmgpt.files import cache_folder
from mmgpt.inputs.batch import MediaBatch
from mmgpt.model.multimodal import MultimodalModel

LIMIT_BYTES = 50 * 10**9  # of the features of one version of an encoder


class FeatureCache:
    """The features of one encoder's media; `hits` and `misses` count those that were read and computed."""

    def __init__(self, encoder: nn.Module, config: Config, limit: int = LIMIT_BYTES) -> None:
        """Open the cache of an encoder as it is now; its weights must stay so.

        Args:
            encoder: frozen.
            config: the encoder's.
            limit: bytes of features; what comes over it is computed anew each time, and told once.
        """
        self.encoder, self.limit = encoder, limit
        self.folder = cache_folder() / "features" / _fingerprint(encoder, config)
        self.num_bytes = sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))
        self.hits = self.misses = 0
        self.is_open = True  # for more

    def encode(self, media: MediaBatch) -> Tensor:
        """The features (P, F, E) of all pieces of a batch's media in order, padded to the longest piece."""
        pieces: list[Tensor] = []
        for values, shape in zip(media.values, media.shapes, strict=True):
            own = values[tuple(slice(0, size) for size in shape.tolist())]
            pieces += self._features(own.contiguous(), shape).unbind()
        return pad_sequence(pieces, batch_first=True)

    def _features(self, values: Tensor, shape: Tensor) -> Tensor:
        """Of one medium, (its pieces, F, E)."""
        file = self._file(values)
        found = _read(file)
        if found is not None:
            self.hits += 1
            return found.to(values.device)
        self.misses += 1
        self.encoder.eval()
        with torch.no_grad():
            features_PFE: Tensor = self.encoder(values[None], shape[None])
        self._write(file, features_PFE)
        return features_PFE

    def _file(self, values: Tensor) -> Path:
        device = values.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        hashed = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} {device} {precision}".encode())
        hashed.update(values.cpu().view(-1).view(torch.uint8).numpy().data)
        name = hashed.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _write(self, file: Path, features_PFE: Tensor) -> None:
        if not self.is_open:
            return
        if self.num_bytes + features_PFE.nbytes > self.limit:
            return self._close(f"it holds {self.num_bytes / 1e9:.1f} GB, the most that it may")
        draft = file.with_suffix(f".{os.getpid()}.draft")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features_PFE.cpu().contiguous()}, draft)
            draft.replace(file)
        except (OSError, SafetensorError) as error:  # safetensors wraps what the disk says
            draft.unlink(missing_ok=True)
            return self._close(f"the disk refuses ({error})")
        self.num_bytes += features_PFE.nbytes
        return None

    def _close(self, why: str) -> None:
        self.is_open = False
        warnings.warn(
            f"cache_features: no more features are kept in {self.folder}: {why}; other media are encoded each time. "
            "Delete old folders beside it, or set MMGPT_CACHE to a larger disk",
            stacklevel=2,
        )


def cache_features(model: MultimodalModel, modalities: Iterable[str]) -> None:
    """Let a model's encoders of these modalities, and no others, read and write their caches from now on."""
    model.feature_caches = {
        name: FeatureCache(model.encoders[name], model.config.encoders[name]) for name in modalities
    }


def _fingerprint(encoder: nn.Module, config: Any) -> str:
    """A hash of an encoder's config and weights, wherever they lie and came from."""
    described = config.model_dump_json(exclude={"pretrained", "revision", "pickles"})
    found = hashlib.sha256(f"{type(encoder).__name__} {described}".encode())
    for name, weight in sorted(encoder.state_dict().items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def _read(file: Path) -> Tensor | None:
    """What a file holds; None where there is none, or a damaged one."""
    try:
        with safe_open(file, framework="pt") as stored:
            features: Tensor = stored.get_tensor("features")
            return features
    except (OSError, SafetensorError):
        return None

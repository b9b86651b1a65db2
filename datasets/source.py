"""What every reader shares: a source of Samples by index, and paths that stay below the data root."""

from abc import ABC, abstractmethod
from pathlib import Path

from pydantic import Field, PositiveFloat

from mmgpt.config import Config, UserError
from mmgpt.datasets.sample import Sample


class SourceConfig(Config):
    """The keys that every reader takes."""

    label: str | None = None  # the name under which its loss is logged; the file's name if not given
    weight: PositiveFloat = 1.0  # share in a mixture, against the other weights
    epochs: PositiveFloat | None = None  # times it is gone through, and then no more; the stage's if not given
    split: str = "train"  # fills {split} in paths; worlds and holdouts know train and test
    limit: int | None = Field(default=None, gt=0)  # read only the first so many samples


class Source(ABC):
    """A sequence of samples: `source[i]` depends on nothing but the config and `i`."""

    name: str
    is_remote = False  # samples come over a network: several are worth asking for at a time

    def __init__(self, config: SourceConfig, num_samples: int, origin: Path | str) -> None:
        if num_samples == 0:
            raise UserError(f"{origin}: holds no samples; check the path and what the reader is told to keep")
        self.num_samples = min(num_samples, config.limit or num_samples)

    def __len__(self) -> int:
        return self.num_samples

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, 0 <= index < len(self)."""


def resolve(data_root: Path, path: str) -> Path:
    """A path of a config below the data root.

    Raises:
        UserError: if nothing is there, or the path leaves the root.
    """
    full = data_root / path
    if not full.resolve().is_relative_to(data_root.resolve()):
        raise UserError(f"{path}: leads out of the data root {data_root}; give a path below it, or another --data-root")
    if not full.exists():
        raise UserError(f"{full}: no such file or folder; set --data-root to the folder that holds {path}")
    return full

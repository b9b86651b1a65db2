"""The one list of all readers. A new reader is a config class, a source class, and a line in `SOURCES`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mmgpt.config import Config, apply_overrides, build, find_config, read_yaml
from mmgpt.datasets.readers.composed import ComposedConfig, ComposedSource
from mmgpt.datasets.readers.episodes import EpisodesConfig, EpisodeSource
from mmgpt.datasets.readers.kaldi import KaldiConfig, KaldiSource
from mmgpt.datasets.readers.messages import MessagesConfig, MessagesSource
from mmgpt.datasets.readers.official_layouts import (
    CocoCaptionsConfig,
    CocoCaptionsSource,
    LibriSpeechConfig,
    LibriSpeechSource,
    VqaConfig,
    VqaSource,
)
from mmgpt.datasets.readers.shards import ShardsConfig, ShardSource
from mmgpt.datasets.readers.table import TableSource
from mmgpt.datasets.readers.table_config import TableConfig
from mmgpt.datasets.readers.text import TextConfig, TextSource
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.datasets.worlds.world import WorldConfig, WorldSource

Plain = (
    TextConfig
    | MessagesConfig
    | TableConfig
    | CocoCaptionsConfig
    | VqaConfig
    | LibriSpeechConfig
    | KaldiConfig
    | ShardsConfig
    | ComposedConfig
    | WorldConfig
)


class EpisodesOfConfig(EpisodesConfig):
    """Episodes of the samples of another source."""

    of: Annotated[Plain, Field(discriminator="reader")]


AnySource = Annotated[Plain | EpisodesOfConfig, Field(discriminator="reader")]
SOURCES: dict[type[SourceConfig], Any] = {
    TextConfig: TextSource,
    MessagesConfig: MessagesSource,
    TableConfig: TableSource,
    CocoCaptionsConfig: CocoCaptionsSource,
    VqaConfig: VqaSource,
    LibriSpeechConfig: LibriSpeechSource,
    KaldiConfig: KaldiSource,
    ShardsConfig: ShardSource,
    ComposedConfig: ComposedSource,
    WorldConfig: WorldSource,
    EpisodesOfConfig: lambda config, data_root: EpisodeSource(config, open_source(config.of, data_root)),
}


class _Alone(Config):
    source: AnySource

    @classmethod
    def written(cls, path: list[str], tree: Mapping[str, Any]) -> list[str]:
        """Its file holds the source alone."""
        return path[1:] or path


def load_source(path: str | Path, overrides: Sequence[str] = ()) -> SourceConfig:
    """Read a file that holds one source, such as configs/data/fsdd.yaml, and lay overrides like `split=test` over it.

    Raises:
        UserError: if the file is absent, not YAML, or does not fit its reader.
    """
    tree = apply_overrides(read_yaml(path), overrides)
    return build(_Alone, {"source": tree}, str(find_config(path))).source


def open_source(config: SourceConfig, data_root: Path | str = ".") -> Source:
    """Open the source that a config describes.

    Raises:
        UserError: if its files are absent, of another kind, or hold no samples.
    """
    source: Source = SOURCES[type(config)](config, Path(data_root))
    return source

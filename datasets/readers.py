"""The one list of all readers. A new reader is a config class, a source class, and a line in `SOURCES`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mmgpt.datasets.composed import ComposedConfig, ComposedSource
from mmgpt.datasets.layouts import (
    CocoCaptionsConfig,
    CocoCaptionsSource,
    LibriSpeechConfig,
    LibriSpeechSource,
    VqaConfig,
    VqaSource,
)
from mmgpt.datasets.messages import MessagesConfig, MessagesSource
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.datasets.table import TableConfig, TableSource
from mmgpt.datasets.text import TextConfig, TextSource
from mmgpt.datasets.worlds.world import WorldConfig, WorldSource

AnySource = Annotated[
    TextConfig
    | MessagesConfig
    | TableConfig
    | CocoCaptionsConfig
    | VqaConfig
    | LibriSpeechConfig
    | ComposedConfig
    | WorldConfig,
    Field(discriminator="reader"),
]
SOURCES: dict[type[SourceConfig], Any] = {
    TextConfig: TextSource,
    MessagesConfig: MessagesSource,
    TableConfig: TableSource,
    CocoCaptionsConfig: CocoCaptionsSource,
    VqaConfig: VqaSource,
    LibriSpeechConfig: LibriSpeechSource,
    ComposedConfig: ComposedSource,
    WorldConfig: WorldSource,
}


def open_source(config: SourceConfig, data_root: Path | str = ".") -> Source:
    """Open the source that a config describes.

    Raises:
        UserError: if its files are absent, of another kind, or hold no samples.
    """
    source: Source = SOURCES[type(config)](config, Path(data_root))
    return source

"""Settings of outside checkpoints, read so that none is guessed."""

from pathlib import Path
from typing import Any

from mmgpt.config import UserError
from mmgpt.files import read_json


class Settings:
    """A checkpoint's JSON object, whose every wanted key must be there."""

    def __init__(self, settings: dict[str, Any], where: str) -> None:
        self.settings, self.where = settings, where

    def read(self, key: str) -> Any:
        """A setting.

        Raises:
            UserError: if it is missing.
        """
        if key not in self.settings:
            raise UserError(f"{self.where}: {key} is missing, and is not guessed; add what its authors say")
        return self.settings[key]

    def number(self, key: str) -> int:
        """A setting that is a whole number above zero.

        Raises:
            UserError: if it is missing or something else.
        """
        value = self.read(key)
        if not isinstance(value, int) or value <= 0:
            raise UserError(f"{self.where}: {key}={value!r} must be a whole number above zero")
        return value

    def require(self, key: str, *supported: Any) -> None:
        """Refuse a setting that is none of the supported ones.

        Raises:
            UserError: if it is missing or something else.
        """
        value = self.read(key)
        if value not in supported:
            raise UserError(
                f"{self.where}: {key}={value!r} is not supported, only {' and '.join(map(repr, supported))}; "
                "take a checkpoint that has it so"
            )


def preprocessor_of(folder: Path) -> Settings:
    """How sounds are made ready for a checkpoint: its preprocessor_config.json, or that part of processor_config.json.

    Raises:
        UserError: if it has neither.
    """
    alone, joined = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not alone.is_file() and joined.is_file():
        part = read_json(joined).get("feature_extractor")
        if isinstance(part, dict):
            return Settings(part, f"{joined}: feature_extractor")
    return Settings(read_json(alone), str(alone))

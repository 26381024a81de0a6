"""The folder of a run: whose it is, and whether this command may go on in it."""

import json
import os
from pathlib import Path
from typing import Any

from bimkern.train.config import Config, ConfigError, differences, from_json, to_json

_CONFIG = "config.json"


class RunFolder:
    """A run's folder: config.json, metrics.jsonl, tensorboard/, checkpoints/, pictures/, exported/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.exported = path / "exported"

    def open(self, config: Config) -> None:
        """Create the folder, or make sure that it holds a run of this very config.

        Raises:
            ConfigError: the folder cannot be written, is not a run's, or belongs to a run with another config.
        """
        wanted = to_json(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise ConfigError(f"--out {self.path} cannot be used: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"--out {self.path} cannot be written")
        saved = self._saved_config()
        if saved is None and occupied:
            raise ConfigError(f"--out {self.path} holds files but no run; choose an empty or a new folder")
        changed = differences(saved, wanted) if saved is not None else []
        if changed:
            raise ConfigError(
                f"--out {self.path} holds a run with other settings ({'; '.join(changed)}); choose another --out"
            )
        for folder in (self.checkpoints, self.pictures, self.exported):
            folder.mkdir(exist_ok=True)
        scratch = self.path / f".{_CONFIG}"
        scratch.write_text(json.dumps(wanted, indent=2) + "\n")
        os.replace(scratch, self.path / _CONFIG)

    def config(self) -> Config | None:
        """Read the config of the run that the folder holds; None where it holds none.

        Raises:
            ConfigError: the config is damaged, or of another version of this program.
        """
        saved = self._saved_config()
        try:
            return None if saved is None else from_json(saved)
        except ConfigError as error:
            raise ConfigError(f"{self.path / _CONFIG} cannot be understood ({error})") from error

    def _saved_config(self) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = json.loads((self.path / _CONFIG).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.path / _CONFIG} is damaged ({error})") from error
        return saved

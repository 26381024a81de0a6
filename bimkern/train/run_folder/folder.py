"""The folder of a run: which run it belongs to, and whether this process may use it."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from bimkern.distributed.ranks import Ranks
from bimkern.files import atomic
from bimkern.files.lock import LOCK, InUse, locked
from bimkern.files.utf8 import WHY_NOT, is_utf8
from bimkern.train.config.run import Config, ConfigError, TrainingConfig
from bimkern.train.config.serialize import STARTS, from_json, refuse_other, to_json
from bimkern.train.run_folder.dataset_manifest import QUARANTINE
from bimkern.train.run_folder.image_records import IMAGES

_CONFIG = "config.json"
_INIT = "init.json"
_NORMALIZATION = "normalization.json"
# What a run leaves that ended before it wrote config.json.
_MADE_FIRST = {LOCK, _INIT, _NORMALIZATION, IMAGES, QUARANTINE, "checkpoints", "pictures", "exported"}
_CLAIMED: WeakValueDictionary[Path, "RunFolder"] = WeakValueDictionary()  # by runs of this process


class RunFolder:
    """A run's folder: config.json, images.jsonl, metrics.jsonl, tensorboard/, checkpoints/, pictures/, exported/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.exported = path / "exported"
        self.init_report = path / _INIT  # what became of the weights that the run started from
        self.normalization = path / _NORMALIZATION  # mean and std of the images, if they were measured
        self._lock: ExitStack | None = None  # holds the folder

    def open(self, config: TrainingConfig) -> None:
        """Create the folder, or make sure that it holds a run of this very config.

        Raises:
            ConfigError: the folder cannot be written or is not UTF-8, is not a run's, belongs to a run with another
                config, or to a process that is running.
        """
        if not is_utf8(self.path):
            raise ConfigError(f"--out {self.path} cannot be used: {WHY_NOT}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = {path.name for path in self.path.iterdir() if not atomic.is_scratch(path)} - _MADE_FIRST
        except OSError as error:
            raise ConfigError(f"--out {self.path} cannot be used: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"--out {self.path} cannot be written")
        with ExitStack() as stack:
            self._claim()
            stack.callback(self.close)
            saved = self._saved_config()
            if saved is None and foreign:
                raise ConfigError(f"--out {self.path} holds files but no run; choose an empty or a new folder")
            if saved is not None:
                refuse_other(saved, config, f"--out {self.path} holds a run", "choose another --out", resumes=True)
            try:
                for folder in (self.checkpoints, self.pictures, self.exported):
                    folder.mkdir(exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--out {self.path} cannot be used: {error.strerror}") from error
            stack.pop_all()

    def record(self, config: TrainingConfig, start: Mapping[str, Any] | None = None) -> None:
        """Write config.json, after it is certain that this run may use the folder.

        Args:
            config: of the run.
            start: what this start was resolved to, as JSON; it follows those of earlier starts.

        Raises:
            ConfigError: it cannot be written.
        """
        starts = [*(self._saved_config() or {}).get(STARTS, []), *([] if start is None else [start])]
        config = replace(config, run=replace(config.run, extend=False))  # done, and no part of a run like this one
        try:
            atomic.write_json(self.path / _CONFIG, to_json(config) | {STARTS: starts})
        except OSError as error:
            raise ConfigError(f"--out {self.path} cannot be written ({error})") from error

    def share_images(self, ranks: Ranks) -> None:
        """Give the images of rank 0, and its quarantine, to the folders of other ranks, which then resume with them."""
        files = [self.path / name for name in (IMAGES, QUARANTINE)]
        with ranks.patient():  # a disk may be slow
            texts = ranks.broadcast_object([file.read_text() if file.exists() else "" for file in files])
        if ranks.rank:
            for file, text in zip(files, texts, strict=True):
                file.write_text(text)

    def close(self) -> None:
        """Release the folder; the end of the process does so, too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has_picture(self, picture: Path) -> bool:
        """Return whether a picture is that of the newest checkpoint, or a later one."""
        saved = [path.stat().st_mtime for path in self.checkpoints.iterdir()]
        return picture.is_file() and picture.stat().st_mtime >= max(saved, default=0.0)

    @property
    def has_checkpoint(self) -> bool:
        return any(self.checkpoints.glob("step-*"))

    @property
    def begun(self) -> bool:
        """Whether a run has begun to train here."""
        return (self.path / _CONFIG).is_file()

    def config(self) -> Config | None:
        """Read the config of the pre-training run that the folder holds; None where it holds none.

        Raises:
            ConfigError: it holds a run of another task, or its config cannot be read, or is damaged or older.
        """
        saved = self._saved_config()
        kind = Config.__name__ if saved is None else saved.get("type", Config.__name__)
        if kind != Config.__name__:
            raise ConfigError(f"{self.path} is no pre-training run, but one of {kind}; take what is in {self.exported}")
        try:
            return None if saved is None else from_json(saved)
        except ConfigError as error:
            raise ConfigError(f"{self.path / _CONFIG} cannot be understood ({error})") from error

    def _claim(self) -> None:
        """Hold the folder for this run until it is closed, or the process ends, however it ends."""
        if self._lock is not None:
            return
        holder = _CLAIMED.get(self.path.resolve())
        if holder is not None and holder._lock is not None:
            raise ConfigError(f"--out {self.path} is in use by another run of this process; choose another")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
            except InUse as error:
                raise ConfigError(f"--out {self.path} is in use by {error}; choose another") from None
            except OSError as error:
                raise ConfigError(f"--out {self.path} cannot be locked ({error.strerror})") from error
            self._lock = stack.pop_all()
        _CLAIMED[self.path.resolve()] = self

    def _saved_config(self) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = json.loads((self.path / _CONFIG).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.path / _CONFIG} is damaged ({error})") from error
        except OSError as error:
            raise ConfigError(f"{self.path / _CONFIG} cannot be read ({error.strerror})") from error
        return saved

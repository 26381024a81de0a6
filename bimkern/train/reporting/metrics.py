"""Metrics: one JSON object per logged step in metrics.jsonl, the same as TensorBoard events, and for other loggers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bimkern.files import jsonl
from bimkern.files.append import AppendOnlyFile
from bimkern.train.config.run import ConfigError, TrainingConfig
from bimkern.train.config.serialize import to_json
from bimkern.train.reporting.history import History
from bimkern.train.reporting.loggers import logger
from bimkern.train.reporting.loggers.follower import Follower
from bimkern.train.reporting.loggers.logger import Logger
from bimkern.train.reporting.pictures import KeptPictures
from bimkern.train.reporting.scalars import Scalar, finite_numbers, hyperparameters
from bimkern.train.run_folder.folder import RunFolder

FILE = "metrics.jsonl"


def refuse_older(folder: Path) -> None:
    """Make sure that the records of a run, if there are any, hold the loss of every stage.

    Raises:
        ConfigError: they do not, since another version wrote them.
    """
    path = folder / FILE
    records = jsonl.read(path)
    if records and "loss_per_stage" not in records[0]:
        raise ConfigError(f"{path} is of another version of bimkern, without loss_per_stage; choose another --out")


class Metrics:
    """The metrics and pictures of a run, open for appending."""

    def __init__(
        self,
        folder: Path,
        *,
        after_step: int,
        pictures: KeptPictures | None = None,
        loggers: Mapping[str, Logger] | None = None,
        config: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Open the metrics of a run and drop the records after a step.

        Args:
            folder: of the run.
            after_step: the last step that stands.
            pictures: those that are kept of saves.
            loggers: what else the run is logged to, by name.
            config: of the run, flat.

        Raises:
            ConfigError: a logger cannot begin a run.
        """
        from bimkern.train.reporting.tensorboard import (
            TensorBoard,  # here: its import takes 0.15 s, which --help spares
        )

        self.history = History()
        self._path = folder / FILE
        self._lines = AppendOnlyFile(self._path)
        self._pictures = pictures or KeptPictures(folder / "pictures", num_steps=1)
        self._board = TensorBoard(folder / "tensorboard")
        self.cut_back(after_step)
        if config:
            self._board.hyperparameters(config, "loss")
        self._followers: list[Follower] = []
        try:
            for name, service in (loggers or {}).items():
                self._followers.append(Follower(name, service, self._path, self._pictures, config or {}))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, config: TrainingConfig, pictures: KeptPictures, folder: RunFolder, *, after_step: int) -> "Metrics":
        """Open those of a run, with the loggers that its config names."""
        return cls(
            folder.path,
            after_step=after_step,
            pictures=pictures,
            loggers=logger.choose(config.run.log),
            config=hyperparameters(to_json(config)),
        )

    def cut_back(self, after_step: int) -> None:
        """Drop the records after a step, in place, which needs no disk space."""

        def stands(line: bytes) -> bool:
            record = jsonl.parse(line)
            if record is None or record["step"] > after_step:
                return False
            self.history.add(record)
            return True

        self.history = History()
        size = 0
        with self._path.open("rb") as file:
            for line in file:
                if not (line.endswith(b"\n") and stands(line)):
                    break
                size += len(line)
        self._lines.truncate(size, keep=stands)
        self._board.cut_back(after_step)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record; numbers that are not finite become null, as JSON requires."""
        record = {name: _finite(value) for name, value in record.items()}
        self.history.add(record)
        self._lines.append((json.dumps(record, allow_nan=False) + "\n").encode())
        self._board.numbers(record["step"], finite_numbers(record))

    def log_picture(self, step: int, path: Path) -> None:
        """Add the picture that is kept of a save; any thread may."""
        self._board.picture(step, path)

    def publish(self, step: int) -> None:
        """Have everything up to the step of a checkpoint sent to the other loggers; any thread may."""
        for follower in self._followers:
            follower.publish(step)

    def sync(self) -> None:
        """Sync the records to disk, so that no checkpoint is ahead of them after a power cut."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
        self._board.close()
        for follower in self._followers:
            follower.close()


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

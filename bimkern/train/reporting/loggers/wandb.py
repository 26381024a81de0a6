"""Weights & Biases. Its own variables choose the server, the project and whether it is online, such as WANDB_MODE."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from bimkern import optional, pieces
from bimkern.train.reporting.loggers.logger import LoggedRun, Logger
from bimkern.train.reporting.scalars import Scalar

_PROJECT = "bimkern"


@pieces.register(Logger)
@dataclass(frozen=True)
class Wandb:
    """A run of Weights & Biases."""

    package: ClassVar[str | None] = "wandb"

    def open(self, run: LoggedRun) -> "_Run":
        return _Run(run)


class _Run:
    def __init__(self, run: LoggedRun) -> None:
        self._wandb: Any = optional.load("wandb")
        self.id = run.id or uuid4().hex[:8]
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", run.folder.name),
            id=self.id,
            resume="allow",
            dir=str(run.folder),
        )

    def hyperparameters(self, values: Mapping[str, Scalar]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self._run.log({path.stem.partition("-")[0]: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()

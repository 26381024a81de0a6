"""metrics.csv: a row for every logged step, a column for every number."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bimkern import pieces
from bimkern.files import atomic
from bimkern.train.reporting.loggers.logger import LoggedRun, Logger
from bimkern.train.reporting.scalars import Scalar

_FILE = "metrics.csv"


@pieces.register(Logger)
@dataclass(frozen=True)
class CSV:
    """A table in the run folder."""

    package: ClassVar[str | None] = None

    def open(self, run: LoggedRun) -> "_Table":
        return _Table(run.folder / _FILE)


class _Table:
    """Appends rows. A number that was not known before, such as a held-out loss, adds a column to all of them."""

    id = _FILE

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)  # a row that a killed process did not finish
            with path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])

    def hyperparameters(self, values: Mapping[str, Scalar]) -> None:
        """Leave them to config.json."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step} | dict(values)
        if new := [name for name in row if name not in self._columns]:
            self._widen([*self._columns, *new])
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError:
            os.truncate(self._path, size)
            raise

    def picture(self, step: int, path: Path) -> None:
        """Leave it where it is."""

    def close(self) -> None:
        pass

    def _widen(self, columns: list[str]) -> None:
        rows = []
        if self._path.is_file():
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        with atomic.replaced(self._path) as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns

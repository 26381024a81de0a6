"""metrics.jsonl: one JSON object per logged step, and the same numbers as TensorBoard events."""

import json
import math
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

FILE = "metrics.jsonl"


def read(folder: Path) -> list[dict[str, Any]]:
    """Read all records of a run; a line torn by a killed process is left out."""
    path = folder / FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class Metrics:
    """Append records to a run's metrics."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Open the metrics of a run and drop what was logged after a step."""
        self._folder = folder
        self._open(after_step)

    def cut_back(self, after_step: int) -> None:
        """Drop what was logged after a step."""
        self.close()
        self._open(after_step)

    def _open(self, after_step: int) -> None:
        kept = [record for record in read(self._folder) if record["step"] <= after_step]
        scratch = self._folder / f".{FILE}"
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(scratch, self._folder / FILE)
        self._file = (self._folder / FILE).open("a")
        self._board = SummaryWriter(self._folder / "tensorboard", purge_step=after_step + 1)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record; a number that is not finite becomes null, which every JSON reader takes."""
        record = {name: _finite(value) for name, value in record.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in record.items():
            for i, scalar in enumerate(value if isinstance(value, list) else [value]):
                if scalar is not None:
                    tag = f"{name}/{i + 1}" if isinstance(value, list) else name
                    self._board.add_scalar(tag, scalar, record["step"])

    def sync(self) -> None:
        """Bring what was logged onto the disk, so that no checkpoint is ahead of it after a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

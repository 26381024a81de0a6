"""metrics.jsonl: one JSON object per logged step, and the same numbers as TensorBoard events."""

import json
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
        """Open the metrics of a run and drop what was logged after a step, so that no step stands twice."""
        kept = [record for record in read(folder) if record["step"] <= after_step]
        scratch = folder / f".{FILE}"
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(scratch, folder / FILE)
        self._file = (folder / FILE).open("a")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=after_step + 1)

    def log(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            for i, scalar in enumerate(value if isinstance(value, list) else [value]):
                if scalar is not None:
                    tag = f"{name}/{i + 1}" if isinstance(value, list) else name
                    self._board.add_scalar(tag, scalar, record["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()

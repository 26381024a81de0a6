"""Metrics: one JSON object per logged step in metrics.jsonl, and the same numbers as TensorBoard events.

Events are encoded by tensorboard but appended here: after one event that found the disk full, its own writer raises at
every later one, even if there is space again.
"""

import io
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bimkern.files import jsonl
from bimkern.files.append import AppendOnlyFile
from bimkern.train.config.run import ConfigError
from bimkern.train.reporting.history import History

FILE = "metrics.jsonl"


def read(folder: Path) -> History:
    """Read the records of a run; a torn line is skipped."""
    history = History()
    for record in jsonl.read(folder / FILE):
        history.add(record)
    return history


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
    """The metrics of a run, open for appending."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Open the metrics of a run and drop the records after a step."""
        self.history = History()
        self._path = folder / FILE
        self._lines = AppendOnlyFile(self._path)
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._events = AppendOnlyFile(board / name)
        self._events.append(_framed(Event(wall_time=time.time(), file_version="brain.Event:2")))
        self.cut_back(after_step)

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
        start = SessionLog(status=SessionLog.START)  # readers then drop this step and later ones
        self._events.append(_framed(Event(wall_time=time.time(), step=after_step + 1, session_log=start)))

    def log(self, record: dict[str, Any]) -> None:
        """Append a record; numbers that are not finite become null, as JSON requires."""
        record = {name: _finite(value) for name, value in record.items()}
        self.history.add(record)
        self._lines.append((json.dumps(record, allow_nan=False) + "\n").encode())
        scalars = [
            Summary.Value(tag=f"{name}/{i + 1}" if isinstance(value, list) else name, simple_value=scalar)
            for name, value in record.items()
            for i, scalar in enumerate(value if isinstance(value, list) else [value])
            if scalar is not None
        ]
        self._events.append(_framed(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=scalars))))

    def sync(self) -> None:
        """Sync the records to disk, so that no checkpoint is ahead of them after a power cut."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def _framed(event: Any) -> bytes:
    """Encode an event as in a TensorBoard file: its length, its content, and a checksum of each."""
    frame = io.BytesIO()
    RecordWriter(frame).write(event.SerializeToString())
    return frame.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

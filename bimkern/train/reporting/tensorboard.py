"""TensorBoard events of a run: numbers, pictures over time, and hyperparameters.

Events are encoded by tensorboard but appended here: after one event that found the disk full, its own writer raises at
every later one, even if there is space again.
"""

import io
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from bimkern.files.append import AppendOnlyFile
from bimkern.train.reporting.scalars import Scalar


class TensorBoard:
    """The event file of one process."""

    def __init__(self, folder: Path) -> None:
        """Begin a file in a folder."""
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendOnlyFile(folder / name)
        self._lock = threading.Lock()  # pictures come from the thread that draws them
        self._append(file_version="brain.Event:2")

    def cut_back(self, after_step: int) -> None:
        """Have readers drop the events after a step."""
        self._append(step=after_step + 1, session_log=SessionLog(status=SessionLog.START))

    def hyperparameters(self, values: Mapping[str, Scalar], metric: str) -> None:
        """Add a session to the HPARAMS tab, which compares the last value of a metric."""
        parameters = [hparams.HParam(name) for name in values]
        self._append(summary=hparams.hparams_config_pb(parameters, [hparams.Metric(metric)]))
        self._append(summary=hparams.hparams_pb(dict(values)))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=Summary(value=scalars))

    def picture(self, step: int, path: Path) -> None:
        """Add a PNG."""
        encoded = path.read_bytes()
        width, height = struct.unpack(">II", encoded[16:24])
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
        self._append(step=step, summary=Summary(value=[Summary.Value(tag=path.stem.partition("-")[0], image=image)]))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _append(self, **content: Any) -> None:
        """Append an event, as in a TensorBoard file: its length, its content, and a checksum of each."""
        frame = io.BytesIO()
        RecordWriter(frame).write(Event(wall_time=time.time(), **content).SerializeToString())
        with self._lock:
            self._file.append(frame.getvalue())

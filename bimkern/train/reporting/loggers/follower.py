"""A follower sends a logger what metrics.jsonl holds, in a thread of its own, once a checkpoint covers it.

Neither a resumed run nor a return to a checkpoint takes back a record that the checkpoint covers. So nothing is sent
twice, what a service could not take is sent later, and a logger that is added to a run gets its history too.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from bimkern.files import atomic, jsonl
from bimkern.files.best_effort import BestEffort
from bimkern.optional import first_line
from bimkern.train.config.run import ConfigError
from bimkern.train.reporting.loggers.logger import LoggedRun, Logger, OpenLogger
from bimkern.train.reporting.pictures import KeptPictures
from bimkern.train.reporting.scalars import Scalar, finite_numbers

logger = logging.getLogger("bimkern.train")

_CLOSING = 60.0  # seconds in which a service may take the last records


class Follower:
    """Sends the records and pictures of a run to one logger."""

    def __init__(
        self, name: str, service: Logger, records: Path, pictures: KeptPictures, config: Mapping[str, Scalar]
    ) -> None:
        """Open a logger for the run whose metrics.jsonl is `records`.

        Raises:
            ConfigError: the run is new to the logger, which cannot begin it.
        """
        self._name, self._records, self._pictures, self._config = name, records, pictures, config
        self._path = records.parent / "loggers" / f"{name}.json"
        self._offset = 0  # in the file of records
        self._attempt = BestEffort(f"the log of --log {name}", Exception)
        self._saved: SimpleQueue[int | None] = SimpleQueue()
        self._state: dict[str, Any] = {"id": None, "step": 0, "picture": 0, "described": False}
        self._state |= self._read()
        self._open = self._begin(service)
        self._thread = threading.Thread(target=self._follow, name=f"bimkern log {name}", daemon=True)
        self._thread.start()

    def publish(self, step: int) -> None:
        """Have everything sent up to the step of a checkpoint."""
        self._saved.put(step)

    def close(self) -> None:
        """Wait for what is being sent, but not for ever."""
        self._saved.put(None)
        self._thread.join(_CLOSING)
        if self._thread.is_alive():
            logger.warning("--log %s has not taken the last records; the same command sends them", self._name)

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _begin(self, service: Logger) -> OpenLogger | None:
        known = self._state["id"]
        try:
            opened = service.open(LoggedRun(self._records.parent, known))
        except Exception as error:
            if known is None:
                raise ConfigError(f"--log {self._name} cannot begin a run ({first_line(error)})") from error
            logger.warning("--log %s cannot continue its run (%s); training continues", self._name, first_line(error))
            return None
        self._state["id"] = opened.id
        with self._attempt.attempt():
            self._write()
        return opened

    def _follow(self) -> None:
        if self._open is None:
            return
        for step in iter(self._saved.get, None):
            with self._attempt.attempt():
                self._send(self._open, step)
        with self._attempt.attempt():
            self._open.close()

    def _send(self, to: OpenLogger, step: int) -> None:
        if not self._state["described"]:
            to.hyperparameters(self._config)
            self._note(described=True)
        pictures = self._pictures.after(self._state["picture"])
        for record in self._unsent(step):
            for earlier in [at for at in pictures if at < record["step"]]:  # services want steps to increase
                self._send_picture(to, earlier, pictures.pop(earlier))
            numbers = finite_numbers(record)
            to.metrics(record["step"], {name: value for name, value in numbers.items() if name != "step"})
            self._note(step=record["step"])
        for at in [at for at in pictures if at <= step]:
            self._send_picture(to, at, pictures[at])

    def _send_picture(self, to: OpenLogger, step: int, path: Path) -> None:
        to.picture(step, path)
        self._note(picture=step)

    def _unsent(self, last: int) -> Iterator[jsonl.Record]:
        """Yield the records up to a step that have not been sent, each once what was sent before it has been taken."""
        with self._records.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    return
                record = jsonl.parse(line)
                if record is not None and record["step"] > last:
                    return
                if record is not None and record["step"] > self._state["step"]:
                    yield record
                self._offset += len(line)

    def _note(self, **sent: Any) -> None:
        """Remember what has been sent, in this process and the next."""
        self._state |= sent
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        with atomic.replaced(self._path) as scratch:
            scratch.write_text(json.dumps(self._state) + "\n")

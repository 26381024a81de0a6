"""An append-only file of whole records, which survives a full disk."""

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from bimkern.files.best_effort import BestEffort

logger = logging.getLogger("bimkern.train")


class AppendOnlyFile:
    """Append records to a file; on a full disk they are queued and written later, in order and never torn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._queue: deque[bytes] = deque()
        self._growth, self._sync = BestEffort(str(path)), BestEffort(f"{path} (to disk)")

    def append(self, record: bytes) -> None:
        """Write the queued records, then this one."""
        self._queue.append(record)
        self._write_queue()

    def truncate(self, size: int, keep: Callable[[bytes], bool]) -> None:
        """Truncate the file to `size` bytes, and drop queued records that are not to be kept."""
        self._file.truncate(size)
        self._size = size
        self._queue = deque(filter(keep, self._queue))

    def sync(self) -> None:
        """Wait until the file's content is on disk."""
        with self._sync.attempt():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._write_queue()
        if self._queue:
            logger.warning("%s lacks its last %d records: the disk is full", self._path, len(self._queue))
        self._file.close()

    def _write_queue(self) -> None:
        with self._growth.attempt():
            while self._queue:
                try:
                    rest = memoryview(self._queue[0])
                    while rest:
                        rest = rest[self._file.write(rest) :]
                except OSError:
                    self._file.truncate(self._size)  # removes a part that was written
                    raise
                self._size += len(self._queue.popleft())

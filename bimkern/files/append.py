"""A file that grows by whole pieces, also over a disk that is full for a while."""

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from bimkern.files.best_effort import Outage

logger = logging.getLogger("bimkern.train")


class AppendedFile:
    """Append pieces to a file. One that finds no room waits, and those behind it; none is ever torn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._waiting: deque[bytes] = deque()
        self._growth, self._sync = Outage(str(path)), Outage(f"{path} (onto the disk)")

    def append(self, piece: bytes) -> None:
        """Write a piece, and before it those that wait."""
        self._waiting.append(piece)
        self._write_waiting()

    def cut(self, size: int, keep: Callable[[bytes], bool]) -> None:
        """Shorten the file to size bytes, and forget waiting pieces unless they are to be kept."""
        self._file.truncate(size)
        self._size = size
        self._waiting = deque(filter(keep, self._waiting))

    def sync(self) -> None:
        """Bring what was written onto the disk."""
        with self._sync.tolerated():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._write_waiting()
        if self._waiting:
            logger.warning("%s lacks its last %d pieces, which found no room", self._path, len(self._waiting))
        self._file.close()

    def _write_waiting(self) -> None:
        with self._growth.tolerated():
            while self._waiting:
                try:
                    rest = memoryview(self._waiting[0])
                    while rest:
                        rest = rest[self._file.write(rest) :]
                except OSError:
                    self._file.truncate(self._size)  # takes back the part that found room
                    raise
                self._size += len(self._waiting.popleft())

"""Files that are mapped into memory: to read behind the end of one that was truncated since would end the process."""

import os
from pathlib import Path

from bimkern.data.formats import BadImage


class MappedFile:
    """A file to be asked for its size before anything of its mapping is read; no handle of it is kept.

    What truncates it between the question and the reading still ends the process, by SIGBUS; so does what truncates it
    after it was moved.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        status = path.stat()
        self._file, self._size = (status.st_dev, status.st_ino), status.st_size

    def check(self) -> None:
        """Raise BadImage if the file has become shorter; one that took its place leaves the mapping as it is."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return
        now = status.st_size
        if (status.st_dev, status.st_ino) == self._file and now < self._size:
            raise BadImage(f"{self._path} was truncated from {self._size} to {now} bytes since it was opened")

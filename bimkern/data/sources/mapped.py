"""Files that are mapped into memory: to read behind the end of one that was truncated since would end the process."""

import os
from pathlib import Path

from bimkern.data.formats import BadImage


class MappedFile:
    """A file that stays open, to be asked for its size before anything of its mapping is read.

    What truncates it between the question and the reading still ends the process, by SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size

    def check(self) -> None:
        """Raise BadImage if the file has become shorter."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self._size:
            raise BadImage(f"{self._path} was truncated from {self._size} to {size} bytes since it was opened")

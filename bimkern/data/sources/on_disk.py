"""What sources of files on disk have in common."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, ClassVar

from bimkern.data.formats import open_file


class FilesOnDisk(ABC):
    """A source's access to files of its own on disk."""

    on_disk: ClassVar[bool] = True

    @abstractmethod
    def path(self, file: str) -> Path:
        """Return where a file lies."""

    def stat(self, file: str) -> tuple[int, int]:
        status = self.path(file).stat()
        return status.st_size, status.st_mtime_ns

    def open(self, file: str) -> BinaryIO:
        return open_file(self.path(file))

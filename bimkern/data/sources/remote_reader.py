"""A file at an address as an open file, of which every read asks for the part that it names."""

import io
import os

from bimkern.data.sources.remote_files import RemoteFile, RemoteFiles


class RemoteReader(io.RawIOBase):
    """Read and seek in a file of known size."""

    def __init__(self, remote: RemoteFiles, file: RemoteFile) -> None:
        assert file.size is not None
        self._remote, self._file, self._size, self._at = remote, file, file.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return bytes, fewer where the file ends.

        Raises:
            BadImage: they cannot be read.
        """
        left = max(0, self._size - self._at)
        content = self._remote.part(self._file, self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(content)
        return content

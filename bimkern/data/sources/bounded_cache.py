"""A cache of files on disk that stays within a number of bytes: what was used longest ago goes first."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_DIGEST_BYTES = 16
# One part in so many of the limit is written between two looks at the folder, by each process, which does not know of
# the others: 16 of them exceed it by an eighth.
_SHARE = 128
_WRITING = ".writing-"


class BoundedCache:
    """Content by key, for several processes at once; what cannot be kept, or was damaged, is not in it."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Keep at most about `limit` bytes in a folder, an eighth more if 16 processes write to it."""
        self._folder, self._limit = folder, limit
        self._written = limit  # since the last look: before the first, it is not known what is there

    def get(self, key: str) -> bytes | None:
        """Return content that was put under a key, None if it is not there any more."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # the cache may be read-only
            os.utime(path)
        content = stored[_DIGEST_BYTES:]
        return content if stored[:_DIGEST_BYTES] == _digest(content) else None

    def put(self, key: str, content: bytes) -> None:
        """Keep content under a key, if there is room on the disk."""
        if len(content) > self._limit:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=_WRITING)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(content) + content)
                os.replace(scratch, path)
            except OSError:
                os.unlink(scratch)
                raise
        except OSError:
            return
        self._written += len(content)
        if self._written >= self._limit // _SHARE:
            self._evict()
            self._written = 0

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).hexdigest()
        return self._folder / name[:2] / name

    def _evict(self) -> None:
        """Delete files until there is room for what is written before the next look."""
        files = []
        for path in self._folder.glob("??/*"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in files) - (self._limit - self._limit // _SHARE)
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            with suppress(OSError):  # another process was faster
                path.unlink()
            excess -= size


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()

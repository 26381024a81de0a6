"""The kernel's cache of files: what it drops, so that they are read from the disk again."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_MINCORE = ctypes.CDLL(None, use_errno=True).mincore
_MINCORE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class NotDropped(Exception):
    """Files stay in memory; the message says why."""


def drop(files: Iterable[Path]) -> None:
    """Let the kernel forget the content of files, but not where they lie on the disk.

    Raises:
        NotDropped: it keeps them, for example as they are on a file system in memory.
    """
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not on the disk yet is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if _is_cached(descriptor):
                raise NotDropped(f"{file.parent} is kept in memory")
        finally:
            os.close(descriptor)


def _is_cached(descriptor: int) -> bool:
    """Return whether the begin of a file is in memory. Asking does not bring it there, as a read would."""
    flag = ctypes.c_ubyte()
    with mmap.mmap(descriptor, 1, access=mmap.ACCESS_READ) as view:
        content = np.frombuffer(view, dtype=np.uint8)
        refused = _MINCORE(content.ctypes.data, 1, ctypes.byref(flag))
        del content  # or the view could not be closed
    if refused:
        raise NotDropped(f"it cannot be told what is in memory ({os.strerror(ctypes.get_errno())})")
    return bool(flag.value & 1)

"""A lock on a folder, held by one process at a time."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


class InUse(Exception):
    """Another process holds a folder; the message says which."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, until the context or the process ends, however it ends.

    It excludes other processes alone, and no two contexts of one process may hold a folder: the first that ends would
    end the lock of both.

    Raises:
        InUse: another process holds it.
        OSError: it cannot be locked.
    """
    with (folder / LOCK).open("a+") as lock:
        try:
            # A record lock: unlike flock it does not pass to worker processes, which may outlive a killed one.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            lock.seek(0)
            raise InUse(lock.read().strip()) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield

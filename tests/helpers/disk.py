"""A disk that is full for a moment, the modes of what is written to it, and a small one for shared memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import commands
import pytest


@contextmanager
def full_disk(file_size: int = 4096) -> Iterator[None]:
    """Let no file of this process grow beyond file_size, nor pytest's own output: keep the context short."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def umask_of(umask: int) -> Iterator[None]:
    """Take another umask for a moment."""
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Return the permission bits of a file or folder."""
    return path.stat().st_mode & 0o777


def on_small_shm(command: list[str]) -> list[str]:
    """Return a command that runs another one where /dev/shm has room for 64 KiB; skip the test where none may."""
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    allowed = commands.run([*mounted, "true"])
    if allowed.returncode:
        pytest.skip(f"no /dev/shm of one's own may be mounted here: {allowed.stderr.strip()}")
    return [*mounted, *command]

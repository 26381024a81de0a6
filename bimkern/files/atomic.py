"""Files that are whole or absent, and on the disk before they are relied on, so that a power cut takes nothing back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes path at the end: no reader sees half a file, nor a power cut."""
    scratch = path.with_name(f".{path.name}")
    try:
        yield scratch
        fsync(scratch)
        os.replace(scratch, path)
        fsync(path.parent)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until its content is on the disk."""
    path.write_text(text)
    fsync(path)

"""Onto the disk: what a power cut must not take back."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until its content is on the disk."""
    path.write_text(text)
    fsync(path)

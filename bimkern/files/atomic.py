"""Atomic files and folders: complete or absent for every reader, also after a power cut.

They are written under a temporary name, synced to disk, and renamed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SCRATCH = ".writing-"  # prefix of temporary names


def is_scratch(path: Path) -> bool:
    """Return whether a path is a temporary one; a process that was killed leaves its own behind."""
    return path.name.startswith(_SCRATCH)


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file, which replaces `path` on success and is deleted on failure."""
    scratch = _scratch(path)
    try:
        yield scratch
        _publish(scratch, path)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, as `replaced` writes files."""
    with replaced(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder, which replaces `path` on success and is deleted on failure.

    The files in it are the caller's to sync.
    """
    scratch = _scratch(path)
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed process
    try:
        scratch.mkdir(parents=True)
        yield scratch
        shutil.rmtree(path, ignore_errors=True)
        _publish(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def created_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder, which becomes `path` unless another process was first with the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SCRATCH) as own:
        scratch = Path(own) / path.name
        scratch.mkdir()
        yield scratch
        try:
            _publish(scratch, path)
        except OSError:
            if not path.is_dir():
                raise


def remove_folder(path: Path) -> None:
    """Delete a folder; a process that is killed meanwhile leaves no part of it under its name."""
    scratch = _scratch(path)
    shutil.rmtree(scratch, ignore_errors=True)
    os.replace(path, scratch)
    shutil.rmtree(scratch)


def _scratch(path: Path) -> Path:
    return path.with_name(f"{_SCRATCH}{path.name}")


def _publish(scratch: Path, path: Path) -> None:
    fsync(scratch)
    os.replace(scratch, path)
    fsync(path.parent)

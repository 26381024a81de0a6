"""Atomic files and folders: complete or absent for every reader, also after a power cut.

They are written under a temporary name, synced to disk, and renamed.
"""

import fcntl
import json
import os
import secrets
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
    """Yield a temporary path for a file, which replaces `path` on success and is deleted on failure.

    Several processes may replace one file at once: each writes a temporary file of its own, and the last one stays.
    """
    scratch, descriptor = _own_scratch(path)
    try:
        yield scratch
        _publish(scratch, path)
    except BaseException:  # only then: once published, the temporary name may be another process's
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


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


def _own_scratch(path: Path) -> tuple[Path, int]:
    """Create the temporary file of a file; return it and a descriptor that locks it while it is open.

    Its usual name is free again once the process that writes it is dead, so that killed ones do not pile up files.
    While it is locked, or where nothing can be locked, it has a random name.
    """
    scratch = _scratch(path)
    while True:
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(scratch, descriptor):
                os.truncate(descriptor, 0)
                return scratch, descriptor
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):  # no process can lock here: a killed one left it
                scratch.unlink(missing_ok=True)
            break
        os.close(descriptor)  # it was published, or deleted, before it was locked
    own = scratch.with_name(f"{scratch.name}.{os.getpid()}-{secrets.token_hex(8)}")
    return own, os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _publish(scratch: Path, path: Path) -> None:
    fsync(scratch)
    os.replace(scratch, path)
    fsync(path.parent)

"""The image check: every file is read and decoded once before a run may count on it.

What was found is kept in the cache folder, a line of JSON per file, appended as the check goes. A file is looked at
again only when its size or its time of change differ.
"""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bimkern.data.cache import cache_folder
from bimkern.data.source import BadImage, Images, Listing, SourceError, read_image
from bimkern.data.workers import WorkerDied, ahead

logger = logging.getLogger("bimkern.data")

_VERSION = 1  # of what the check looks at: a cache of another version is not read
_AT_A_TIME = 32  # files that a process is given
_DIGEST_BYTES = 8

Progress = Callable[[int, int], None]  # files checked, files to check


@dataclass(frozen=True, slots=True)
class Found:
    """What a file was found to be."""

    bytes: int
    mtime_ns: int
    digest: str = ""  # BLAKE2b of the content, 64 bits in hex
    width: int = 0  # pixels, upright
    height: int = 0
    fault: str | None = None  # why it cannot be trained on

    @property
    def stamp(self) -> tuple[int, int]:
        return self.bytes, self.mtime_ns


_UNREADABLE = (-1, -1)  # the stamp of a file that has none; it may be readable another time


def check(listing: Listing, *, workers: int, progress: Progress | None = None) -> dict[str, Found]:
    """Decode every file of a listing that has not been decoded before, in as many processes as there are workers.

    Args:
        listing: the files.
        workers: processes; a few files, or 0, are decoded in the calling one.
        progress: called after every few files.

    Returns:
        What each file is, in the order of the listing.

    Raises:
        SourceError: a process was killed, most likely for want of memory.
    """
    cache = _Cache(cache_folder() / f"checked-v{_VERSION}" / f"{_digest(os.fsencode(listing.root.resolve()))}.jsonl")
    known = cache.read()
    found = {f: known[f] for f in listing.files if f in known and known[f].stamp == _stamp(listing.root / f)}
    todo = [file for file in listing.files if file not in found]
    done = 0
    for chunk in _inspect_all(listing.root, todo, workers):
        found |= chunk
        cache.append(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, len(todo))
    return {file: found[file] for file in listing.files}


def readable(listing: Listing, found: dict[str, Found]) -> Images:
    """Return the images among the files of a listing."""
    good = tuple(file for file in listing.files if found[file].fault is None)
    sizes = np.array([(found[file].width, found[file].height) for file in good], dtype=np.int64).reshape(-1, 2)
    return Images(listing.root, good, sizes)


def inspect(path: Path) -> Found:
    """Read and decode one file."""
    try:
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            return Found(*stamp, fault="not a regular file")  # a pipe would keep us waiting
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            file.seek(0)
            try:
                return Found(*stamp, digest, *read_image(file).size)
            except BadImage as error:
                return Found(*stamp, digest, fault=str(error) if status.st_size else "empty")
    except OSError as error:
        return Found(*_UNREADABLE, fault=error.strerror or str(error))


def _inspect_all(root: Path, files: Sequence[str], workers: int) -> Iterator[dict[str, Found]]:
    chunks = [files[i : i + _AT_A_TIME] for i in range(0, len(files), _AT_A_TIME)]
    workers = workers if len(chunks) > 1 else 0
    try:
        yield from ahead(
            lambda i: {file: inspect(root / file) for file in chunks[i]},
            range(len(chunks)),
            workers=workers,
            prefetch=2,
        )
    except WorkerDied as error:
        raise SourceError(
            f"a process that checked the images in {root} was killed, most likely for want of memory: fewer --workers "
            f"need less. What has been checked is not checked again"
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return _UNREADABLE
    return status.st_size, status.st_mtime_ns


class _Cache:
    """What was found before; without a place to keep it the check goes on, and says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._usable = True

    def read(self) -> dict[str, Found]:
        """Read all records; a line torn by a killed process is left out, and later lines win."""
        found = {}
        try:
            lines = self._path.read_text().splitlines()
        except (OSError, UnicodeError):
            return {}
        for line in lines:
            try:
                record = json.loads(line)
                file = record.pop("file")
                found[file] = Found(**record)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return found

    def append(self, found: dict[str, Found]) -> None:
        kept = {file: result for file, result in found.items() if result.stamp != _UNREADABLE}
        if not self._usable or not kept:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.writelines(json.dumps({"file": name} | asdict(result)) + "\n" for name, result in kept.items())
        except OSError as error:
            self._usable = False
            logger.warning(
                "%s cannot be written (%s): the images will be checked anew; XDG_CACHE_HOME names another place",
                self._path,
                error.strerror,
            )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()

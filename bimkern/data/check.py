"""The image check: every file is read and decoded once before a run may count on it.

What was found is kept in the cache folder, a line of JSON per file, appended as the check goes. An image is looked at
again only when its size or its time of change differ; a bad file always, as what is wrong may be around it.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bimkern.data.formats import BadImage, OutOfResources, decode, open_file, too_large
from bimkern.data.orientation import UPRIGHT, upright_size
from bimkern.data.source import Images, Listing, SourceError
from bimkern.data.workers import WorkerDied, ahead
from bimkern.files import jsonl
from bimkern.files.cache import cache_folder

logger = logging.getLogger("bimkern.data")

_VERSION = 2  # of what the check looks at: a cache of another version is not read
_AT_A_TIME = 16  # files that a process is given
_DIGEST_BYTES = 8

Progress = Callable[[int, int], None]  # files checked, files to check


@dataclass(frozen=True, slots=True)
class Found:
    """What a file was found to be."""

    bytes: int = 0
    mtime_ns: int = 0
    digest: str = ""  # BLAKE2b of the content, 64 bits in hex
    width: int = 0  # pixels, upright
    height: int = 0
    orientation: int = UPRIGHT  # how the stored image is turned upright
    pil_only: bool = False  # whether DALI might decode it to something else
    fault: str | None = None  # why it cannot be trained on; all else is then as above


def check(listing: Listing, *, workers: int, progress: Progress | None = None) -> dict[str, Found]:
    """Decode every file of a listing that has not been decoded before, in as many processes as there are workers.

    Args:
        listing: the files.
        workers: processes; a few files, or 0, are decoded in the calling one.
        progress: called after every few files.

    Returns:
        What each file is, in the order of the listing.

    Raises:
        SourceError: the machine lacks the memory or the file handles for it.
    """
    cache = _Cache(cache_folder() / f"checked-v{_VERSION}" / f"{_digest(os.fsencode(listing.root.resolve()))}.jsonl")
    known = cache.read()
    found = {f: known[f] for f in listing.files if f in known and _is_as_before(listing.root / f, known[f])}
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
    return images(listing.root, {file: found[file] for file in listing.files if found[file].fault is None})


def images(root: Path, found: Mapping[str, Found]) -> Images:
    """Return what loaders need to know of some images, by their names below a root."""
    sizes = np.array([(one.width, one.height) for one in found.values()], dtype=np.int64).reshape(-1, 2)
    orientations = np.array([one.orientation for one in found.values()], dtype=np.int64)
    pil_only = np.array([one.pil_only for one in found.values()], dtype=bool)
    return Images(root, tuple(found), sizes, orientations, pil_only)


def inspect(path: Path) -> Found:
    """Read and decode one file."""
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                return Found(fault="empty")
            image = decode(file)  # first: most of what is refused is not read to its end
            file.seek(0)
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            size = upright_size(image.pixels.size, image.orientation)
            return Found(status.st_size, status.st_mtime_ns, digest, *size, image.orientation, image.pil_only)
    except BadImage as error:
        return Found(fault=str(error))
    except OSError as error:
        return Found(fault=error.strerror or str(error))


def _inspect_all(root: Path, files: Sequence[str], workers: int) -> Iterator[dict[str, Found]]:
    chunks = [files[i : i + _AT_A_TIME] for i in range(0, len(files), _AT_A_TIME)]

    def work(i: int) -> dict[str, Found]:
        return {file: inspect(root / file) for file in chunks[i]}

    workers = workers if len(chunks) > 1 else 0
    try:
        yield from ahead(work, range(len(chunks)), workers=workers, prefetch=2, in_order=False, what="the image check")
    except (WorkerDied, OutOfResources, MemoryError) as error:
        why = str(error) or "out of memory"
        raise SourceError(
            f"the images in {root} cannot be checked ({why}); what has been checked is not checked again"
        ) from error


def _is_as_before(path: Path, found: Found) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    unchanged = (status.st_size, status.st_mtime_ns) == (found.bytes, found.mtime_ns)
    return unchanged and not too_large(found.width, found.height)


class _Cache:
    """The images that were found before; without a place to keep them the check goes on, and says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._usable = True

    def read(self) -> dict[str, Found]:
        found = {}
        try:
            records = jsonl.read(self._path)
        except OSError:
            return {}
        for record in records:
            try:
                file = record.pop("file")
                found[file] = Found(**record)
            except (KeyError, TypeError):
                continue
        return found

    def append(self, found: dict[str, Found]) -> None:
        good = [{"file": file} | asdict(result) for file, result in found.items() if result.fault is None]
        if not self._usable or not good:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            jsonl.append(self._path, good)
        except OSError as error:
            self._usable = False
            logger.warning(
                "%s cannot be written (%s): the images will be checked anew; XDG_CACHE_HOME names another place",
                self._path,
                error.strerror,
            )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()

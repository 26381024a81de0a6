"""The image check: every file is read and decoded once before a run relies on it.

Results are cached, one line of JSON per image. An image is checked again only if its size or modification time has
changed; a bad file is checked every time, since the cause may be elsewhere.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np

from bimkern.data.decoding import RGB, Decoding, decode
from bimkern.data.formats import BadImage, OutOfResources, reason_of, too_large
from bimkern.data.orientation import UPRIGHT, upright_size
from bimkern.data.source import UNKNOWN_TIME, Images, Listing, Source, SourceError, open_in, title
from bimkern.data.workers import WorkerDied, ahead
from bimkern.files import jsonl
from bimkern.files.cache import cache_folder

logger = logging.getLogger("bimkern.data")

_VERSION = 3  # of the check; a cache of another version is not read
_CHUNK = 16  # files per job of a worker
_DIGEST_BYTES = 8

Progress = Callable[[int, int], None]  # files checked, files to check


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of checking a file."""

    bytes: int = 0
    mtime_ns: int = 0
    digest: str = ""  # BLAKE2b of the content, 64 bits in hex
    width: int = 0  # pixels, upright
    height: int = 0
    orientation: int = UPRIGHT  # how the stored image is turned upright
    pil_only: bool = False  # whether DALI might decode it differently
    fault: str | None = None  # why it cannot be trained on; the other fields then have their defaults


def check(listing: Listing, *, workers: int, progress: Progress | None = None) -> dict[str, FileCheck]:
    """Check the files of a listing in worker processes, except those in the cache.

    Args:
        listing: the files.
        workers: processes; with 0, or few files, the calling process decodes.
        progress: called after every chunk of files.

    Returns:
        The result for each file, in the order of the listing.

    Raises:
        SourceError: the machine is out of memory or file handles.
    """
    source = listing.source
    cache = _Cache(cache_folder() / f"checked-v{_VERSION}" / f"{_identity(listing)}.jsonl")
    known = cache.read()
    found = {f: known[f] for f in listing.files if f in known and _is_unchanged(source, f, known[f])}
    todo = [file for file in listing.files if file not in found]
    done = 0
    for chunk in _check_all(listing, todo, workers):
        found |= chunk
        cache.append(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, len(todo))
    return {file: found[file] for file in listing.files}


def readable(listing: Listing, found: dict[str, FileCheck]) -> Images:
    """Return the images among the files of a listing."""
    good = {file: found[file] for file in listing.files if found[file].fault is None}
    return images(listing.source, good, listing.decoding)


def images(source: Source, found: Mapping[str, FileCheck], decoding: Decoding = RGB) -> Images:
    """Return what loaders need to know of the images of a source, given by their names."""
    sizes = np.array([(one.width, one.height) for one in found.values()], dtype=np.int64).reshape(-1, 2)
    orientations = np.array([one.orientation for one in found.values()], dtype=np.int64)
    pil_only = np.array([one.pil_only or source.path(file) is None for file, one in found.items()], dtype=bool)
    return Images(source, tuple(found), sizes, orientations, pil_only, decoding=decoding)


def check_file(source: Source, file: str, decoding: Decoding = RGB) -> FileCheck:
    """Read one file of a source and decode it."""
    try:
        num_bytes, mtime_ns = source.stat(file)  # before the content: if it changes meanwhile, it is checked again
        with open_in(source, file) as opened:
            if num_bytes == 0:
                return FileCheck(fault="empty")
            image = decode(opened, how=decoding)  # first: most of what is refused is not read to its end
            opened.seek(0)
            digest = _digest(opened.read())
            size = upright_size(image.size, image.orientation)
            return FileCheck(num_bytes, mtime_ns, digest, *size, image.orientation, image.pil_only)
    except BadImage as error:
        return FileCheck(fault=str(error))
    except OutOfResources:
        raise
    except Exception as error:  # a source of the user's own may raise anything
        return FileCheck(fault=reason_of(error))


def _check_all(listing: Listing, files: Sequence[str], workers: int) -> Iterator[dict[str, FileCheck]]:
    source, decoding = listing.source, listing.decoding
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]

    def work(i: int) -> dict[str, FileCheck]:
        return {file: check_file(source, file, decoding) for file in chunks[i]}

    workers = workers if len(chunks) > 1 else 0
    try:
        yield from ahead(work, range(len(chunks)), workers=workers, prefetch=2, in_order=False, what="the image check")
    except (WorkerDied, OutOfResources, MemoryError) as error:
        why = str(error) or "out of memory"
        raise SourceError(
            f"the images in {title(source)} cannot be checked ({why}); the next check continues where this one stopped"
        ) from error


def _is_unchanged(source: Source, file: str, found: FileCheck) -> bool:
    try:
        unchanged = source.stat(file) == (found.bytes, found.mtime_ns)
    except (OSError, BadImage):
        return False
    return unchanged and found.mtime_ns != UNKNOWN_TIME and not too_large(found.width, found.height)


def _identity(listing: Listing) -> str:
    """Return what tells the results of a listing from those of others; a file that is good for 3 may be bad for 4."""
    source = listing.source
    read = [type(source).__qualname__, *(str(path.resolve()) for path in source.paths), str(listing.decoding)]
    names: list[str] = [field.name for field in fields(source)] if is_dataclass(source) else []
    # A field of a user's source may decide what a file holds.
    read += [f"{name}={getattr(source, name)!r}" for name in names if name not in ("paths", "held_out")]
    return _digest(os.fsencode("\0".join(read)))


class _Cache:
    """Results of earlier checks; if they cannot be stored, the check continues with a warning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._usable = True

    def read(self) -> dict[str, FileCheck]:
        found = {}
        try:
            for record in jsonl.stream(self._path):
                with suppress(KeyError, TypeError):
                    file = record.pop("file")
                    found[file] = FileCheck(**record)
        except OSError:
            return {}
        return found

    def append(self, found: dict[str, FileCheck]) -> None:
        known = (item for item in found.items() if item[1].fault is None and item[1].mtime_ns != UNKNOWN_TIME)
        good = [{"file": file} | asdict(result) for file, result in known]
        if not self._usable or not good:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            jsonl.append(self._path, good)
        except OSError as error:
            self._usable = False
            logger.warning(
                "%s cannot be written (%s): the next run checks the images again; set XDG_CACHE_HOME to another folder",
                self._path,
                error.strerror,
            )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()

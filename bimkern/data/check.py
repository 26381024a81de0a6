"""The image check: every file is read and decoded once before a run relies on it.

Results are cached (check_cache.py). An image is checked again only if its size or modification time has changed; a bad
file is checked every time, since the cause may be elsewhere.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass

import numpy as np
from numpy.typing import NDArray

from bimkern.data.check_cache import CheckCache
from bimkern.data.decoding import RGB, Decoding, decode
from bimkern.data.file_checks import FileCheck, FileChecks, as_int64
from bimkern.data.formats import BadImage, OutOfResources, reason_of, too_large
from bimkern.data.images import Images
from bimkern.data.integers import Int64
from bimkern.data.listing import Listing
from bimkern.data.names import Names
from bimkern.data.orientation import upright_size
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError, open_in, title
from bimkern.data.workers import WorkerDied, ahead

_CHUNK = 16  # files per job of a worker
_DIGEST_BYTES = 8

Progress = Callable[[int, int], None]  # files checked, files to check


def check(listing: Listing, *, workers: int, progress: Progress | None = None) -> FileChecks:
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
    files, cache = listing.files, CheckCache(_identity(listing))
    found = cache.read(files)
    found.forget(~_are_unchanged(listing.source, found))
    todo = np.flatnonzero(~found.sound).tolist()
    done = 0
    for chunk in _check_all(listing, todo, workers):
        for i, result in chunk.items():
            found.put(i, result)
        cache.append({files[i]: result for i, result in chunk.items()})
        done += len(chunk)
        if progress is not None:
            progress(done, len(todo))
    cache.store(found)
    return found


def readable(listing: Listing, found: FileChecks) -> Images:
    """Return the images among the files of a listing."""
    found = found.of_files(listing.files)
    return images(listing.source, found.where(found.sound), listing.decoding)


def images(source: Source, found: Mapping[str, FileCheck], decoding: Decoding = RGB) -> Images:
    """Return what loaders need to know of the images of a source, given by their names."""
    checks = FileChecks.of(found)
    arrays = (checks.sizes, checks.orientations, checks.pil_only, checks.digests)
    return Images(source, checks.names, *arrays, decoding=decoding, on_disk=_are_on_disk(source, checks.names))


def check_file(source: Source, file: str, decoding: Decoding = RGB) -> FileCheck:
    """Read one file of a source and decode it."""
    try:
        # Before the content: if it changes meanwhile, it is checked again.
        num_bytes, mtime_ns = map(as_int64, source.stat(file))
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


def _check_all(listing: Listing, todo: list[int], workers: int) -> Iterator[dict[int, FileCheck]]:
    source, decoding = listing.source, listing.decoding
    chunks = range(0, len(todo), _CHUNK)

    def work(first: int) -> dict[int, FileCheck]:
        return {i: check_file(source, listing.files[i], decoding) for i in todo[first : first + _CHUNK]}

    workers = workers if len(chunks) > 1 else 0
    try:
        yield from ahead(work, chunks, workers=workers, prefetch=2, in_order=False, what="the image check")
    except (WorkerDied, OutOfResources, MemoryError) as error:
        why = str(error) or "out of memory"
        raise SourceError(
            f"the images in {title(source)} cannot be checked ({why}); the next check continues where this one stopped"
        ) from error


def _are_unchanged(source: Source, found: FileChecks) -> NDArray[np.bool_]:
    """Return which results are those of the files as they are now, [N]."""
    now = _stats(source, found)
    unchanged: NDArray[np.bool_] = (now == found.stats).all(axis=1) & (now[:, 1] != UNKNOWN_TIME)
    pixels = found.sizes.prod(axis=1)
    if len(pixels) and too_large(int(pixels.max()), 1):
        unchanged &= [not too_large(count, 1) for count in pixels.tolist()]
    return unchanged


def _stats(source: Source, found: FileChecks) -> Int64:
    """Return bytes and time of change (ns) of those files that have been checked, [N, 2]."""
    if hasattr(source, "stats"):
        stats: Int64 = source.stats(found.names)
        return stats
    stats = np.full((len(found), 2), UNKNOWN_TIME, dtype=np.int64)
    for i in np.flatnonzero(found.sound).tolist():
        with suppress(Exception):  # it is checked again, which says what is wrong
            num_bytes, mtime_ns = map(as_int64, source.stat(found.names[i]))
            stats[i] = num_bytes, mtime_ns
    return stats


def _are_on_disk(source: Source, files: Names) -> bool:
    """Return whether all files of a source lie on disk."""
    if (all_or_none := getattr(source, "on_disk", None)) is not None:
        return bool(all_or_none)
    return all(source.path(file) is not None for file in files)


def _identity(listing: Listing) -> str:
    """Return what tells the results of a listing from those of others; a file that is good for 3 may be bad for 4."""
    source = listing.source
    read = [type(source).__qualname__, *(str(path.resolve()) for path in source.paths), str(listing.decoding)]
    names: list[str] = [field.name for field in fields(source)] if is_dataclass(source) else []
    # A field of a user's source may decide what a file holds.
    read += [f"{name}={getattr(source, name)!r}" for name in names if name not in ("paths", "held_out")]
    return _digest(os.fsencode("\0".join(read)))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()

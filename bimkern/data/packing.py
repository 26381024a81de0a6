"""Packing: the images of a source into tar shards, which a run reads as it reads the source.

Every shard holds the images of one range of the sorted names, so that it does not depend on the others: it is whole, or
it is made again. The same source and options give the same bytes.
"""

import errno
import hashlib
import logging
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from io import BufferedWriter, BytesIO, FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from bimkern.data.formats import OutOfResources, reason_of
from bimkern.data.labels import HasLabels
from bimkern.data.listing import Listing, list_images
from bimkern.data.names import Names
from bimkern.data.pack_manifest import Manifest, PackError, ShardRecord, begin, shard_name
from bimkern.data.packed_names import PackedNames
from bimkern.data.repack import PackedImage, Repacking, repack
from bimkern.data.source import Source, SourceError, open_in, title
from bimkern.data.sources.tar_index import read_index
from bimkern.data.workers import WorkerDied, ahead
from bimkern.errors import RunError
from bimkern.files import atomic
from bimkern.files.lock import InUse, locked

logger = logging.getLogger("bimkern.data")

Progress = Callable[[int, int], None]  # images done, images to do

_CHUNK = 8  # images per job of a worker
_RESUMES = "the same command continues where this one stopped"


class PackingFailed(RunError):
    """Packing that was asked for correctly cannot continue."""


def pack(
    source: Source,
    out: Path,
    how: Repacking,
    *,
    shard_images: int,
    workers: int,
    max_bad_ratio: float,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Pack the images of a source into shards of a folder, besides those that it already holds.

    Args:
        source: of the images.
        out: the folder.
        how: what is done to every image.
        shard_images: images in a shard.
        workers: processes; with 0 a thread of this process works.
        max_bad_ratio: share of the images that may be left out as unreadable.
        progress: called as images are done.

    Raises:
        SourceError: the source, or more of its images than allowed, cannot be read.
        PackError: the folder cannot be used; the message says why.
        PackingFailed: the machine has too little memory or disk space.
    """
    _refuse_overlap(out, source)
    listing = list_images(source, how.decoding)
    labels = _labels(listing)
    names = PackedNames(listing.files, labels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            manifest = begin(out, listing, labels, how, shard_images)
            return _Packing(listing, names, out, how, max_bad_ratio, progress).run(manifest, shard_images, workers)
    except InUse as error:
        raise PackError(f"OUT {out} is in use by {error}; choose another") from error
    except (WorkerDied, OutOfResources, MemoryError) as error:
        raise PackingFailed(f"the images cannot be packed ({str(error) or 'out of memory'}); {_RESUMES}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise PackError(f"OUT {out} is longer than a name may be; choose another") from error
        raise PackingFailed(f"{error.filename or out} cannot be written ({error.strerror}); {_RESUMES}") from error


class _Packing:
    def __init__(
        self,
        listing: Listing,
        names: PackedNames,
        out: Path,
        how: Repacking,
        max_bad_ratio: float,
        progress: Progress,
    ) -> None:
        self._listing, self._names, self._out, self._how = listing, names, out, how
        self._max_bad_ratio, self._progress = max_bad_ratio, progress
        self._done = self._total = self._bad = 0

    def run(self, manifest: Manifest, shard_images: int, workers: int) -> Manifest:
        count = len(self._listing)
        shards = [range(at, min(at + shard_images, count)) for at in range(0, count, shard_images)]
        todo = {number: images for number, images in enumerate(shards) if number not in manifest.shards}
        self._total, self._bad = sum(map(len, todo.values())), manifest.bad
        manifest.write(self._out)
        jobs = (at for images in todo.values() for at in images[::_CHUNK])

        def work(at: int) -> list[PackedImage | str]:
            end = shards[at // shard_images].stop
            return [self._repack(file) for file in self._listing.files[at : min(at + _CHUNK, end)]]

        with closing(ahead(work, jobs, workers=workers, prefetch=2, what="packing")) as chunks:
            for number, images in todo.items():
                packed = (one for chunk in islice(chunks, len(images[::_CHUNK])) for one in chunk)
                files = self._listing.files[images.start : images.stop]
                manifest = manifest.add(number, self._write(number, zip(files, packed, strict=True)))
                manifest.write(self._out)
        manifest = replace(manifest, complete=True)
        manifest.write(self._out)
        return manifest

    def _repack(self, file: str) -> PackedImage | str:
        """Return a packed image, or why it is left out."""
        try:
            with open_in(self._listing.source, file) as opened:
                content = opened.read()
            return repack(content, self._how) if content else "empty"
        except OutOfResources:
            raise
        except Exception as error:  # a source of the user's own may raise anything
            return reason_of(error)

    def _write(self, number: int, images: Iterable[tuple[str, PackedImage | str]]) -> ShardRecord:
        path = self._out / shard_name(number)
        left_out, bad, count = {}, self._bad, 0
        with atomic.replaced(path) as scratch:
            with _HashedFile(scratch) as file, tarfile.open(fileobj=file, mode="w|") as tar:
                for name, packed in images:
                    if isinstance(packed, PackedImage):
                        _add(tar, self._names.image(name, packed), packed.content)
                        count += 1
                    else:
                        left_out[name] = packed
                        self._count(name, packed)
                    if (label := self._names.label(name)) is not None:
                        _add(tar, *label)
                    self._done += 1
                    self._progress(self._done, self._total)
            size = scratch.stat().st_size
        read_index(path)
        return ShardRecord(
            name=path.name,
            images=count,
            bytes=size,
            sha256=file.digest.hexdigest(),
            left_out=left_out,
            bad=self._bad - bad,
        )

    def _count(self, file: str, reason: str) -> None:
        """Count a file that is left out, if it is a bad image and not something else.

        Raises:
            SourceError: there are too many of them.
        """
        source, count = self._listing.source, len(self._listing)
        self._bad += len(Listing(source, Names.of([file])).skip({file: reason}).files)
        if self._bad > self._max_bad_ratio * count:
            raise SourceError(
                f"{title(source)}: {self._bad} of {count} images cannot be read (the last one is {file}: {reason}), "
                f"more than --max-bad-ratio {self._max_bad_ratio:g}; replace or remove them"
            )


class _HashedFile(BufferedWriter):
    """A file that is written from its start to its end, and the digest of what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, "w"))
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return super().write(content)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _labels(listing: Listing) -> Mapping[str, str] | None:
    """Return the labels that a source keeps beside its images, None if it has none."""
    if not isinstance(listing.source, HasLabels):
        return None  # they are the folders in the names
    try:
        return listing.source.labels(listing.files)
    except SourceError as error:
        logger.warning("packed without labels: %s", error)
        return None


def _refuse_overlap(out: Path, source: Source) -> None:
    own = out.resolve()
    for path in (path.resolve() for path in source.paths):
        if own.is_relative_to(path):
            raise PackError(f"OUT {out} lies inside SOURCE {path}: what is packed would be read as images of it")
        if path.is_relative_to(own):
            raise PackError(f"SOURCE {path} lies inside OUT {out}; choose another OUT")

"""Sources: which images there are, and how their bytes are read.

A sample id is the index of an image in the sorted list of a source, so it means the same on every machine.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bimkern import pieces
from bimkern.data.decoding import RGB, Decoded, Decoding, decode
from bimkern.data.formats import (
    ARRAY_SUFFIX,
    NAMES,
    OTHER_SUFFIXES,
    REMEDY,
    SUFFIXES,
    BadImage,
    OutOfResources,
    blamed_on_image,
    describe_unknown,
    is_image,
    open_file,
)
from bimkern.data.integers import Int64
from bimkern.data.levels import bounds
from bimkern.data.names import Names
from bimkern.data.reasons import Reasons, reasons_by_suffix
from bimkern.data.suffixes import suffix_of
from bimkern.errors import BimkernError

UNKNOWN_TIME = -1  # in place of a time of change
_OPENERS = 16  # threads
_NO_IMAGE = "not opened, as its suffix is not that of an image"
_BY_SUFFIX = {**dict.fromkeys(OTHER_SUFFIXES, _NO_IMAGE), **dict.fromkeys((*SUFFIXES, ARRAY_SUFFIX))}  # why skipped


class SourceError(BimkernError, ValueError):
    """A source cannot be used; the message says what to change."""


class Source(Protocol):
    """Named files, each an encoded image: on disk, or inside whatever the source reads. A frozen dataclass.

    It may also have `title`, its name in messages, in place of its paths; `only_images = True`, if whatever it lists is
    an image, whose name need not say so; `dtype`, that of all images, where it is known; `labels(files)`, the label of
    each by its name; `origin(file)`, what tells a file from those of all other sources, if its name does not; and the
    class methods `accepts(place)` and `of(places)`, by which --data finds it (sources/find.py).

    Of a million files, no method should be called for each: files() may return Reasons, `stats(files)` is what stat()
    returns of all, [N, 2] int64 with UNKNOWN_TIME for those that are gone, and `on_disk` whether path() returns one.
    `holds_arrays` says that no image is encoded: DALI then decodes none. `damaged()` returns why some of the files that
    are skipped are, each of which the quarantine file then names.
    """

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders that it reads: they name it in messages, and a run must not write into them."""

    @property
    def held_out(self) -> "Source | None":
        """Images to evaluate on that are kept out of training. None: other crops of the same images."""

    def files(self) -> Mapping[str, str | None]:
        """Return why every file is skipped, by its name; None for an image. The name stays when the source moves.

        Raises:
            SourceError: the source cannot be used.
        """

    def stat(self, file: str) -> tuple[int, int]:
        """Return the bytes and the time of change (ns) of a file: while both stay, it is not checked again.

        With UNKNOWN_TIME for the time, the file is checked whenever a run starts.

        Raises:
            OSError, BadImage: it is gone.
        """

    def open(self, file: str) -> BinaryIO:
        """Open a file, to read and seek in it. Loaders call this in processes and threads of their own.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now. So is any other error understood.
        """

    def path(self, file: str) -> Path | None:
        """Return where a file lies on disk, for DALI to read; None where it does not: DALI then gets its bytes."""


@dataclass(frozen=True)
class Listing:
    """The files of a source: the images, and those that are none."""

    source: Source
    files: Names  # sorted
    others: Reasons = field(default_factory=lambda: Reasons.of({}))  # why they are skipped
    decoding: Decoding = RGB  # of the images

    @property
    def channels(self) -> int:
        return self.decoding.channels

    def __len__(self) -> int:
        return len(self.files)

    def skip(self, faults: Mapping[str, str]) -> "Listing":
        """Return a listing that skips files without an image's suffix for faults that were found in them.

        They may be anything, a camera's raw file for example, and are no damaged images.
        """
        if getattr(self.source, "only_images", False):
            return self
        skipped = {file: fault for file, fault in faults.items() if not _has_image_suffix(file)}
        kept = np.ones(len(self), dtype=bool)
        kept[[i for file in skipped if (i := self.files.index_of(file)) is not None]] = False
        return replace(self, files=self.files.where(kept), others=self.others.joined(skipped))

    def count_others(self) -> str:
        """Count the other files by suffix in words, the most frequent first."""
        ordered = sorted(self.others.count().items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {suffix}" for suffix, count in ordered)


class KeptImages(Protocol):
    """Decoded images that are kept (decoded_cache.py), by sample id."""

    def get(self, sample_id: int) -> Decoded | None: ...
    def only(self, sample_ids: Int64) -> "KeptImages": ...


@dataclass(frozen=True, eq=False)
class Images:
    """A fixed list of images, each of which was readable once (check.py)."""

    source: Source
    files: Names  # sorted
    sizes: Int64  # [N, 2], width and height, upright
    orientations: Int64  # [N], how the stored images are turned upright (orientation.py)
    pil_only: NDArray[np.bool_]  # [N], images that DALI might decode to something else
    digests: NDArray[np.uint64]  # [N], of the files
    unreadable: frozenset[int] = frozenset()  # sample ids of those that have gone bad since
    decoding: Decoding = RGB
    kept: KeptImages | None = None
    on_disk: bool = True  # whether path() says of all of them where they lie

    @property
    def channels(self) -> int:
        return self.decoding.channels

    def __len__(self) -> int:
        return len(self.files)

    def only(self, sample_ids: Sequence[int] | Int64) -> "Images":
        """Return some of them, all taken to be readable."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        arrays: dict[str, Any] = {name: v[ids] for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        kept = None if self.kept is None else self.kept.only(ids)
        return replace(self, files=self.files.take(ids), unreadable=frozenset(), kept=kept, **arrays)

    def path(self, sample_id: int) -> Path:
        """Return where an image lies, if all lie on disk."""
        path = self.source.path(self.files[sample_id])
        assert path is not None
        return path

    def open(self, sample_id: int) -> BinaryIO:
        """Open the file of an image.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now.
        """
        return open_in(self.source, self.files[sample_id])

    def decode(self, sample_id: int, reduction: int = 1) -> Decoded:
        """Decode an image, unless it is kept decoded.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now.
        """
        kept = None if self.kept is None or reduction != 1 else self.kept.get(sample_id)
        if kept is not None:
            return kept
        with self.open(sample_id) as file:
            return decode(file, reduction, self.decoding)


class FilesOnDisk(ABC):
    """A source's access to files of its own on disk."""

    on_disk: ClassVar[bool] = True

    @abstractmethod
    def path(self, file: str) -> Path:
        """Return where a file lies."""

    def stat(self, file: str) -> tuple[int, int]:
        status = self.path(file).stat()
        return status.st_size, status.st_mtime_ns

    def open(self, file: str) -> BinaryIO:
        return open_file(self.path(file))


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ImageFolder(FilesOnDisk):
    """The images below folders, with or without class folders: by suffix or, if unknown, by their first bytes.

    Names are relative to the folder; if there are several, they begin with its name.
    """

    paths: tuple[Path, ...]
    held_out: Source | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise SourceError("ImageFolder: paths must name a folder")
        roots = [Path(os.path.abspath(path)) for path in self.paths]
        for i, one in enumerate(roots):
            for other in (*roots[:i], *roots[i + 1 :]):
                if one.is_relative_to(other):
                    raise SourceError(f"{one} is named twice, or lies inside {other}; name every image once")
                if one.name == other.name:
                    raise SourceError(
                        f"{one} and {other} have the same name, which tells their images apart; rename one"
                    )

    def files(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for path in self.paths:
            prefix = "" if len(self.paths) == 1 else f"{_name(path)}/"
            found |= {prefix + file: reason for file, reason in _files_below(path).items()}
        return found

    def path(self, file: str) -> Path:
        if len(self.paths) == 1:
            return self.paths[0] / file
        name, _, rest = file.partition("/")
        return next(path / rest for path in self.paths if _name(path) == name)


def list_images(source: Source, decoding: Decoding = RGB) -> Listing:
    """List the files of a source as images that are decoded in one way.

    Arrays beside images, of features for example, count as images only where the channels of an encoder need arrays, or
    a range says what their values mean.

    Raises:
        SourceError: it cannot be used, or holds no image.
    """
    found = Reasons.of(source.files())
    if not takes_arrays(decoding):
        found = found.skip(ARRAY_SUFFIX, _NO_IMAGE)
    images = found.images
    listing = Listing(source, found.names.where(images), found.where(~images), decoding)
    refuse_if_empty(listing)
    try:
        if (dtype := getattr(source, "dtype", None)) is not None:
            bounds(dtype, decoding.range)
    except BadImage as error:  # all are
        raise SourceError(f"{title(source)}: {error}") from error
    return listing


def takes_arrays(decoding: Decoding) -> bool:
    """Return whether .npy files in a folder are images."""
    return not decoding.is_converted or decoding.range is not None


def open_in(source: Source, file: str) -> BinaryIO:
    """Open a file of a source.

    Raises:
        BadImage, OutOfResources: it, or any file, cannot be read now.
    """
    with blamed_on_image():
        return source.open(file)


def title(source: Source) -> str:
    """Name a source in messages."""
    name: str | None = getattr(source, "title", None)
    return ", ".join(map(str, source.paths)) if name is None else name


def refuse_if_empty(listing: Listing) -> None:
    """Raise SourceError if a listing has no image."""
    if not listing.files:
        names = f"{NAMES} or {ARRAY_SUFFIX}" if takes_arrays(listing.decoding) else NAMES
        found = f", only other files ({listing.count_others()}); {REMEDY}" if listing.others else ", and no other file"
        raise SourceError(f"there is no {names} image in {title(listing.source)}{found}")


def _name(path: Path) -> str:
    return Path(os.path.abspath(path)).name


def _files_below(root: Path) -> dict[str, str | None]:
    """Return why every file below a folder is skipped, by its relative name; None for an image."""
    found: dict[str, str | None] = {}
    try:
        if not root.is_dir():
            raise SourceError(f"{root} is not a folder")
        paths = {path.relative_to(root).as_posix(): path for path in _walk(root)}
        unknown = [file for file in paths if suffix_of(file) not in _BY_SUFFIX]
        found |= {file: why_skipped(file, partial(open_file, paths[file])) for file in paths.keys() - set(unknown)}
        with ThreadPoolExecutor(_OPENERS) as pool:  # opening waits for the disk, or for a network
            reasons = pool.map(lambda file: why_skipped(file, partial(open_file, paths[file])), unknown)
            found |= dict(zip(unknown, reasons, strict=True))
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read ({error.strerror})") from error
    except OutOfResources as error:
        raise SourceError(f"{root} cannot be read ({error})") from error
    return found


def _has_image_suffix(file: str) -> bool:
    return _BY_SUFFIX.get(suffix_of(file), _NO_IMAGE) is None


def why_skipped(file: str, open_it: Callable[[], BinaryIO]) -> str | None:
    """Return why a file is skipped, None for an image: by its suffix or, if that is unknown, by its first bytes.

    Raises:
        OutOfResources: no file can be read now.
    """
    suffix = suffix_of(file)
    return _BY_SUFFIX[suffix] if suffix in _BY_SUFFIX else _why_unlike(open_it)


def why_each_skipped(files: Names, open_it: Callable[[str], BinaryIO]) -> Reasons:
    """Return what why_skipped returns of each of the files, which ascend.

    Raises:
        OutOfResources: no file can be read now.
    """
    return reasons_by_suffix(files, _BY_SUFFIX, lambda file: _why_unlike(partial(open_it, file)))


def _why_unlike(open_it: Callable[[], BinaryIO]) -> str | None:
    """Return why the first bytes of a file are not those of an image."""
    try:
        with open_it() as opened:
            return None if is_image(opened) else describe_unknown(opened)
    except BadImage as error:
        return str(error)


def _raise(error: OSError) -> None:
    raise error


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, through linked folders too, each folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same is taken everywhere; hidden folders are not data.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in names if not name.startswith("."))

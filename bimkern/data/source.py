"""Sources: which images there are.

A sample id is the index of an image in the sorted list of a source, so it means the same on every machine.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimkern.data.formats import NAMES, OTHER_SUFFIXES, REMEDY, SUFFIXES, BadImage, OutOfResources, is_image
from bimkern.errors import BimkernError

_OPENERS = 16  # threads


class SourceError(BimkernError, ValueError):
    """A source cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Listing:
    """The files of a source: images by their suffix or by their first bytes, and those that are neither."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted
    others: Mapping[str, str] = field(default_factory=dict)  # relative to root, sorted -> why they are skipped

    def __len__(self) -> int:
        return len(self.files)

    def skip(self, faults: Mapping[str, str]) -> "Listing":
        """Return a listing that skips files without an image's suffix for faults that were found in them.

        They may be anything, a camera's raw file for example, and are no damaged images.
        """
        skipped = {file: fault for file, fault in faults.items() if not _has_image_suffix(file)}
        files = tuple(file for file in self.files if file not in skipped)
        return replace(self, files=files, others=dict(sorted({**self.others, **skipped}.items())))

    def count_others(self) -> str:
        """Count the other files by suffix in words, the most frequent first."""
        counts = Counter(suffix_of(file) for file in self.others)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {suffix}" for suffix, count in ordered)


@dataclass(frozen=True, eq=False)
class Images:
    """A fixed list of images, each of which was readable once (check.py)."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted
    sizes: NDArray[np.int64]  # [N, 2], width and height, upright
    orientations: NDArray[np.int64]  # [N], how the stored images are turned upright (orientation.py)
    pil_only: NDArray[np.bool_]  # [N], images that DALI might decode to something else
    unreadable: frozenset[int] = frozenset()  # sample ids of those that have gone bad since

    def __len__(self) -> int:
        return len(self.files)

    def only(self, sample_ids: Sequence[int]) -> "Images":
        """Return some of them, all taken to be readable."""
        ids = list(sample_ids)
        files = tuple(self.files[i] for i in ids)
        return Images(self.root, files, self.sizes[ids], self.orientations[ids], self.pil_only[ids])

    def path(self, sample_id: int) -> Path:
        return self.root / self.files[sample_id]


def image_folder(root: Path) -> Listing:
    """List the images below a folder, with or without class folders: by suffix or, if unknown, by their first bytes.

    Raises:
        SourceError: the folder is missing or holds no image.
    """
    files: list[str] = []
    others: dict[str, str] = {}
    try:
        if not root.is_dir():
            raise SourceError(f"{root} is not a folder")
        unknown: list[Path] = []
        for path in _walk(root):
            file, suffix = path.relative_to(root).as_posix(), suffix_of(path.name)
            if suffix in SUFFIXES:
                files.append(file)
            elif suffix in OTHER_SUFFIXES:
                others[file] = "not opened, as its suffix is not that of an image"
            else:
                unknown.append(path)
        with ThreadPoolExecutor(_OPENERS) as pool:  # opening waits for the disk, or for a network
            for path, reason in zip(unknown, pool.map(_why_skipped, unknown), strict=True):
                file = path.relative_to(root).as_posix()
                if reason is None:
                    files.append(file)
                else:
                    others[file] = reason
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read ({error.strerror})") from error
    except OutOfResources as error:
        raise SourceError(f"{root} cannot be read ({error})") from error
    listing = Listing(root, tuple(sorted(files)), dict(sorted(others.items())))
    refuse_if_empty(listing)
    return listing


def refuse_if_empty(listing: Listing) -> None:
    """Raise SourceError if a listing has no image."""
    if not listing.files:
        found = f", only other files ({listing.count_others()}); {REMEDY}" if listing.others else ", and no other file"
        raise SourceError(f"{listing.root} and the folders below it hold no {NAMES} image{found}")


def suffix_of(file: str) -> str:
    """Return the suffix of a file's name in lower case, in words if it has none."""
    return Path(file).suffix.lower() or "without suffix"


def _has_image_suffix(file: str) -> bool:
    return suffix_of(file) in SUFFIXES


def _why_skipped(path: Path) -> str | None:
    """Open a file of unknown suffix; return why it is skipped, None if it starts like an image."""
    try:
        return None if is_image(path) else f"not a {NAMES} image; {REMEDY}"
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

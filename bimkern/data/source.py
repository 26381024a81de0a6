"""Sources: which images there are.

A sample id is the place of an image in the sorted list of a source, so it means the same on every machine.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimkern.data.formats import NAMES, REMEDY, SUFFIXES, OutOfResources, is_image


class SourceError(ValueError):
    """A source cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Listing:
    """The files of a source: images by their names or by their content, and those that are neither."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted
    others: tuple[str, ...] = ()  # relative to root, sorted

    def __len__(self) -> int:
        return len(self.files)

    def others_by_suffix(self) -> dict[str, list[str]]:
        """Return the files that are no images by the suffix of their names, the most frequent suffix first."""
        files = defaultdict(list)
        for file in self.others:
            files[Path(file).suffix.lower() or "without suffix"].append(file)
        return dict(sorted(files.items(), key=lambda item: (-len(item[1]), item[0])))

    def count_others(self) -> str:
        """Count the files that are no images in words."""
        return ", ".join(f"{len(files)} {suffix}" for suffix, files in self.others_by_suffix().items())


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

    def path(self, sample_id: int) -> Path:
        return self.root / self.files[sample_id]


def image_folder(root: Path) -> Listing:
    """List the files below a folder, with or without class folders; one without an image's suffix is looked into.

    Raises:
        SourceError: the folder is missing or holds no image.
    """
    files: list[str] = []
    others: list[str] = []
    try:
        if not root.is_dir():
            raise SourceError(f"{root} is not a folder")
        for path in _walk(root):
            image = path.suffix.lower() in SUFFIXES or is_image(path)
            (files if image else others).append(path.relative_to(root).as_posix())
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read ({error.strerror})") from error
    except OutOfResources as error:
        raise SourceError(f"{root} cannot be read ({error})") from error
    listing = Listing(root, tuple(sorted(files)), tuple(sorted(others)))
    if not files:
        found = f", only other files ({listing.count_others()}); {REMEDY}" if others else ", and no other file"
        raise SourceError(f"{root} and the folders below it hold no {NAMES} image{found}")
    return listing


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

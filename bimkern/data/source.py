"""Sources: which images there are.

A sample id is the place of an image in the sorted list of a source, so it means the same on every machine.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises on bad files


class SourceError(ValueError):
    """A source cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Images:
    """A fixed list of image files."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted

    def __len__(self) -> int:
        return len(self.files)

    def path(self, sample_id: int) -> Path:
        return self.root / self.files[sample_id]

    def open(self, sample_id: int) -> Image.Image:
        """Decode an image, upright and in RGB.

        Raises:
            SourceError: the file is missing, unreadable or not an image; the message names it.
        """
        path = self.path(sample_id)
        try:
            with Image.open(path) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return image.convert("RGB")
        except _UNREADABLE as error:
            raise SourceError(f"{path}: not a readable image ({error})") from error

    def sizes(self, sample_ids: Iterable[int]) -> np.ndarray:
        """Read width and height of images once upright, [B, 2] int64, from their headers.

        Raises:
            SourceError: as open().
        """
        return np.array([_upright_size(self.path(i)) for i in sample_ids], dtype=np.int64).reshape(-1, 2)


def image_folder(root: Path) -> Images:
    """List the JPEG, PNG and WebP images below a folder, with or without class folders.

    Raises:
        SourceError: the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder")
    files = sorted(path.relative_to(root).as_posix() for path in _walk(root) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SourceError(f"{root} holds no image; looked for {', '.join(SUFFIXES)} in it and below")
    return Images(root, tuple(files))


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, through linked folders too, each folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same is taken everywhere; hidden folders are not data.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            transposed = image.getexif().get(_ORIENTATION) in _TRANSPOSED
    except _UNREADABLE as error:
        raise SourceError(f"{path}: not a readable image ({error})") from error
    return (height, width) if transposed else (width, height)

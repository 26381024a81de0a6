"""Sources: which images there are, and how one of them is read.

A sample id is the place of an image in the sorted list of a source, so it means the same on every machine.
"""

import errno
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")  # what both loaders decode; PIL would also run Ghostscript on a disguised EPS
_OUT_OF_HANDLES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class SourceError(ValueError):
    """A source cannot be used; the message says what to change."""


class BadImage(Exception):
    """A file is nothing to train on; the message says why."""


@dataclass(frozen=True)
class Listing:
    """The files of a source, whatever is in them."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, eq=False)
class Images:
    """A fixed list of images, each of which was readable once (check.py)."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted
    sizes: NDArray[np.int64]  # [N, 2], width and height, upright
    unreadable: frozenset[int] = frozenset()  # sample ids of those that have gone bad since

    def __len__(self) -> int:
        return len(self.files)

    def path(self, sample_id: int) -> Path:
        return self.root / self.files[sample_id]


def image_folder(root: Path) -> Listing:
    """List the JPEG, PNG and WebP files below a folder, with or without class folders.

    Raises:
        SourceError: the folder is missing or holds no such file.
    """
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder")
    files = sorted(path.relative_to(root).as_posix() for path in _walk(root) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SourceError(f"{root} holds no image; looked for {', '.join(SUFFIXES)} in it and below")
    return Listing(root, tuple(files))


def read_image(file: Path | BinaryIO) -> Image.Image:
    """Decode an image, upright and in RGB.

    Raises:
        BadImage: it is missing, truncated, of another format, animated, of 16 bits a channel, or larger than PIL's
            Image.MAX_IMAGE_PIXELS, beyond which a small file may unpack to more than the memory holds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph and its preview
                    raise BadImage("animated")
                if ";16" in str(image.tile):
                    raise BadImage("16 bits per channel; convert it to 8")
                ImageOps.exif_transpose(image, in_place=True)
                return image.convert("RGB")
    except BadImage:
        raise
    except Exception as error:  # a decoder that reads nonsense raises whatever it likes
        if isinstance(error, OSError) and error.errno in _OUT_OF_HANDLES:
            raise  # that is not the file's fault
        raise BadImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(_FORMATS)} image"
    return " ".join(str(error).split()) or type(error).__name__


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

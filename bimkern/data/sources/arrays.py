"""Arrays of images, [N, H, W, C] or [N, H, W], uint8 or of more bits: .npy and .npz files.

They are mapped into memory, so that only what is read takes any; arrays of a compressed .npz are read as a whole.

Shapes: N images, H W pixels, C channels.
"""

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bimkern.data.levels import KINDS
from bimkern.data.source import SourceError
from bimkern.data.sources.label_text import label_text
from bimkern.data.sources.mapped import MappedFile

IMAGES = ("images", "image", "train_images", "x_train", "data", "x")  # names of arrays, the likeliest first
_LABELS = {"image": "label"}
_KERAS = re.compile(r"[xX](?=_|$)")  # of which the labels are called y
_ZIP_HEADER = 30  # bytes before name and extra field of a member


class ArrayRows:
    """Images of an array, and its labels if there are any."""

    def __init__(self, path: Path, images: Any, labels: Any = None, mapped: MappedFile | None = None) -> None:
        """Take arrays, [N, H, W, C] or [N, H, W], and [N] or [N, 1], and the file that they are mapped from."""
        if images.dtype.kind not in KINDS or images.ndim not in (3, 4):
            raise SourceError(f"{path}: images must be numbers [N, H, W, C], got {images.dtype} {list(images.shape)}")
        self._images, self._mapped = images, mapped
        self.dtype = images.dtype
        if labels is not None:
            self._path, self._labels = path, labels
            fit = labels.shape[:1] == images.shape[:1] and math.prod(labels.shape[1:]) == 1
            self.label = self._label if fit else self._refuse_labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        if self._mapped is not None:
            self._mapped.check()
        return np.asarray(self._images[i])

    def _label(self, i: int) -> str | None:
        (label,) = np.asarray(self._labels[i]).reshape(-1).tolist()
        return label_text(label.decode() if isinstance(label, bytes) else label)

    def _refuse_labels(self, _: int) -> str | None:
        counts = f"{list(self._labels.shape)} for {len(self._images)} images"
        raise SourceError(f"{self._path}: labels must be one for each image, got {counts}")


class NpyRows(ArrayRows):
    """A .npy file."""

    survives_fork = True

    def __init__(self, path: Path, key: str | None) -> None:
        if key is not None:
            raise SourceError(f"{path} holds one array, which has no name; leave out :{key}")
        super().__init__(path, np.load(path, mmap_mode="r"), mapped=MappedFile(path))


class NpzRows(ArrayRows):
    """An array of a .npz file."""

    survives_fork = True

    def __init__(self, path: Path, key: str | None) -> None:
        with np.load(path) as archive:
            arrays = _Mapped(path, archive)
            key = choose(path, key, {name: arrays.header(name) for name in archive.files})
            label = label_of(key)
            labels = arrays[label] if label in archive.files else None
            super().__init__(path, arrays[key], labels, MappedFile(path))
            self.key = key


class _Mapped:
    """The arrays of a .npz file, mapped where they are not compressed."""

    def __init__(self, path: Path, archive: Any) -> None:
        self._path, self._archive = path, archive

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype."""
        with self._archive.zip.open(f"{name}.npy") as member:
            shape, _, dtype = _read_header(member)
            return shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._archive.zip.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return self._archive[name]
        with self._path.open("rb") as file:
            file.seek(member.header_offset + _ZIP_HEADER - 4)
            start = member.header_offset + _ZIP_HEADER
            start += int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
            file.seek(start)
            shape, by_columns, dtype = _read_header(file)
            offset = file.tell()
        return np.memmap(self._path, dtype, "r", offset, shape, "F" if by_columns else "C")


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    return read(file)


def choose(path: Path, key: str | None, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    """Return the name of the array of images: the one that is asked for, the only one, or one of a usual name.

    Where there are arrays of uint8 [N, H, W, C] or [N, H, W], others are not considered.

    Args:
        path: of the file, for messages.
        key: what is asked for.
        arrays: shape and dtype of all arrays.

    Raises:
        SourceError: there is none, or it is not clear which.
    """
    found = ", ".join(f"{name} {dtype} {list(shape)}" for name, (shape, dtype) in arrays.items()) or "none"
    if key is not None:
        if key not in arrays:
            raise SourceError(f"{path} has no array {key!r}; it has {found}")
        return key
    shaped = {name: dtype for name, (shape, dtype) in arrays.items() if len(shape) in (3, 4) and dtype.kind in KINDS}
    fitting = [name for name, dtype in shaped.items() if dtype == np.uint8] or list(shaped)
    usual = [name for name in IMAGES if name in fitting]
    if not fitting or (len(fitting) > 1 and not usual):
        what = "several arrays that may be images" if fitting else "no array of images, [N, H, W, C]"
        raise SourceError(f"{path} has {what}; it has {found}; name one as {path.name}:NAME")
    return fitting[0] if len(fitting) == 1 else usual[0]


def label_of(key: str) -> str:
    """Return the name of the labels of an array of images, which lie in the same group."""
    group, slash, name = key.rpartition("/")
    if _KERAS.match(name):
        return f"{group}{slash}y{name[1:]}"
    return group + slash + (_LABELS.get(name) or (name.replace("images", "labels") if "images" in name else "labels"))

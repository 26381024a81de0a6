"""Images that are numbered and not named: rows of arrays and tables, or what a user's own class reads."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
from numpy.lib import format as npy

from bimkern.data.formats import BadImage, OutOfResources, is_shortage
from bimkern.data.levels import KINDS
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError, title
from bimkern.data.sources.label_text import label_text
from bimkern.data.sources.per_process import PerProcess


class Rows(Protocol):
    """Numbered images.

    It may also have `label(i) -> str | None`, the class of an image; `names() -> Sequence[str]`, other names than the
    numbers, used if no two are equal; `stat(i) -> tuple[int, int]`, the bytes and time (ns) of an image; `dtype`, that
    of all images, where they are arrays; and `survives_fork = True`, if loader processes may use it as it was opened
    before.
    """

    def __len__(self) -> int: ...

    def read(self, i: int) -> "bytes | np.ndarray":
        """Return image i as an encoded file, or as an array, [H, W, C] or [H, W]."""


@dataclass(frozen=True, kw_only=True)
class RowImages(ABC):
    """The source of some rows, which every process opens for itself."""

    held_out: Source | None = None
    only_images: ClassVar[bool] = True
    on_disk: ClassVar[bool] = False

    @abstractmethod
    def open_rows(self) -> Rows:
        """Open the rows.

        Raises:
            SourceError: they cannot be read.
        """

    def files(self) -> dict[str, str | None]:
        vars(self).pop("_numbers", None)
        vars(self).pop("_rows", None)
        return dict.fromkeys(self._numbers or (f"{i:09d}" for i in range(len(self._rows()))))

    def stat(self, file: str) -> tuple[int, int]:
        stat = getattr(self._rows(), "stat", None)
        return (1, UNKNOWN_TIME) if stat is None else stat(self._number(file))

    def open(self, file: str) -> BinaryIO:
        try:
            content = self._read(self._number(file))
        except SourceError as error:  # every process opens the rows for itself
            if is_shortage(error.__cause__):
                raise OutOfResources(f"no file can be read: {error}") from error
            raise
        return BytesIO(content) if isinstance(content, (bytes, bytearray, memoryview)) else array_file(content)

    def path(self, file: str) -> None:
        return None

    @property
    def dtype(self) -> "np.dtype[Any] | None":
        """The dtype of all images, where they are arrays of one; None: it is not known."""
        found = getattr(self._rows(), "dtype", None)
        return None if found is None else np.dtype(found)

    def labels(self, files: Sequence[str]) -> dict[str, str]:
        """Return the labels of images.

        Raises:
            SourceError: the rows have none, or one of the images.
        """
        label = getattr(self._rows(), "label", None)
        if label is None:
            raise SourceError(f"{title(self)} has no labels")  # type: ignore[arg-type]  # its subclasses have paths
        found = {}
        for file in files:
            if (text := label_text(label(number := self._number(file)))) is None:
                where = title(self)  # type: ignore[arg-type]
                raise SourceError(f"{where}: {file}, row {number}, has no label; every image needs one")
            found[file] = text
        return found

    @cached_property
    def _rows(self) -> PerProcess[Rows]:
        return PerProcess(self.open_rows)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Numbers by name; empty where names are the numbers."""
        rows: Any = self._rows()
        numbers = {name: i for i, name in enumerate(getattr(rows, "names", list)())}
        return numbers if len(numbers) == len(rows) else {}

    def _read(self, i: int) -> "bytes | np.ndarray":
        return self._rows().read(i)

    def _number(self, file: str) -> int:
        return self._numbers[file] if self._numbers else int(file)


class Joined:
    """The rows of several files, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]
        self.survives_fork = all(part.survives_fork for part in parts)
        dtypes = [part.dtype for part in parts if part.dtype is not None]  # which for NumPy equals float64
        self.dtype = next((dtype for dtype in dtypes if dtype != np.uint8), None)
        if all(hasattr(part, "label") for part in parts):
            self.label = self._label

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, i: int) -> "bytes | np.ndarray":
        part, row = self._locate(i)
        return part.read(row)

    def names(self) -> list[str]:
        return [name for part in self._parts if hasattr(part, "names") for name in part.names()]

    def stat(self, i: int) -> tuple[int, int]:
        part, row = self._locate(i)
        return part.stat(row)

    def origin(self, i: int) -> tuple[str, str | None, int]:
        """Return file, key and row of an image."""
        part, row = self._locate(i)
        origin: tuple[str, str | None, int] = part.origin(row)
        return origin

    def _label(self, i: int) -> str | None:
        part, row = self._locate(i)
        return part.label(row)

    def _locate(self, i: int) -> tuple[Any, int]:
        part = bisect_right(self._starts, i) - 1
        return self._parts[part], i - self._starts[part]


def array_file(array: Any) -> BinaryIO:
    """Return an array [H, W, C] or [H, W] as a .npy file.

    Raises:
        BadImage: it is none of numbers.
    """
    array = np.asarray(array)
    if array.dtype.kind not in KINDS or array.ndim not in (2, 3):
        raise BadImage(f"{array.dtype} {list(array.shape)}; images are numbers [H, W, C]")
    stream = BytesIO()
    npy.write_array(stream, array if array.ndim == 3 else array[:, :, None])
    stream.seek(0)
    return stream

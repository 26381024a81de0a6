"""A user's own class of images, of which --data names the class: my_pkg.sources:Mine."""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
from numpy.lib import format as npy

from bimkern import pieces
from bimkern.data.formats import BadImage
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError
from bimkern.data.sources.per_process import PerProcess

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ReadsImages(Protocol):
    """What such a class needs; it is made without arguments, in every process that reads.

    It may also have `label(i) -> str`, and `stat(i) -> tuple[int, int]`, the bytes and time (ns) of an image: without
    that, all images are checked whenever a run starts.
    """

    def __len__(self) -> int: ...

    def read(self, i: int) -> "bytes | np.ndarray":
        """Return image i as an encoded file, or as an array, [H, W, C] or [H, W] uint8."""


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """The images that a user's own class reads; their names are their numbers."""

    name: str  # module:class
    held_out: Source | None = None
    paths: ClassVar[tuple[()]] = ()
    only_images: ClassVar[bool] = True

    @classmethod
    def accepts(cls, place: str) -> bool:
        return _NAME.fullmatch(place) is not None and not os.path.exists(place)

    @classmethod
    def of(cls, places: Sequence[str]) -> Source:
        """Return the source of a class; one that follows Source itself is made as it is."""
        if len(places) > 1:
            raise SourceError(f"--data takes one class, got {', '.join(places)}")
        found = _load(places[0])
        if isinstance(found, type) and found in pieces.registered(Source).values():
            return _make(places[0], found)
        return cls(name=places[0])

    @property
    def title(self) -> str:
        return self.name

    def files(self) -> dict[str, str | None]:
        return {f"{i:09d}": None for i in range(len(self._images))}

    def stat(self, file: str) -> tuple[int, int]:
        stat = getattr(self._images, "stat", None)
        return (1, UNKNOWN_TIME) if stat is None else stat(int(file))

    def open(self, file: str) -> BinaryIO:
        content = self._images.read(int(file))
        return BytesIO(content) if isinstance(content, (bytes, bytearray, memoryview)) else array_file(content)

    def path(self, file: str) -> None:
        return None

    def labels(self, files: Sequence[str]) -> dict[str, str]:
        label = getattr(self._images, "label", None)
        if label is None:
            raise SourceError(f"{self.name} has no method label(i), which returns the class of image i as text")
        return {file: str(label(int(file))) for file in files}

    @property
    def _images(self) -> ReadsImages:
        return self._per_process()

    @cached_property
    def _per_process(self) -> PerProcess[Any]:
        return PerProcess(lambda: _make(self.name, _load(self.name)))


def array_file(array: Any) -> BinaryIO:
    """Return an array [H, W, C] or [H, W] as a .npy file.

    Raises:
        BadImage: it is none of uint8.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise BadImage(f"{array.dtype} {list(array.shape)}; images are uint8 [H, W, C]")
    stream = BytesIO()
    npy.write_array(stream, array if array.ndim == 3 else array[:, :, None])
    stream.seek(0)
    return stream


def _load(name: str) -> Any:
    """Import what a name stands for.

    Raises:
        SourceError: it cannot be imported, or is no class that reads images.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the module is the user's
        raise SourceError(f"{module} cannot be imported ({type(error).__name__}: {error})") from error
    if found is None:
        raise SourceError(f"{module} has no {attribute!r}")
    if not callable(found):
        raise SourceError(f"{name} must be a class, or a function that returns an object, with __len__ and read(i)")
    return found


def _make(name: str, found: Any) -> Any:
    try:
        made = found()
    except Exception as error:
        raise SourceError(f"{name}() ended with {type(error).__name__}: {error}") from error
    needed = ("files",) if found in pieces.registered(Source).values() else ("__len__", "read")
    if missing := [member for member in needed if not hasattr(made, member)]:
        raise SourceError(f"{name} has no {' and no '.join(missing)}; it needs __len__ and read(i)")
    return made

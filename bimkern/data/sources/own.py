"""A user's own class of images, of which --data names the class: my_pkg.sources:Mine."""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from bimkern import pieces
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.per_process import PerProcess
from bimkern.data.sources.rows import RowImages, Rows

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class OwnImages(RowImages):
    """The images that a user's own class reads: Rows, made without arguments; their names are their numbers.

    Without `stat(i)`, all images are checked whenever a run starts. Several threads of a process read one after the
    other, unless the class says `thread_safe = True`.
    """

    name: str  # module:class
    paths: ClassVar[tuple[()]] = ()

    @classmethod
    def accepts(cls, place: str) -> bool:
        return _NAME.fullmatch(place) is not None and not os.path.exists(place)

    @classmethod
    def of(cls, places: Sequence[str]) -> Source:
        """Return the source of a class; one that follows Source itself is made as it is."""
        if len(places) > 1:
            raise SourceError(f"--data takes one class, got {', '.join(places)}")
        found = _load(places[0])
        if found in pieces.registered(Source).values():
            return _make(places[0], found)
        return cls(name=places[0])

    @property
    def title(self) -> str:
        return self.name

    def open_rows(self) -> Rows:
        rows = _make(self.name, _load(self.name))
        if missing := [member for member in ("__len__", "read") if not hasattr(rows, member)]:
            raise SourceError(f"{self.name} has no {' and no '.join(missing)}; it needs __len__ and read(i)")
        if (dtype := getattr(rows, "dtype", None)) is not None:
            try:
                np.dtype(dtype)
            except TypeError as error:
                raise SourceError(f"{self.name} has the dtype {dtype!r}, which NumPy does not know") from error
        return rows

    @property
    def holds_arrays(self) -> bool:
        return self.dtype is not None

    def _read(self, i: int) -> "bytes | np.ndarray":
        with nullcontext() if getattr(self._rows(), "thread_safe", False) else self._reading():
            return super()._read(i)

    @cached_property
    def _reading(self) -> PerProcess[Lock]:
        return PerProcess(Lock)


def _load(name: str) -> Any:
    """Import what a name stands for.

    Raises:
        SourceError: it cannot be imported, or is nothing that can be called.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the module is the user's
        raise SourceError(f"{module} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(found):
        what = f"has no {attribute!r}" if found is None else f"has {attribute!r}, which cannot be called"
        raise SourceError(f"{module} {what}; name a class with __len__ and read(i)")
    return found


def _make(name: str, found: Any) -> Any:
    try:
        return found()
    except Exception as error:
        raise SourceError(f"{name}() ended with {type(error).__name__}: {error}") from error

"""What every process opens for itself: handles of libraries that a forked process must not share."""

import os
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Call a function once in every process that asks for its result, whichever of its threads asks first.

    A result that says `survives_fork` is shared with processes that are forked later.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[tuple[int, T]] = []  # also those of parents, which closes nothing of theirs
        self._making: dict[int, Lock] = {}  # by process: a forked one may find those of its parents taken

    def __call__(self) -> T:
        if self._is_missing():
            with self._making.setdefault(os.getpid(), Lock()):
                if self._is_missing():
                    self._made.append((os.getpid(), self._make()))
        return self._made[-1][1]

    def _is_missing(self) -> bool:
        return not self._made or not (self._made[-1][0] == os.getpid() or _survives_fork(self._made[-1][1]))


def _survives_fork(made: object) -> bool:
    return getattr(made, "survives_fork", False)

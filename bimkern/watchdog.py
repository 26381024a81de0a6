"""Waits that end: a slow source is reported and waited for, and a request to stop breaks the wait.

Whatever may never come is awaited here: worker processes, a loader's threads, files on a disk that hangs, a save.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Generic, TypeVar

logger = logging.getLogger("bimkern.data")

Item = TypeVar("Item")

STALLED = 10.0  # seconds without progress, before a line says so
_POLL = 0.5  # seconds
_CLOSING = 3.0  # seconds that the end of an iterator is waited for

# Whether a stop was requested, and the seconds that a wait may then still be without progress.
_stop: ContextVar[tuple[Callable[[], bool], float]] = ContextVar("stop", default=(lambda: False, 0.0))


class Interrupted(Exception):
    """A stop was requested during a wait; the message says what was awaited."""


@contextmanager
def stopped_by(requested: Callable[[], bool], *, grace: float = 0.0) -> Iterator[None]:
    """Let every wait inside the context, on this thread, end with Interrupted once `requested()` is true.

    Args:
        requested: returns whether it is.
        grace: seconds without progress that each wait is left after that, or after its own begin.
    """
    token = _stop.set((requested, grace))
    try:
        yield
    finally:
        _stop.reset(token)


class Watchdog:
    """Wait for something again and again; it is never given up because it is slow.

    A stall is reported once, and again only after a wait that was short.
    """

    def __init__(self, what: str, *, patient: bool = False) -> None:
        """Watch over `what`, a noun for messages.

        Args:
            what: is awaited.
            patient: a requested stop ends a wait only where there is no progress, and not at once.
        """
        self._what = what
        self._grace = STALLED if patient else 0.0
        self._progress = 0.0
        self._reported = False

    def progress(self) -> None:
        """Note progress; any thread may."""
        self._progress = time.monotonic()

    def wait(self, ready: Callable[[float], bool]) -> None:
        """Wait until something is ready.

        Args:
            ready: waits at most that many seconds and returns whether it is.

        Raises:
            Interrupted: a stop was requested, and the watchdog is not patient any more.
        """
        stop_requested, grace = _stop.get()
        grace = max(grace, self._grace)
        begin = time.monotonic()
        stop: float | None = None
        while True:
            if stop is None and stop_requested():
                stop = time.monotonic()
            if stop is not None and self._idle(since=stop) >= grace:
                raise Interrupted(f"{self._what} has made no progress for {self._idle(since=begin):.0f} s")
            if ready(_POLL):
                break
            if not self._reported and self._idle(since=begin) >= STALLED:
                self._reported = True
                logger.warning("%s has made no progress for %.0f s; still waiting", self._what, STALLED)
        if time.monotonic() - begin < STALLED:
            self._reported = False

    def _idle(self, *, since: float) -> float:
        return time.monotonic() - max(since, self._progress)


class BackgroundTask(threading.Thread, Generic[Item]):
    """Work in a background thread, which does not keep the program from ending; its result or error is kept."""

    def __init__(self, work: Callable[[], Item], *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._result: list[Item] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self, watchdog: Watchdog) -> Item:
        """Wait for the result, and raise what the work raised.

        Raises:
            Interrupted: a stop was requested; the thread is left behind.
        """
        watchdog.wait(self._ended)
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _ended(self, seconds: float) -> bool:
        self.join(seconds)
        return not self.is_alive()


def watched(items: Iterator[Item], watchdog: Watchdog) -> Iterator[Item]:
    """Yield the items of an iterator that may hang; it runs, and is closed, in background threads, one at a time.

    Raises:
        Interrupted: a stop was requested; the iterator is left where it hangs.
    """
    end = object()
    try:
        while (item := BackgroundTask(partial(next, items, end), name="bimkern loader").result(watchdog)) is not end:
            yield item
    finally:
        if isinstance(items, Generator):
            BackgroundTask(items.close, name="bimkern loader").join(_CLOSING)


@contextmanager
def ending_at_once(*, native: bool = False) -> Iterator[None]:
    """Let the program end with the context, and with its own exit code, whatever still hangs.

    An interpreter that shuts down waits for some threads, and aborts when another one comes back out of C++ code.

    Args:
        native: threads of C++, which Python does not count, may run too, as those of ranks that exchange tensors.
    """
    code = 0
    try:
        yield
    except SystemExit as end:
        if not (native or threading.active_count() > 1):
            raise
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)  # as Python does
    except BaseException:
        if not native:
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        if not native:
            return
    if threading.active_count() == 1:
        atexit._run_exitfuncs()  # some wait for threads
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

"""SIGTERM and SIGINT: finish the step, save, and say how to resume."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from bimkern.errors import BimkernError
from bimkern.output import has_room

_HANDLED = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """SIGTERM came where there was nothing to save; like KeyboardInterrupt, no `except Exception` takes it."""


@contextmanager
def terminated_at_once() -> Iterator[None]:
    """Turn SIGTERM into Terminated."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Stopped(BimkernError):
    """The run ends here, and the same command resumes the run; the message says what ended it."""

    of_all_ranks = True

    def __init__(self, reason: str, *, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class StopSignals:
    """Note a signal for the loop to act on at the next step's edge or wait; a second SIGINT interrupts at once.

    Python drops what a signal handler raises while a finalizer runs. A second SIGINT at such a time interrupts when the
    context ends.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # by this process
        self.agreed: signal.Signals | None = None  # by any rank of the run, known to all
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may; its program then handles signals
            self._previous = {number: signal.signal(number, self._note) for number in _HANDLED}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._interrupted and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt

    def pending(self) -> bool:
        return self.received is not None

    def stopped(self, what: str) -> Stopped:
        """Return the end of a run by the signal received; `what` follows its name."""
        number = self.agreed or self.received
        assert number is not None
        return Stopped(f"stopped by {number.name}{what}", exit_code=128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            self._interrupted = True
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        with suppress(OSError, ValueError):  # the pipe may be closed; print() may not interrupt a print()
            if sys.stdout is not None and has_room(sys.stdout):
                os.write(sys.stdout.fileno(), f"{self.received.name}: finishing this step and saving\n".encode())

"""The clock of a run: how long its steps take, and how much of that they wait for data."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.loader import Loader


class TimedLoader:
    """A loader that knows how long it was waited for.

    A wait during which the device has work costs nothing and counts as none. That is an approximation: the device is
    looked at when the wait ends, so a wait that it slept through in part counts whole, from its beginning.
    """

    def __init__(self, loader: Loader, busy: Callable[[], bool]) -> None:
        """Take a loader, and what says whether the device is still at work."""
        self.started = 0.0  # seconds until the first micro-batch of every start
        self.waited = 0.0  # seconds for the others
        self.images = 0  # of those others
        self._loader, self._busy = loader, busy

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield what the loader yields, and raise what it raises."""
        batches, fresh = self._loader.batches(data, first, last), True
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            seconds = time.perf_counter() - begin
            if fresh:
                self.started += seconds
            else:
                self.images += len(batch.images)
                self.waited += 0 if self._busy() else seconds
            fresh = False
            yield batch


@dataclass(frozen=True)
class Lap:
    steps: int
    seconds: float
    waited: float  # seconds of them


class Clock:
    """Time laps of steps; a loader's start does not count, what is saved and drawn within the loop does."""

    def __init__(self, loader: TimedLoader, done: int) -> None:
        self._loader = loader
        self._last = self._now(done)

    def lap(self, done: int) -> Lap:
        """Return what has passed since the last lap."""
        last, self._last = self._last, self._now(done)
        return Lap(done - last.steps, self._last.seconds - last.seconds, self._last.waited - last.waited)

    def _now(self, done: int) -> Lap:
        return Lap(done, time.perf_counter() - self._loader.started, self._loader.waited)

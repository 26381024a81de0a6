"""Throughput of a run: the time between logged steps, and how much of it is spent waiting for data."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.loader import Loader


class TimedLoader:
    """A loader that measures how long it is waited for.

    A wait that overlaps with GPU work counts as zero. This is an approximation: the GPU is queried when the wait ends,
    so a wait that overlaps in part counts in full.
    """

    def __init__(self, loader: Loader, busy: Callable[[], bool]) -> None:
        """Wrap a loader; busy() returns whether the device still has work."""
        self.startup = 0.0  # seconds until the first micro-batch, of all starts together
        self.waited = 0.0  # seconds for the other micro-batches
        self.images = 0  # in those other micro-batches
        self._loader, self._busy = loader, busy

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield and raise what the loader does."""
        batches, starting = self._loader.batches(data, first, last), True
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            seconds = time.perf_counter() - begin
            if starting:
                self.startup += seconds
            else:
                self.images += len(batch.images)
                self.waited += 0 if self._busy() else seconds
            starting = False
            yield batch


@dataclass(frozen=True)
class Interval:
    """The time between two logged steps."""

    steps: int
    seconds: float
    waited: float  # seconds of it spent waiting for data


class Throughput:
    """Measure intervals of steps: checkpoints and pictures are included, evaluations and loaders' start-up are not."""

    def __init__(self, loader: TimedLoader, done: int) -> None:
        """Start the first interval after `done` steps."""
        self._loader = loader
        self._last = self._now(done)

    def interval(self, done: int) -> Interval:
        """End the interval after `done` steps, start the next, and return it."""
        last, self._last = self._last, self._now(done)
        return Interval(done - last.steps, self._last.seconds - last.seconds, self._last.waited - last.waited)

    def skip(self, done: int) -> None:
        """Leave what happened since the interval ended, after `done` steps, out of the next one."""
        self._last = self._now(done)

    def _now(self, done: int) -> Interval:
        return Interval(done, time.perf_counter() - self._loader.startup, self._loader.waited)

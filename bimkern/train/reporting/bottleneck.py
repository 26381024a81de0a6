"""Whether the loader limits a run: a prefetcher that can time the loader alone, and a warning."""

import logging
from collections import deque
from collections.abc import Iterator

import torch

from bimkern.data.batches import Batch
from bimkern.train.reporting.throughput import TimedLoader

logger = logging.getLogger("bimkern.train")

_HIGH_WAIT = 0.05  # share of an interval spent waiting for data
_INTERVALS = 2  # with a high wait, in a row, before the loader is timed
_AMPLE = 2.0  # a loader this many times as fast as the run is slowed down by the run itself
_MAX_STEPS, _MAX_BYTES = 8, 2**30  # limits of prefetching; the last step may exceed the bytes


class Prefetcher:
    """An iterator of steps that can load some of them ahead, to time the loader alone."""

    def __init__(self, steps: Iterator[list[Batch]], loader: TimedLoader) -> None:
        self._steps, self._loader = steps, loader
        self._ready: deque[list[Batch]] = deque()
        self._error: Exception | None = None

    def next(self) -> list[Batch]:
        """Return the next step; an error from prefetching is raised in place of the step that it belongs to."""
        if self._ready:
            return self._ready.popleft()
        if self._error is not None:
            raise self._error
        return next(self._steps)

    def loader_rate(self) -> float | None:
        """Prefetch some steps back to back; return images per second, None if no step had to be waited for.

        The first step is not timed: it may have been ready.
        """
        self._prefetch()
        images, waited = self._loader.images, self._loader.waited
        for _ in range(_MAX_STEPS):
            if not self._prefetch() or self._bytes() >= _MAX_BYTES:
                break
        waited = self._loader.waited - waited
        return (self._loader.images - images) / waited if waited > 0 else None

    def _prefetch(self) -> bool:
        """Load one step; return False at the end of the run or after an error."""
        if self._error is not None:
            return False
        try:
            self._ready.append(next(self._steps))
        except StopIteration:
            return False
        except Exception as error:
            self._error = error
            return False
        return True

    def _bytes(self) -> int:
        return sum(batch.images.nbytes for step in self._ready for batch in step)


class BottleneckWarning:
    """Warn once per run that its loader is the bottleneck."""

    def __init__(self) -> None:
        self._intervals = 0
        self._warned = False

    def note(self, step: int, data_wait: float, images_per_s: float, prefetcher: Prefetcher) -> None:
        """Take an interval's share of waiting for data and its throughput; warn after several slow ones in a row."""
        self._intervals = self._intervals + 1 if data_wait > _HIGH_WAIT else 0
        if self._warned or self._intervals < _INTERVALS:
            return
        rate = prefetcher.loader_rate()
        if rate is None:
            return
        self._warned = True
        if rate > _AMPLE * images_per_s:
            why = f"training leaves it too few cores: {_how_to_free_cores()}"
        else:
            why = "this is its limit here; more --workers, the other --loader, or smaller files raise it"
        logger.warning(
            "step %d: %.0f %% of the time is spent waiting for images. The loader alone reaches %.0f images/s, the run "
            "needs %.0f; %s",
            step,
            100 * data_wait,
            rate,
            images_per_s,
            why,
        )


def _how_to_free_cores() -> str:
    if torch.get_num_threads() > 1:
        return f"a lower OMP_NUM_THREADS (now {torch.get_num_threads()}) frees some"
    return "training already runs on one thread, so more cores or smaller files are needed"

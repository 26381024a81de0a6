"""The supply of a run: its steps as they are loaded, and whether they come fast enough."""

import logging
from collections import deque
from collections.abc import Iterator

import torch

from bimkern.data.batches import Batch
from bimkern.train.reporting.throughput import TimedLoader

logger = logging.getLogger("bimkern.train")

_WORTH_SAYING = 0.05  # share of the time
_LAPS = 2  # in a row
_AMPLE = 2.0  # times what the run takes: such a loader does not limit it by itself
_STEPS, _BYTES = 8, 2**30  # that are loaded ahead at most, but for one step over


class Supply:
    """The steps of a feed, in order; some may be loaded ahead, to time the loader alone."""

    def __init__(self, steps: Iterator[list[Batch]], loader: TimedLoader) -> None:
        self._steps, self._loader = steps, loader
        self._ready: deque[list[Batch]] = deque()
        self._error: Exception | None = None

    def next(self) -> list[Batch]:
        """Return the next step; what loading ahead ran into is raised when its turn comes."""
        if self._ready:
            return self._ready.popleft()
        if self._error is not None:
            raise self._error
        return next(self._steps)

    def loader_rate(self) -> float | None:
        """Load some of the next steps, with nothing in between; return images a second, None if none was waited for.

        The first step does not count, since it may have been ready.
        """
        self._load_ahead()
        images, waited = self._loader.images, self._loader.waited
        for _ in range(_STEPS):
            if not self._load_ahead() or sum(part.images.nbytes for step in self._ready for part in step) >= _BYTES:
                break
        waited = self._loader.waited - waited
        return (self._loader.images - images) / waited if waited > 0 else None

    def _load_ahead(self) -> bool:
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


def _more_cores() -> str:
    """Say what would give a loader more of the cores."""
    if torch.get_num_threads() > 1:
        return f"a lower OMP_NUM_THREADS (now {torch.get_num_threads()}) leaves it some"
    return "training runs on one thread already, so more cores or smaller files are needed"


class Shortage:
    """Say once in a run that its loader is what limits it."""

    def __init__(self) -> None:
        self._laps = 0
        self._said = False

    def note(self, step: int, data_wait: float, images_per_s: float, supply: Supply) -> None:
        """Take note of a lap: the share of it that was waited, and how fast it was."""
        self._laps = self._laps + 1 if data_wait > _WORTH_SAYING else 0
        if self._said or self._laps < _LAPS:
            return
        rate = supply.loader_rate()
        if rate is None:
            return
        self._said = True
        if rate > _AMPLE * images_per_s:
            why = f"training leaves it too few cores: {_more_cores()}"
        else:
            why = "that is its ceiling here: more --workers, the other --loader, or smaller files raise it"
        logger.warning(
            "step %d: %.0f %% of the time goes into waiting for images. The loader alone gives %.0f images/s, the run "
            "takes %.0f; %s",
            step,
            100 * data_wait,
            rate,
            images_per_s,
            why,
        )

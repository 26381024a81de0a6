"""The feed of a run: its steps, one after the other, whatever becomes of single images and of what loads them."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bimkern.data.batches import BadImages, Batch, MicroBatches
from bimkern.data.formats import OutOfResources
from bimkern.data.loader import Loader
from bimkern.data.workers import WorkerDied
from bimkern.errors import RunError

logger = logging.getLogger("bimkern.data")

_DEATHS = 3  # in a row, before the loader is given up

SetAside = Callable[[Mapping[Path, str], int], None]  # bad files and why, steps done


class FeedError(RunError, RuntimeError):
    """No further step can be loaded; the message says why."""


class Feed:
    """Load the steps of a run, without the images that go bad on the way, and through deaths of the loader."""

    def __init__(self, loader: Loader, data: MicroBatches, set_aside: SetAside) -> None:
        """Take a loader and what it is to load.

        Args:
            loader: decodes.
            data: the plan.
            set_aside: told of files that cannot be read any more; it raises if they have become too many.
        """
        self.data = data
        self._loader = loader
        self._set_aside = set_aside

    def steps(self, first: int, last: int) -> Generator[list[Batch], None, None]:
        """Yield the micro-batches of every step in [first, last).

        Raises:
            FeedError: the loader keeps dying.
        """
        layout = self.data.layout
        micro_batches = self._micro_batches(layout.index(first), layout.index(last))
        with closing(micro_batches):
            for step in range(first, last):
                yield [next(micro_batches) for _ in range(layout.at(step).per_step)]

    def _micro_batches(self, index: int, end: int) -> Generator[Batch, None, None]:
        deaths = 0
        while index < end:
            try:
                for batch in self._loader.batches(self.data, index, end):
                    index, deaths = index + 1, 0
                    yield batch
            except BadImages as bad:
                images = self.data.images
                faults = {images.path(sample_id): reason for sample_id, reason in bad.faults.items()}
                _, step, _ = self.data.layout.locate(index)
                self._set_aside(faults, step)
                unreadable = images.unreadable | bad.faults.keys()
                self.data = replace(self.data, images=replace(images, unreadable=unreadable))
            except (WorkerDied, OutOfResources, MemoryError) as death:
                deaths, why = deaths + 1, str(death) or "out of memory"
                if deaths == _DEATHS:
                    raise FeedError(f"the loader died {deaths} times at the same images ({why})") from death
                logger.warning("the loader died (%s) and is started again at the same images", why)

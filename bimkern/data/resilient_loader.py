"""A loader that survives bad images and its own death: it yields the steps of a run one after the other."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace

from bimkern.data.batches import BadImages, Batch, MicroBatches
from bimkern.data.formats import OutOfResources
from bimkern.data.loader import Loader
from bimkern.data.workers import WorkerDied
from bimkern.errors import RunError

logger = logging.getLogger("bimkern.data")

_MAX_DEATHS = 3  # at the same images

Quarantine = Callable[[Mapping[str, str], int], None]  # bad files and the reasons, steps done


class LoadingFailed(RunError, RuntimeError):
    """The next step cannot be loaded; the message gives the reason."""


class ResilientLoader:
    """Load the steps of a run, replace images that go bad on the way, and restart the loader when it dies."""

    def __init__(self, loader: Loader, data: MicroBatches, quarantine: Quarantine) -> None:
        """Wrap a loader.

        Args:
            loader: decodes the images.
            data: the micro-batches of the run.
            quarantine: called with files that can no longer be read; raises if there are too many.
        """
        self.data = data
        self._loader = loader
        self._quarantine = quarantine

    def steps(self, first: int, last: int) -> Generator[list[Batch], None, None]:
        """Yield the micro-batches of every step in [first, last).

        Raises:
            LoadingFailed: the loader keeps dying at the same images, or no image can be read any more.
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
                faults = {images.files[sample_id]: reason for sample_id, reason in bad.faults.items()}
                _, step, _ = self.data.layout.locate(index)
                self._quarantine(faults, step)
                unreadable = images.unreadable | bad.faults.keys()
                if len(unreadable) == len(images):
                    raise LoadingFailed(f"none of {len(images)} images can be read any more") from bad
                self.data = replace(self.data, images=replace(images, unreadable=unreadable))
            except (WorkerDied, OutOfResources, MemoryError) as death:
                deaths, why = deaths + 1, str(death) or "out of memory"
                if deaths == _MAX_DEATHS:
                    raise LoadingFailed(f"the loader died {deaths} times at the same images ({why})") from death
                logger.warning("the loader died (%s); it is restarted at the same images", why)

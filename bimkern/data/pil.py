"""The PIL loader: decodes, crops and resizes in worker processes, on any machine."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bimkern.data.augment import Int64
from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.source import SourceError

_PREFETCHED_BYTES = 1 << 30  # of all workers together


@dataclass(frozen=True, kw_only=True)
class PilLoader:
    """Decode with PIL, ahead in worker processes; with workers=0 in the calling process."""

    workers: int
    pin_memory: bool = False

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last).

        Raises:
            SourceError: an image cannot be read; the message names it.
        """
        loader = DataLoader(
            _Decoded(data),
            batch_size=None,  # an item is a batch already
            sampler=range(first, last),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self._prefetch(data) if self.workers else None,
            worker_init_fn=_leave_signals_to_the_run,
        )
        for item in loader:
            if isinstance(item, SourceError):
                raise item
            yield item

    def _prefetch(self, data: MicroBatches) -> int:
        """Return the micro-batches that a worker holds ready, within what shared memory may hold."""
        batch_bytes = min(data.micro_batch, data.batch_size) * 3 * data.size**2
        return max(1, min(4, _PREFETCHED_BYTES // (self.workers * batch_bytes)))


def decode(data: MicroBatches, index: int) -> Batch:
    """Decode micro-batch `index` in the calling process.

    Raises:
        SourceError: an image cannot be read; the message names it.
    """
    crops = data[index]
    pixels = [
        crop(data, int(i), size, box, bool(flip))
        for i, size, box, flip in zip(crops.sample_ids, crops.sizes, crops.boxes, crops.flips, strict=True)
    ]
    return Batch(torch.from_numpy(np.ascontiguousarray(np.stack(pixels))), torch.from_numpy(crops.draw_ids))


def crop(data: MicroBatches, sample_id: int, size: Int64, box: Int64, flip: bool) -> np.ndarray:
    """Cut a box out of an image of a known size, [C, H, W]; the filter also sees the pixels around the box."""
    image = data.images.open(sample_id)
    if image.size != tuple(size):
        raise SourceError(f"{data.images.path(sample_id)}: the file has changed while it was read")
    left, top, width, height = box.tolist()
    corners = (left, top, left + width, top + height)
    resized = image.resize((data.size, data.size), Image.Resampling.BICUBIC, box=corners)
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if flip else pixels


class _Decoded(Dataset[Batch | SourceError]):
    """Micro-batches as the items that torch's worker processes expect.

    An image that cannot be read is an item too: an exception would come back as the text of a traceback.
    """

    def __init__(self, data: MicroBatches) -> None:
        self._data = data

    def __getitem__(self, index: int) -> Batch | SourceError:
        try:
            return decode(self._data, index)
        except SourceError as error:
            return error


def _leave_signals_to_the_run(worker: int) -> None:
    """Go on through a Ctrl-C, which reaches the whole process group, and end when the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

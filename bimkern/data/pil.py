"""The PIL loader: decodes, crops and resizes in worker processes, on any machine."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from bimkern.data.augment import Interpolation
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.formats import BadImage, OutOfResources, decode_file
from bimkern.data.orientation import turned
from bimkern.data.workers import ahead

_PREFETCHED_BYTES = 1 << 30  # of all workers together
_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True, kw_only=True)
class PilLoader:
    """Decode with PIL, ahead in worker processes; with workers=0 in the calling process."""

    workers: int
    pin_memory: bool = False

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last).

        Raises:
            BadImages: some of the next micro-batch cannot be read.
            WorkerDied, OutOfResources: nothing can be read; the next micro-batch has not been yielded.
        """

        def load(index: int) -> Batch | Exception:
            try:
                return decode(data, index)
            except (BadImages, OutOfResources) as error:
                return error  # raised over there it would come back as the text of a traceback

        indices, prefetch = range(first, last), self._prefetch(data) if self.workers else 0
        for item in ahead(load, indices, workers=self.workers, prefetch=prefetch, pin_memory=self.pin_memory):
            if isinstance(item, Exception):
                raise item
            yield item

    def _prefetch(self, data: MicroBatches) -> int:
        """Return the micro-batches that a worker holds ready: a whole step and one, if shared memory may hold them."""
        stretches = data.course.stretches
        batch_bytes = max(s.micro_batch * 3 * s.image_size**2 for s in stretches)
        wanted = 1 + max(-(-s.per_step // self.workers) for s in stretches)
        return max(1, min(max(4, wanted), _PREFETCHED_BYTES // (self.workers * batch_bytes)))


def decode(data: MicroBatches, index: int) -> Batch:
    """Decode micro-batch `index` in the calling process.

    Raises:
        BadImages: some of them cannot be read.
        OutOfResources: none can.
    """
    crops = data[index]
    pixels, faults = [], {}
    for i, sample_id in enumerate(crops.sample_ids.tolist()):
        try:
            pixels.append(crop(data, crops, i))
        except BadImage as error:
            faults[sample_id] = str(error)
    if faults:
        raise BadImages(faults)
    images = np.ascontiguousarray(np.stack(pixels))  # stack() keeps the order of what it is given, H W C
    return Batch(torch.from_numpy(images), torch.from_numpy(crops.draw_ids))


def crop(data: MicroBatches, crops: Crops, i: int) -> np.ndarray:
    """Make image i of a micro-batch, [C, H, W]; the filter also sees the pixels around the box.

    Raises:
        BadImage: it cannot be read, or is not of the size that it was planned with.
    """
    stored = decode_file(data.images.path(int(crops.sample_ids[i])))
    image = turned(stored.pixels, int(crops.orientations[i]))
    if image.size != tuple(crops.sizes[i]):
        raise BadImage("its size has changed since it was checked")
    left, top, width, height = crops.boxes[i].tolist()
    corners = (left, top, left + width, top + height)
    resized = image.resize((crops.size, crops.size), _FILTERS[data.augment.interpolation], box=corners)
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if crops.flips[i] else pixels

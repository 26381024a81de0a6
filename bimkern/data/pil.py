"""The PIL loader: decodes, crops and resizes in worker processes, on any machine."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bimkern.data.augment import Interpolation
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.formats import BadImage, OutOfResources
from bimkern.data.integers import Int64
from bimkern.data.workers import ahead

logger = logging.getLogger("bimkern.data")

_PREFETCHED_BYTES = 1 << 30  # of all workers together
Bytes = NDArray[np.uint8]
_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True, kw_only=True)
class PilLoader:
    """Decode with PIL, ahead in worker processes; with workers=0 in this process, as batches are asked for."""

    workers: int
    pin_memory: bool = False

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last).

        Raises:
            BadImages: some of the next micro-batch cannot be read.
            WorkerDied, OutOfResources: nothing can be read; the next micro-batch has not been yielded.
            Interrupted: a stop was requested while a micro-batch was awaited.
        """
        if self.workers == 0:
            for batch in ahead(partial(decode, data), range(first, last), workers=0, prefetch=0):
                yield batch.pin_memory() if self.pin_memory else batch
            return
        prefetch, slots = self._slots(data)
        free = list(range(len(slots)))

        def load(job: int) -> tuple[int, Int64, Int64, tuple[int, ...]]:
            index, slot = divmod(job, len(slots))
            crops = data[index]
            decode_into(_view(slots, slot, crops.shape), data, crops)
            return slot, crops.draw_ids, crops.sample_ids, crops.shape

        jobs = (index * len(slots) + free.pop() for index in range(first, last))
        for slot, draw_ids, sample_ids, shape in ahead(load, jobs, workers=self.workers, prefetch=prefetch):
            pixels = _view(slots, slot, shape)
            batch = Batch(*map(torch.from_numpy, (pixels, draw_ids, sample_ids)))
            if free and not self.pin_memory:
                finalize(pixels, free.append, slot).atexit = False  # when the caller is done with the tensor
            else:  # the next job needs one
                batch = batch.pin_memory() if self.pin_memory else replace(batch, images=batch.images.clone())
                free.append(slot)
            yield batch

    def _slots(self, data: MicroBatches) -> tuple[int, Bytes]:
        """Return how many micro-batches a worker prepares ahead, and memory that the processes share, a row for each.

        There are rows for two more steps, which the caller may hold. The memory has no name: the size of /dev/shm does
        not limit it, and a killed run leaves nothing behind.

        Raises:
            OutOfResources: there is too little for one micro-batch a worker.
        """
        segments = data.layout.segments
        batch_bytes = max(s.micro_batch * data.images.channels * s.image_size.pixels for s in segments)
        per_step = max(s.per_step for s in segments)
        enough = max(4, -(-per_step // self.workers) + 1)
        wanted = prefetch = max(1, min(enough, _PREFETCHED_BYTES // (self.workers * batch_bytes)))
        while prefetch:
            count = self.workers * prefetch + 1 + 2 * per_step
            try:
                memory = mmap(-1, count * batch_bytes)
            except OSError as error:
                shortage = error
                prefetch //= 2
                continue
            if prefetch < wanted:
                logger.warning(
                    "no memory for %d batches a worker (%s); each prepares %d ahead", wanted, shortage, prefetch
                )
            return prefetch, np.frombuffer(memory, dtype=np.uint8).reshape(count, batch_bytes)
        raise OutOfResources(
            f"no memory for a batch of {batch_bytes} bytes in each of {self.workers} workers ({shortage}); fewer "
            f"--workers or a smaller --micro-batch need less"
        )


def _view(slots: Bytes, slot: int, shape: tuple[int, ...]) -> Bytes:
    return slots[slot, : math.prod(shape)].reshape(shape)


def decode(data: MicroBatches, index: int) -> Batch:
    """Decode micro-batch `index`.

    Raises:
        BadImages: some of its images cannot be read.
        OutOfResources: none can.
    """
    crops = data[index]
    images = np.empty(crops.shape, dtype=np.uint8)
    decode_into(images, data, crops)
    return crops.batch(torch.from_numpy(images))


def decode_into(images: Bytes, data: MicroBatches, crops: Crops) -> None:
    """Decode a micro-batch into an array [B, C, H, W].

    Raises:
        BadImages, OutOfResources: as decode().
    """
    faults = {}
    sample_ids = crops.sample_ids.tolist()
    data.images.read_ahead(sample_ids)
    for i, sample_id in enumerate(sample_ids):
        try:
            images[i] = crop(data, crops, i)
        except BadImage as error:
            faults[sample_id] = str(error)
    if faults:
        raise BadImages(faults)
    if data.pixel_transform is not None:
        data.pixel_transform(images, crops.draw_ids, data.seed)


def crop(data: MicroBatches, crops: Crops, i: int) -> np.ndarray:
    """Make image i of a micro-batch, [C, H, W].

    Channels are resized one by one. It is cropped as it is stored; the crop is turned, which costs less.

    Raises:
        BadImage: it cannot be read, or is not of the size that it was planned with.
    """
    boxes = crops.stored_boxes
    stored = data.images.decode(int(crops.sample_ids[i]), int(crops.reductions[i]))
    height, width = boxes.sizes[i].tolist()
    if stored.size != (width, height):
        raise BadImage("its size has changed since it was checked")
    top, left = (boxes.corners[i] / stored.reduction).tolist()
    bottom, right = ((boxes.corners[i] + boxes.extents[i]) / stored.reduction).tolist()
    size = crops.size if boxes.transposed[i] else crops.size[::-1]  # width and height, as it is stored
    chosen, box = _FILTERS[data.augment.interpolation], (left, top, right, bottom)
    if data.augment.crop_filter == "inside":
        resized = [plane.crop(box).resize(size, chosen) for plane in stored.planes]
    else:
        resized = [plane.resize(size, chosen, box=box) for plane in stored.planes]
    down, across = (slice(None, None, -1 if mirrored else 1) for mirrored in boxes.mirrored[i])
    pixels = np.dstack([np.asarray(plane) for plane in resized])[down, across]  # [H, W, C]
    return pixels.transpose(2, 1, 0) if boxes.transposed[i] else pixels.transpose(2, 0, 1)

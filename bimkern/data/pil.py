"""The PIL loader: decodes, crops and resizes in worker processes, on any machine."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bimkern.data.batches import Batch, MicroBatches
from bimkern.data.source import SourceError


@dataclass(frozen=True, kw_only=True)
class PilLoader:
    """Decode with PIL, ahead in worker processes; with workers=0 in the calling process."""

    workers: int
    pin_memory: bool = False

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last)."""
        loader = DataLoader(
            _Decoded(data),
            batch_size=None,  # an item is a batch already
            sampler=range(first, last),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            prefetch_factor=4 if self.workers else None,
        )
        return iter(loader)


def decode(data: MicroBatches, index: int) -> Batch:
    """Decode micro-batch `index` in the calling process.

    Raises:
        SourceError: an image cannot be read; the message names it.
    """
    crops = data[index]
    pixels = [
        crop(data, int(i), box, bool(flip))
        for i, box, flip in zip(crops.sample_ids, crops.boxes, crops.flips, strict=True)
    ]
    return Batch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(crops.draw_ids))


def crop(data: MicroBatches, sample_id: int, box: np.ndarray, flip: bool) -> np.ndarray:
    """Cut a box out of an image, [C, H, W]; the filter also sees the pixels around the box."""
    image = data.images.open(sample_id)
    if image.size != tuple(data.images.sizes[sample_id]):
        raise SourceError(f"{data.images.path(sample_id)}: the file has changed since the run began")
    left, top, width, height = box.tolist()
    corners = (left, top, left + width, top + height)
    resized = image.resize((data.size, data.size), Image.Resampling.BICUBIC, box=corners)
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if flip else pixels


class _Decoded(Dataset[Batch]):
    """Micro-batches as the items that torch's worker processes expect."""

    def __init__(self, data: MicroBatches) -> None:
        self._data = data

    def __getitem__(self, index: int) -> Batch:
        return decode(self._data, index)

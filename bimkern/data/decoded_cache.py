"""Decoded images kept in memory: decoded once, in worker processes, and read from there by all loaders of this process.

The memory has no name and is shared with processes that are forked later, which only read it.

Shapes: N images.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimkern.data.check import Progress
from bimkern.data.decoding import Decoded
from bimkern.data.formats import CONVERTED, BadImage, OutOfResources
from bimkern.data.images import Images
from bimkern.data.integers import Int64
from bimkern.data.orientation import FIRST_TRANSPOSED
from bimkern.data.source import SourceError, title
from bimkern.data.workers import WorkerDied, ahead

_CHUNK = 16  # images per job of a worker
_NOT_KEPT = -1
_REMEDY = "leave out --cache memory, or shrink the images with python -m bimkern.pack"


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The pixels of images as their files store them, in full size."""

    memory: NDArray[np.uint8]
    offsets: NDArray[np.int64]  # [N], where each begins in the memory
    sizes: NDArray[np.int64]  # [N, 2], width and height, not turned
    orientations: NDArray[np.int64]  # [N]
    channels: int

    def only(self, chosen: Int64) -> "DecodedImages":
        return replace(
            self,
            offsets=self.offsets[chosen],
            sizes=self.sizes[chosen],
            orientations=self.orientations[chosen],
        )

    def get(self, i: int) -> Decoded | None:
        """Return an image, None if it is not there."""
        offset = int(self.offsets[i])
        if offset == _NOT_KEPT:
            return None
        width, height = self.sizes[i].tolist()
        if self.channels in CONVERTED:
            planes = [(CONVERTED[self.channels], self.channels * width * height)]
        else:
            planes = self.channels * [("L", width * height)]
        images = []
        for mode, count in planes:
            pixels = self.memory[offset : offset + count]
            images.append(Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1))
            offset += count
        return Decoded(tuple(images), (width, height), 1, int(self.orientations[i]), pil_only=True)


def bytes_of(images: Images) -> int:
    """Return the bytes that images take when they are decoded."""
    return images.channels * int(images.sizes.prod(axis=1).sum())


def kept_in_memory(images: Images, *, workers: int, progress: Progress | None = None) -> Images:
    """Decode images, and return them with their pixels. One that cannot be read is left to the loader.

    Args:
        images: which were readable once.
        workers: processes that decode; with 0 this one does.
        progress: called after every few images.

    Raises:
        SourceError: there is no memory for them.
    """
    turned = (images.orientations >= FIRST_TRANSPOSED)[:, None]
    sizes = np.where(turned, images.sizes[:, ::-1], images.sizes)
    ends = np.cumsum(images.channels * sizes.prod(axis=1))
    offsets = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    kept = np.full(len(images), _NOT_KEPT, dtype=np.int64)
    try:
        memory = np.frombuffer(mmap(-1, int(ends[-1])), dtype=np.uint8)

        def work(first: int) -> list[int]:
            ids = range(first, min(first + _CHUNK, len(images)))
            return [i for i in ids if _write(images, i, memory[offsets[i] : ends[i]], sizes[i])]

        jobs: dict[str, Any] = {"workers": workers, "prefetch": 2, "what": "decoding the images"}
        with closing(ahead(work, range(0, len(images), _CHUNK), in_order=False, **jobs)) as results:
            for done, ids in enumerate(results, start=1):
                kept[ids] = offsets[ids]
                if progress is not None:
                    progress(min(done * _CHUNK, len(images)), len(images))
    except (OSError, WorkerDied, OutOfResources, MemoryError) as error:
        why = str(error) or "out of memory"
        raise SourceError(f"{title(images.source)} cannot be kept decoded ({why}); {_REMEDY}") from error
    return replace(images, kept=DecodedImages(memory, kept, sizes, images.orientations, images.channels))


def _write(images: Images, i: int, memory: NDArray[np.uint8], size: NDArray[np.int64]) -> bool:
    """Decode an image into memory; return whether it is what it was when it was checked."""
    try:
        image = images.decode(i)
    except BadImage:
        return False
    if image.size != tuple(size.tolist()):
        return False
    at = 0
    for plane in image.planes:
        pixels = np.asarray(plane).reshape(-1)
        memory[at : at + len(pixels)] = pixels
        at += len(pixels)
    return True

"""What DALI gets of every micro-batch: encoded images or their paths, windows to decode, and boxes in these.

Paths, where all images lie on disk and DALI can read them by itself; else bytes, which threads read one micro-batch
ahead of the one that DALI asks for.

Shapes: B samples of a micro-batch; H W order, as DALI wants it.
"""

import os
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bimkern.data import pil
from bimkern.data.augment import Interpolation
from bimkern.data.batches import Crops, MicroBatches
from bimkern.data.file_checks import FileCheck
from bimkern.data.formats import BadImage
from bimkern.data.integers import Int64
from bimkern.data.orientation import StoredBoxes

Inputs = tuple[list[np.ndarray], Int64, Int64, np.ndarray, np.ndarray, np.ndarray]

# In source pixels on either side, times the factor by which the filter shrinks.
_REACH: dict[Interpolation, int] = {"bicubic": 2, "bilinear": 1}
SOUND = FileCheck(width=8, height=8)
_SOUND_BOX = (0, 0, SOUND.width, SOUND.height)


@dataclass(frozen=True)
class Planned:
    """A micro-batch on its way, and what is left to do when DALI has done its part."""

    crops: Crops
    boxes: StoredBoxes
    by_pil: dict[int, Future[np.ndarray]]  # crops that DALI has made of the sound image, [C, H, W]
    unread: dict[int, Exception] = field(default_factory=dict)  # so are these, whose bytes could not be read

    def faults(self, sizes: Int64) -> dict[int, str]:
        """Say what is wrong with which samples, given the height and width that DALI found, [B, 2].

        Raises:
            OutOfResources: no image can be read.
        """
        changed = (sizes != self.boxes.sizes).any(axis=1)  # so it cut out something else
        ids = self.crops.sample_ids
        faults = dict.fromkeys(ids[changed].tolist(), "its size has changed since it was checked")
        for i, error in (self.unread | {i: crop.exception() for i, crop in self.by_pil.items()}).items():
            if isinstance(error, BadImage):
                faults[int(ids[i])] = str(error)
            elif error is not None:
                raise error
        return faults


@dataclass(frozen=True)
class Sound:
    """An image that any decoder decodes, as an array of bytes: its path, or its content."""

    array: np.ndarray
    path: Path


def planned_inputs(
    data: MicroBatches, plan: Iterator[Crops], planned: deque[Planned], sound: Sound, pool: ThreadPoolExecutor
) -> Iterator[Inputs]:
    """Yield what DALI needs for every micro-batch, and note in `planned` what it has been given."""
    for crops, contents in _read_ahead(data, plan, pool):
        by_pil = {int(i): pool.submit(pil.crop, data, crops, int(i)) for i in np.flatnonzero(crops.pil_only)}
        arrays = _paths(data, crops, sound) if contents is None else [sound.array] * len(crops.sample_ids)
        unread: dict[int, Exception] = {}
        for i, content in (contents or {}).items():
            if (error := content.exception()) is None:
                arrays[i] = content.result()
            else:
                assert isinstance(error, Exception)
                unread[i] = error
        inputs, boxes = _inputs(data, crops, arrays)
        planned.append(Planned(crops, boxes, by_pil, unread))
        yield inputs


def inputs_now(data: MicroBatches, crops: Crops, sound: Sound) -> Inputs:
    """Return what DALI needs for a micro-batch.

    Raises:
        BadImage, OutOfResources: it cannot be read.
    """
    if data.images.on_disk:
        arrays = _paths(data, crops, sound)
    else:
        arrays = [sound.array] * len(crops.sample_ids)
        for i in np.flatnonzero(~crops.pil_only).tolist():
            arrays[i] = _content(data, int(crops.sample_ids[i]))
    return _inputs(data, crops, arrays)[0]


def _read_ahead(
    data: MicroBatches, plan: Iterator[Crops], pool: ThreadPoolExecutor
) -> Iterator[tuple[Crops, dict[int, Future[np.ndarray]] | None]]:
    """Yield micro-batches with the bytes of those images that DALI decodes, None where it reads them by itself."""
    if data.images.on_disk:
        yield from ((crops, None) for crops in plan)
        return
    waiting: deque[tuple[Crops, dict[int, Future[np.ndarray]]]] = deque()
    for crops in plan:
        data.images.read_ahead(crops.sample_ids.tolist())
        chosen = np.flatnonzero(~crops.pil_only).tolist()
        waiting.append((crops, {i: pool.submit(_content, data, int(crops.sample_ids[i])) for i in chosen}))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _content(data: MicroBatches, sample_id: int) -> np.ndarray:
    """Return the bytes of an encoded image.

    Raises:
        BadImage, OutOfResources: it, or any, cannot be read now.
    """
    with data.images.open(sample_id) as file:
        content = file.read()
    if not content:
        raise BadImage("empty")
    return np.frombuffer(content, dtype=np.uint8)


def _paths(data: MicroBatches, crops: Crops, sound: Sound) -> list[np.ndarray]:
    ids = zip(crops.sample_ids.tolist(), crops.pil_only, strict=True)
    return [sound.array if of_pil else _path_array(data.images.path(i)) for i, of_pil in ids]


def _path_array(path: Path) -> np.ndarray:
    return np.frombuffer(os.fsencode(path), dtype=np.uint8)


def _inputs(data: MicroBatches, crops: Crops, arrays: list[np.ndarray]) -> tuple[Inputs, StoredBoxes]:
    """Return what DALI needs for a micro-batch, given paths or contents, and the boxes that it then cuts out."""
    crops = _without_pils(crops)
    boxes = crops.stored_boxes
    window, window_extent = boxes.corners, boxes.extents
    if data.augment.crop_filter == "around":
        reach = _REACH[data.augment.interpolation]
        window, window_extent = _widened(window, window_extent, np.array(crops.size), boxes.sizes, reach=reach)
    start = boxes.corners - window
    ends = np.stack([start, start + boxes.extents]).astype(np.float32)
    first, last = np.where(boxes.mirrored, ends[::-1], ends)  # a region that ends before it starts is mirrored
    sides = np.full_like(first, crops.size)  # [B, 2]; those that are transposed are squares
    return (arrays, window, window_extent, first, last, sides), boxes


def _without_pils(crops: Crops) -> Crops:
    """Put the sound image in the position of those that DALI is not to decode: a batch of DALI's cannot be empty."""
    pil_only = crops.pil_only
    return replace(
        crops,
        sizes=np.where(pil_only[:, None], _SOUND_BOX[2:], crops.sizes),
        orientations=np.where(pil_only, SOUND.orientation, crops.orientations),
        boxes=np.where(pil_only[:, None], _SOUND_BOX, crops.boxes),
    )


def _widened(
    corner: NDArray[Any], extent: NDArray[Any], size: Int64, image: Int64, *, reach: int
) -> tuple[Int64, Int64]:
    """Widen boxes by what the filter sees around them in their images; return corners and extents, [B, 2]."""
    margin = np.ceil(reach * np.maximum(extent / size, 1)) + 1
    first = np.maximum(np.floor(corner - margin), 0).astype(np.int64)
    return first, np.minimum(np.ceil(corner + extent + margin), image).astype(np.int64) - first


@contextmanager
def sound_image(on_disk: bool) -> Iterator[Sound]:
    """Write an image that any decoder decodes, SOUND, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.jpg")
        Image.new("RGB", _SOUND_BOX[2:]).save(path)
        yield Sound(_path_array(path) if on_disk else np.frombuffer(path.read_bytes(), dtype=np.uint8), path)

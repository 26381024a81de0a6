"""The DALI loader: decodes, crops, resizes and flips in threads, or on the GPU.

All randomness comes from outside: DALI gets paths, boxes and flips, and draws nothing itself.

DALI cuts a window out while it decodes and replicates the pixels at its edge, where PIL's filter sees the image around
the box. So the window is wider than the box, by the reach of the filter, and only the box in it is resized: the two
loaders then differ by rounding, and in the outermost pixels of crops that touch the edge of their image.

Shapes: B samples of a micro-batch; H W order, as DALI wants it.
"""

import importlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bimkern.data import pil
from bimkern.data.augment import Int64, Interpolation, RandomResizedCrop
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.course import Course
from bimkern.data.source import BadImage, Images
from bimkern.data.watchdog import Watchdog, watched
from bimkern.data.workers import WorkerDied

_CPU = torch.device("cpu")
_IN_FLIGHT = 3  # micro-batches at least, with the one in use
# In source pixels on either side, times the factor by which the filter shrinks.
_REACH: dict[Interpolation, int] = {"bicubic": 2, "bilinear": 1}
_Inputs = tuple[list[np.ndarray], Int64, Int64, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def unusable(device: torch.device = _CPU) -> str | None:
    """Return the reason why DALI cannot be used here for a device, None where it can."""
    try:
        importlib.import_module("nvidia.dali.plugin.pytorch.torch_utils")
        if device.type == "cuda":
            _run_nothing(device)
    except Exception as error:  # a library that does not load raises whatever it likes
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _run_nothing(device: torch.device) -> None:
    """Run an empty pipeline on a GPU: an old driver shows only there."""
    from nvidia.dali import Pipeline, types

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device.index or 0)
    with pipeline:
        pipeline.set_outputs(types.Constant(0, device="gpu"))
    pipeline.build()
    pipeline.run()


@dataclass(frozen=True, kw_only=True)
class DaliLoader:
    """Decode with DALI: on the device if it is a GPU, else in threads."""

    threads: int
    device: torch.device

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last).

        Raises:
            BadImages: some of the next micro-batch cannot be read.
            WorkerDied: DALI failed, and no image is to blame; the next micro-batch has not been yielded.
            Interrupted: a stop was requested while a micro-batch was awaited.
        """
        for batch in watched(self._batches(data, first, last), Watchdog("the DALI loader")):
            if batch.images.is_cuda:
                batch.images.record_stream(torch.cuda.current_stream(self.device))  # of the thread that uses them
            yield batch

    def _batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        planned: deque[Crops] = deque()
        plan = (data[index] for index in range(first, last))
        pipeline = self._pipeline(data, _feed(data, plan, planned))
        take = _take_from_gpu(self.device) if self.device.type == "cuda" else _take
        for _ in range(first, last):
            pipeline.schedule_run()
            try:
                pixels, sizes = pipeline.outputs()
            except RuntimeError as error:
                # It names no file, and fails in whatever comes after: this pipeline is done for.
                raise self._culprits(data, planned[0], error) from error
            crops = planned.popleft()
            found = np.asarray(sizes.as_tensor())[:, [1, 0]]
            changed = crops.sample_ids[(found != crops.sizes).any(axis=1)].tolist()
            if changed:  # so it cut out something else
                raise BadImages(dict.fromkeys(changed, "its size has changed since it was checked"))
            yield Batch(take(pixels), torch.from_numpy(crops.draw_ids))

    def _culprits(self, data: MicroBatches, crops: Crops, error: RuntimeError) -> BadImages | WorkerDied:
        """Find the images that made DALI fail: those that PIL refuses, else those that DALI fails on alone."""
        faults: dict[int, str] = {}
        fails_alone: dict[int, str] = {}
        for i, sample_id in enumerate(crops.sample_ids.tolist()):
            try:
                pil.crop(data, crops, i)
            except BadImage as fault:
                faults[sample_id] = str(fault)
        if faults:
            return BadImages(faults)
        for i, sample_id in enumerate(crops.sample_ids.tolist()):
            refusal = self._refusal(data, crops.only(i))
            if refusal is not None:
                fails_alone[sample_id] = f"PIL decodes it and DALI does not ({refusal})"
        if fails_alone and self._decodes_a_sound_image():
            return BadImages(fails_alone)
        return WorkerDied(f"DALI fails ({_reason(error)}); --loader pil does without it")

    def _decodes_a_sound_image(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            Image.new("RGB", (8, 8)).save(Path(folder, "sound.jpg"))
            images = Images(Path(folder), ("sound.jpg",), np.array([[8, 8]]))
            course = Course.alike(image_size=8, batch_size=1, micro_batch=1)
            data = MicroBatches(images=images, augment=RandomResizedCrop(), seed=0, course=course)
            return self._refusal(data, data[0]) is None

    def _refusal(self, data: MicroBatches, crops: Crops) -> str | None:
        """Return what DALI has against some images, None if nothing."""
        pipeline = self._pipeline(data, _feed(data, iter([crops]), deque()))
        pipeline.schedule_run()
        try:
            pipeline.outputs()
        except RuntimeError as error:
            return _reason(error)
        return None

    def _pipeline(self, data: MicroBatches, source: Iterator[_Inputs]) -> Any:
        from nvidia.dali import Pipeline, fn, math, types

        filters: dict[Interpolation, Any] = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
        on_gpu, stretches = self.device.type == "cuda", data.course.stretches
        pipeline = Pipeline(
            batch_size=max(stretch.micro_batch for stretch in stretches),
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=max(_IN_FLIGHT, *(stretch.per_step + 1 for stretch in stretches)),
        )
        with pipeline:
            path, corner, extent, roi_start, roi_end, flip, side = fn.external_source(source=source, num_outputs=7)
            encoded = fn.io.file.read(path)
            # The decoder kills the process on a file whose header makes no sense or whose image does not hold the
            # window. So the header is read before, which is an error like any other, and the window is kept inside.
            size = fn.peek_image_shape(encoded, dtype=types.INT64)
            corner = math.min(corner, size[:2] - 1)
            decoded = fn.decoders.image_slice(
                encoded,
                corner,
                math.min(extent, size[:2] - corner),
                device="mixed" if on_gpu else "cpu",
                axis_names="HW",
                normalized_anchor=False,
                normalized_shape=False,
                output_type=types.RGB,
                jpeg_fancy_upsampling=True,  # as PIL does
            )
            resized = fn.resize(
                decoded,
                size=side,
                roi_start=roi_start,
                roi_end=roi_end,
                interp_type=filters[data.augment.interpolation],
                antialias=True,
            )
            pixels = fn.crop_mirror_normalize(resized, mirror=flip, dtype=types.UINT8, output_layout="CHW")
            pipeline.set_outputs(pixels, size)
        pipeline.build()
        return pipeline


def _feed(data: MicroBatches, plan: Iterator[Crops], planned: deque[Crops]) -> Iterator[_Inputs]:
    """Yield what DALI needs for every micro-batch, and note in `planned` what it has been given."""
    for crops in plan:
        planned.append(crops)
        paths = [np.frombuffer(os.fsencode(data.images.path(int(i))), dtype=np.uint8) for i in crops.sample_ids]
        left, top, width, height = crops.boxes.T
        corner, extent = np.stack([top, left], axis=1), np.stack([height, width], axis=1)  # [B, 2]
        window, window_extent = _widened(
            corner, extent, crops.size, crops.sizes[:, ::-1], reach=_REACH[data.augment.interpolation]
        )
        start = corner - window
        regions = (start.astype(np.float32), (start + extent).astype(np.float32))
        sides = np.full_like(corner, crops.size, dtype=np.float32)  # [B, 2]
        yield paths, window, window_extent, *regions, crops.flips.astype(np.int32), sides


def _widened(corner: Int64, extent: Int64, size: int, image: Int64, *, reach: int) -> tuple[Int64, Int64]:
    """Widen boxes by what the filter sees around them in their images; return corners and extents, [B, 2]."""
    margin = np.ceil(reach * np.maximum(extent / size, 1)).astype(np.int64) + 1
    first = np.maximum(corner - margin, 0)
    return first, np.minimum(corner + extent + margin, image) - first


def _take(pixels: Any) -> Tensor:
    """Copy a batch out of DALI's memory, which is its own again when the next batch is asked for."""
    from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

    return to_torch_tensor(pixels.as_tensor(), copy=True)


def _take_from_gpu(device: torch.device) -> Callable[[Any], Tensor]:
    """Return a _take that waits for its copy, and not for the kernels that the training has queued."""
    stream = torch.cuda.Stream(device)

    def take(pixels: Any) -> Tensor:
        with torch.cuda.stream(stream):
            images = _take(pixels)
        stream.synchronize()
        return images

    return take


def _reason(error: RuntimeError) -> str:
    """Return the line in which DALI says what it encountered, out of the many that say where."""
    message = str(error)
    _, found, told = message.partition("encountered:")
    return " ".join((told.strip().splitlines()[0] if found else message).split())[:200]

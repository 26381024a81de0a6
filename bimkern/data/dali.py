"""The DALI loader: decodes, crops, resizes and flips in threads, or on the GPU.

All randomness comes from outside: DALI gets paths, boxes and flips, and draws nothing itself.

DALI cuts a window out while it decodes and replicates the pixels at its edge, where PIL's filter sees the image around
the box. So the window is wider than the box, by the reach of the filter, and only the box in it is resized: the two
loaders then differ by rounding, and in the outermost pixels of crops that touch the edge of their image.

Shapes: B samples of a micro-batch; H W order, as DALI wants it.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bimkern.data import pil
from bimkern.data.augment import Int64
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.source import BadImage
from bimkern.data.workers import WorkerDied

_CPU = torch.device("cpu")
_IN_FLIGHT = 3  # micro-batches at least, with the one in use
_CUBIC_REACH = 2  # source pixels on either side, times the factor by which the filter shrinks
_Inputs = tuple[list[np.ndarray], Int64, Int64, np.ndarray, np.ndarray, np.ndarray]


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
        """
        from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

        planned: deque[Crops] = deque()
        plan = (data[index] for index in range(first, last))
        pipeline = self._pipeline(data, _feed(data, plan, planned))
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
            yield Batch(to_torch_tensor(pixels.as_tensor(), copy=True), torch.from_numpy(crops.draw_ids))

    def _culprits(self, data: MicroBatches, crops: Crops, error: RuntimeError) -> BadImages | WorkerDied:
        """Find the images that made DALI fail: those that PIL refuses, else those that DALI fails on alone."""
        faults, fails_alone = {}, {}
        for i, sample_id in enumerate(crops.sample_ids.tolist()):
            try:
                pil.crop(data, crops, i)
            except BadImage as fault:
                faults[sample_id] = str(fault)
        if faults:
            return BadImages(faults)
        for i, sample_id in enumerate(crops.sample_ids.tolist()):
            pipeline = self._pipeline(data, _feed(data, iter([crops.only(i)]), deque()))
            pipeline.schedule_run()
            try:
                pipeline.outputs()
            except RuntimeError as fault:
                fails_alone[sample_id] = f"PIL decodes it and DALI does not ({_line(fault)})"
        if 0 < len(fails_alone) < len(set(crops.sample_ids.tolist())):
            return BadImages(fails_alone)
        return WorkerDied(f"DALI fails ({_line(error)})")

    def _pipeline(self, data: MicroBatches, source: Iterator[_Inputs]) -> Any:
        from nvidia.dali import Pipeline, fn, math, types

        on_gpu = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=min(data.micro_batch, data.batch_size),
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=max(_IN_FLIGHT, data.per_step + 1),
        )
        with pipeline:
            path, corner, extent, roi_start, roi_end, flip = fn.external_source(source=source, num_outputs=6)
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
                size=(data.size, data.size),
                roi_start=roi_start,
                roi_end=roi_end,
                interp_type=types.INTERP_CUBIC,
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
        window, window_extent = _widened(corner, extent, data.size, crops.sizes[:, ::-1])
        start = corner - window
        regions = (start.astype(np.float32), (start + extent).astype(np.float32))
        yield paths, window, window_extent, *regions, crops.flips.astype(np.int32)


def _widened(corner: Int64, extent: Int64, size: int, image: Int64) -> tuple[Int64, Int64]:
    """Widen boxes by what the filter sees around them in their images; return corners and extents, [B, 2]."""
    reach = np.ceil(_CUBIC_REACH * np.maximum(extent / size, 1)).astype(np.int64) + 1
    first = np.maximum(corner - reach, 0)
    return first, np.minimum(corner + extent + reach, image) - first


def _line(reason: object) -> str:
    return " ".join(str(reason).split())

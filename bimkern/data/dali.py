"""The DALI loader: decodes, crops, resizes and flips in threads, or on the GPU.

All randomness comes from outside: DALI gets paths and boxes, and draws nothing itself. Nor does it turn an image: it
sees a box as the image is stored. What it might decode to something else than PIL is cropped by PIL (formats.py).

DALI cuts a window out while it decodes and replicates the pixels at its edge, where PIL's filter sees the image around
the box. So the window is wider than the box, by the reach of the filter, and only the box in it is resized: the two
loaders then differ by rounding, in the outermost pixels of crops that touch the edge of their image, and where the
filter overshoots: Pillow's bicubic clips to 8 bits between its two passes, DALI's at the end. Where the filter is to
see the inside of the box alone, the window is the box, and all outermost pixels differ.

Shapes: B samples of a micro-batch; H W order, as DALI wants it.
"""

import importlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bimkern import optional
from bimkern.data import pil
from bimkern.data.augment import Int64, Interpolation, RandomResizedCrop
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.check import images
from bimkern.data.file_checks import FileCheck
from bimkern.data.formats import BadImage
from bimkern.data.orientation import StoredBoxes
from bimkern.data.source import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.data.workers import WorkerDied
from bimkern.watchdog import Watchdog, watched

_CPU = torch.device("cpu")
_IN_FLIGHT = 3  # micro-batches at least, with the one in use
# In source pixels on either side, times the factor by which the filter shrinks.
_REACH: dict[Interpolation, int] = {"bicubic": 2, "bilinear": 1}
_SOUND = FileCheck(width=8, height=8)
_SOUND_BOX = (0, 0, _SOUND.width, _SOUND.height)
_Inputs = tuple[list[np.ndarray], Int64, Int64, np.ndarray, np.ndarray, np.ndarray]


def unusable(device: torch.device = _CPU) -> str | None:
    """Return the reason why DALI cannot be used here for a device, None where it can."""
    try:
        importlib.import_module("nvidia.dali.plugin.pytorch.torch_utils")
        if device.type == "cuda":
            _run_nothing(device)
    except Exception as error:  # a library that does not load may raise anything
        return optional.first_line(error)
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
    regions: bool = True  # decode no more of an image than its crop needs

    def batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        """Yield micro-batches [first, last).

        Raises:
            BadImages: some of the next micro-batch cannot be read.
            WorkerDied: DALI failed, and no image is to blame; the next micro-batch has not been yielded.
            Interrupted: a stop was requested while a micro-batch was awaited.
            ValueError: data changes pixels, which needs PIL.
        """
        if data.pixel_transform is not None:
            raise ValueError(
                f"DaliLoader: augment must crop and flip alone, got {data.pixel_transform.name}; take PilLoader"
            )
        for batch in watched(self._batches(data, first, last), Watchdog("the DALI loader")):
            if batch.images.is_cuda:
                batch.images.record_stream(torch.cuda.current_stream(self.device))  # of the thread that uses them
            yield batch

    def _batches(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        planned: deque[_Planned] = deque()
        plan = (data[index] for index in range(first, last))
        take = _take_from_gpu(self.device) if self.device.type == "cuda" else _take
        with _sound_image() as sound, _pool(self.threads) as pool:
            pipeline = self._pipeline(data, _external_source(data, plan, planned, sound, pool))
            for _ in range(first, last):
                pipeline.schedule_run()
                try:
                    pixels, sizes = pipeline.outputs()
                except RuntimeError as error:
                    # It names no file, and fails in whatever comes after: this pipeline is done for.
                    raise self._culprits(data, planned[0].crops, error) from error
                due = planned.popleft()
                if faults := due.faults(np.asarray(sizes.as_tensor())[:, :2]):
                    raise BadImages(faults)
                yield due.crops.batch(take(pixels, due))

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
        with _sound_image() as sound:
            only = images(ImageFolder(paths=(sound.parent,)), {sound.name: _SOUND})
            layout = StepLayout.uniform(image_size=8, batch_size=1, micro_batch=1)
            data = MicroBatches(images=only, augment=RandomResizedCrop(), seed=0, layout=layout)
            return self._refusal(data, data[0]) is None

    def _refusal(self, data: MicroBatches, crops: Crops) -> str | None:
        """Return what DALI has against some images, None if nothing."""
        with _sound_image() as sound:
            pipeline = self._pipeline(data, iter([_inputs(data, _without_pils(crops), sound)[0]]))
            pipeline.schedule_run()
            try:
                pipeline.outputs()
            except RuntimeError as error:
                return _reason(error)
        return None

    def _pipeline(self, data: MicroBatches, source: Iterator[_Inputs]) -> Any:
        from nvidia.dali import Pipeline, fn, math, types

        filters: dict[Interpolation, Any] = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
        on_gpu, segments = self.device.type == "cuda", data.layout.segments
        pipeline = Pipeline(
            batch_size=max(segment.micro_batch for segment in segments),
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=max(_IN_FLIGHT, *(segment.per_step + 1 for segment in segments)),
        )
        with pipeline:
            path, corner, extent, roi_start, roi_end, side = fn.external_source(source=source, num_outputs=6)
            encoded = fn.io.file.read(path)
            # The decoder kills the process on a file whose header makes no sense or whose image does not hold the
            # window. So the header is read before, which is an error like any other, and the window is kept inside.
            size = fn.peek_image_shape(encoded, dtype=types.INT64, adjust_orientation=False)
            corner = math.min(corner, size[:2] - 1)
            window = (corner, math.min(extent, size[:2] - corner))
            decoder: dict[str, Any] = {
                "device": "mixed" if on_gpu else "cpu",
                "output_type": {1: types.GRAY, 3: types.RGB}[data.images.channels],
                "jpeg_fancy_upsampling": True,  # as PIL does
                "adjust_orientation": False,
            }
            in_pixels: dict[str, Any] = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
            if self.regions:
                decoded = fn.decoders.image_slice(encoded, *window, **in_pixels, **decoder)
            else:
                decoded = fn.slice(fn.decoders.image(encoded, **decoder), *window, **in_pixels)
            resized = fn.resize(
                decoded,
                size=side,
                roi_start=roi_start,
                roi_end=roi_end,
                interp_type=filters[data.augment.interpolation],
                antialias=True,
            )
            pixels = fn.crop_mirror_normalize(resized, dtype=types.UINT8, output_layout="CHW")
            pipeline.set_outputs(pixels, size)
        pipeline.build()
        return pipeline


@dataclass(frozen=True)
class _Planned:
    """A micro-batch on its way, and what is left to do when DALI has done its part."""

    crops: Crops
    boxes: StoredBoxes
    by_pil: dict[int, Future[np.ndarray]]  # crops that DALI has made of the sound image, [C, H, W]

    def faults(self, sizes: Int64) -> dict[int, str]:
        """Say what is wrong with which samples, given the height and width that DALI found, [B, 2]."""
        changed = (sizes != self.boxes.sizes).any(axis=1)  # so it cut out something else
        ids = self.crops.sample_ids
        faults = dict.fromkeys(ids[changed].tolist(), "its size has changed since it was checked")
        for i, crop in self.by_pil.items():
            error = crop.exception()
            if isinstance(error, BadImage):
                faults[int(ids[i])] = str(error)
        return faults


def _external_source(
    data: MicroBatches, plan: Iterator[Crops], planned: deque[_Planned], sound: Path, pool: ThreadPoolExecutor
) -> Iterator[_Inputs]:
    """Yield what DALI needs for every micro-batch, and note in `planned` what it has been given."""
    for crops in plan:
        by_pil = {int(i): pool.submit(pil.crop, data, crops, int(i)) for i in np.flatnonzero(crops.pil_only)}
        inputs, boxes = _inputs(data, _without_pils(crops), sound)
        planned.append(_Planned(crops, boxes, by_pil))
        yield inputs


def _without_pils(crops: Crops) -> Crops:
    """Put the sound image in the position of those that DALI is not to decode: a batch of DALI's cannot be empty."""
    pil_only = crops.pil_only
    return replace(
        crops,
        sizes=np.where(pil_only[:, None], _SOUND_BOX[2:], crops.sizes),
        orientations=np.where(pil_only, _SOUND.orientation, crops.orientations),
        boxes=np.where(pil_only[:, None], _SOUND_BOX, crops.boxes),
    )


def _inputs(data: MicroBatches, crops: Crops, sound: Path) -> tuple[_Inputs, StoredBoxes]:
    """Return what DALI needs for a micro-batch, and the boxes that it then cuts out."""
    images, boxes = data.images, crops.stored_boxes
    files = [
        sound if of_pil else images.path(int(i)) for i, of_pil in zip(crops.sample_ids, crops.pil_only, strict=True)
    ]
    paths = [np.frombuffer(os.fsencode(file), dtype=np.uint8) for file in files]
    window, window_extent = boxes.corners, boxes.extents
    if data.augment.crop_filter == "around":
        reach = _REACH[data.augment.interpolation]
        window, window_extent = _widened(window, window_extent, crops.size, boxes.sizes, reach=reach)
    start = boxes.corners - window
    ends = np.stack([start, start + boxes.extents]).astype(np.float32)
    first, last = np.where(boxes.mirrored, ends[::-1], ends)  # a region that ends before it starts is mirrored
    sides = np.full_like(first, crops.size)  # [B, 2]
    return (paths, window, window_extent, first, last, sides), boxes


def _widened(corner: NDArray[Any], extent: NDArray[Any], size: int, image: Int64, *, reach: int) -> tuple[Int64, Int64]:
    """Widen boxes by what the filter sees around them in their images; return corners and extents, [B, 2]."""
    margin = np.ceil(reach * np.maximum(extent / size, 1)) + 1
    first = np.maximum(np.floor(corner - margin), 0).astype(np.int64)
    return first, np.minimum(np.ceil(corner + extent + margin), image).astype(np.int64) - first


def _take(pixels: Any, due: _Planned) -> Tensor:
    """Copy a batch out of DALI's memory, which is its own again when the next batch is asked for, and complete it."""
    from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

    images: Tensor = to_torch_tensor(pixels.as_tensor(), copy=True)
    transposed = torch.from_numpy(np.flatnonzero(due.boxes.transposed))
    if len(transposed):
        images[transposed] = images[transposed].transpose(-1, -2)
    for i, crop in due.by_pil.items():
        images[i] = torch.from_numpy(np.ascontiguousarray(crop.result()))
    return images


def _take_from_gpu(device: torch.device) -> Callable[[Any, _Planned], Tensor]:
    """Return a _take that waits for its copies, and not for the kernels that the training has queued."""
    stream = torch.cuda.Stream(device)

    def take(pixels: Any, due: _Planned) -> Tensor:
        with torch.cuda.stream(stream):
            images = _take(pixels, due)
        stream.synchronize()
        return images

    return take


@contextmanager
def _sound_image() -> Iterator[Path]:
    """Write an image that any decoder decodes, _SOUND, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.jpg")
        Image.new("RGB", _SOUND_BOX[2:]).save(path)
        yield path


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)  # starts none before it has work
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a file may hang


def _reason(error: RuntimeError) -> str:
    """Return the line in which DALI says what it encountered, out of the many that say where."""
    message = str(error)
    _, found, told = message.partition("encountered:")
    return " ".join((told.strip().splitlines()[0] if found else message).split())[:200]

"""The DALI loader: decodes, crops, resizes and flips in threads, or on the GPU.

All randomness comes from outside: DALI gets images and boxes (dali_inputs.py), and draws nothing itself. Nor does it
turn an image: it sees a box as the image is stored. What it might decode to something else than PIL is cropped by PIL
(formats.py), and so is what it turns out not to decode.

DALI cuts a window out while it decodes and replicates the pixels at its edge, where PIL's filter sees the image around
the box. So the window is wider than the box, by the reach of the filter, and only the box in it is resized: the two
loaders then differ by rounding, in the outermost pixels of crops that touch the edge of their image, and where the
filter overshoots: Pillow's bicubic clips to 8 bits between its two passes, DALI's at the end. Where the filter is to
see the inside of the box alone, the window is the box, and all outermost pixels differ.

Shapes: B samples of a micro-batch; H W order, as DALI wants it.
"""

import importlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bimkern import optional
from bimkern.data import pil
from bimkern.data.augment import Interpolation, RandomResizedCrop
from bimkern.data.batches import BadImages, Batch, Crops, MicroBatches
from bimkern.data.check import images
from bimkern.data.dali_inputs import SOUND, Inputs, Planned, inputs_now, planned_inputs, sound_image
from bimkern.data.formats import BadImage
from bimkern.data.names import Names
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.data.workers import WorkerDied
from bimkern.image_size import ImageSize
from bimkern.watchdog import Watchdog, watched

logger = logging.getLogger("bimkern.data")

_CPU = torch.device("cpu")
_IN_FLIGHT = 3  # micro-batches at least, with the one in use


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
    refused: set[str] = field(default_factory=set, repr=False, compare=False)  # files that DALI does not decode

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
        while first < last:
            try:
                for batch in self._decoded(self._with_refused(data), first, last):
                    first += 1
                    yield batch
            except _Refused as refused:  # this pipeline is done for
                self._note(refused.reasons)

    def _with_refused(self, data: MicroBatches) -> MicroBatches:
        """Leave what DALI has refused to PIL."""
        if not self.refused:
            return data
        ids = data.images.files.indexes_of(Names.of(self.refused))
        pil_only = data.images.pil_only.copy()
        pil_only[ids[ids >= 0]] = True
        return replace(data, images=replace(data.images, pil_only=pil_only))

    def _note(self, reasons: dict[str, str]) -> None:
        """Remember images that DALI does not decode, and say so once, with their number when it has doubled."""
        before = len(self.refused)
        self.refused.update(reasons)
        file, reason = next(iter(reasons.items()))
        if before == 0:
            logger.warning("DALI does not decode %s (%s); PIL decodes it, and all like it, for DALI", file, reason)
        elif len(self.refused).bit_length() > before.bit_length():
            logger.warning("PIL decodes %d images for DALI that it does not", len(self.refused))

    def _decoded(self, data: MicroBatches, first: int, last: int) -> Iterator[Batch]:
        planned: deque[Planned] = deque()
        plan = (data[index] for index in range(first, last))
        take = _take_from_gpu(self.device) if self.device.type == "cuda" else _take
        with sound_image(data.images.on_disk) as sound, _pool(self.threads) as pool:
            pipeline = self._pipeline(data, planned_inputs(data, plan, planned, sound, pool))
            for _ in range(first, last):
                pipeline.schedule_run()
                try:
                    pixels, sizes = pipeline.outputs()
                except RuntimeError as error:
                    # It names no file, and fails in whatever comes after: this pipeline is done for.
                    raise self._culprits(data, planned[0], error) from error
                due = planned.popleft()
                if faults := due.faults(np.asarray(sizes.as_tensor())[:, :2]):
                    raise BadImages(faults)
                yield due.crops.batch(take(pixels, due))

    def _culprits(self, data: MicroBatches, due: Planned, error: RuntimeError) -> Exception:
        """Find the images that made DALI fail: those that PIL refuses, else those that DALI fails on alone.

        Not those that PIL decodes for DALI: to name them again would restart it for ever.
        """
        crops, faults, reasons = due.crops, dict[int, str](), dict[str, str]()
        for i, sample_id in enumerate(crops.sample_ids.tolist()):
            try:
                pil.crop(data, crops, i)
            except BadImage as fault:
                faults[sample_id] = str(fault)
        if faults:
            return BadImages(faults)
        for i in np.flatnonzero(~crops.pil_only).tolist():
            if (refusal := self._refusal(data, crops.only(i))) is not None:
                reasons[data.images.files[crops.sample_ids[i]]] = refusal
        if reasons and self._decodes_a_sound_image():
            return _Refused(reasons)
        return WorkerDied(f"DALI fails ({_reason(error)}); --loader pil does without it")

    def _decodes_a_sound_image(self) -> bool:
        with sound_image(on_disk=True) as sound:
            only = images(ImageFolder(paths=(sound.path.parent,)), {sound.path.name: SOUND})
            layout = StepLayout.uniform(image_size=ImageSize.square(8), batch_size=1, micro_batch=1)
            data = MicroBatches(images=only, augment=RandomResizedCrop(), seed=0, layout=layout)
            return self._refusal(data, data[0]) is None

    def _refusal(self, data: MicroBatches, crops: Crops) -> str | None:
        """Return what DALI has against some images, None if nothing."""
        with sound_image(data.images.on_disk) as sound:
            try:
                inputs = inputs_now(data, crops, sound)
            except BadImage as fault:  # a moment ago it was none: PIL will say
                return str(fault)
            pipeline = self._pipeline(data, iter([inputs]))
            pipeline.schedule_run()
            try:
                pipeline.outputs()
            except RuntimeError as error:
                return _reason(error)
        return None

    def _pipeline(self, data: MicroBatches, source: Iterator[Inputs]) -> Any:
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
            encoded, corner, extent, roi_start, roi_end, side = fn.external_source(source=source, num_outputs=6)
            if data.images.on_disk:
                encoded = fn.io.file.read(encoded)
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


class _Refused(Exception):
    """DALI does not decode some images that PIL decodes: `reasons` by file."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


def _take(pixels: Any, due: Planned) -> Tensor:
    """Copy a batch out of DALI's memory, which is its own again when the next batch is asked for, and complete it."""
    from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

    images: Tensor = to_torch_tensor(pixels.as_tensor(), copy=True)
    transposed = torch.from_numpy(np.flatnonzero(due.boxes.transposed))
    if len(transposed):
        images[transposed] = images[transposed].transpose(-1, -2)
    for i, crop in due.by_pil.items():
        images[i] = torch.from_numpy(np.ascontiguousarray(crop.result()))
    return images


def _take_from_gpu(device: torch.device) -> Callable[[Any, Planned], Tensor]:
    """Return a _take that waits for its copies, and not for the kernels that the training has queued."""
    stream = torch.cuda.Stream(device)

    def take(pixels: Any, due: Planned) -> Tensor:
        with torch.cuda.stream(stream):
            images = _take(pixels, due)
        stream.synchronize()
        return images

    return take


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

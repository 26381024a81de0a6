"""What to load: the micro-batches of a run, as sample ids, crop boxes and flips.

The training data is one endless stream of epochs, cut into steps without a gap, so that nothing is dropped and any
batch size fits any data set. A step's samples depend on (seed, step, layout) alone: the state of the data is the step
number. How pixels are made of this is up to the loader (loader.py).

An image that has gone bad is replaced, draw by draw, by another one that depends on the draw alone: a run that is
resumed while it is bad replaces it by the same.

Shapes: B samples of a micro-batch, C channels, H W pixels.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bimkern.data.augment import (
    Cropping,
    PixelTransform,
    draw_ids,
    reductions,
    replacements,
    sample_sequence,
)
from bimkern.data.images import Images
from bimkern.data.integers import Int64
from bimkern.data.orientation import Boxes, StoredBoxes, stored_boxes
from bimkern.data.step_layout import StepLayout
from bimkern.image_size import ImageSize


@dataclass(frozen=True)
class Batch:
    """One micro-batch as it comes from a loader, on the host or on the device."""

    images: Tensor  # [B, C, H, W] uint8
    draw_ids: Tensor  # [B] int64, names sample and epoch
    sample_ids: Tensor  # [B] int64, the images shown: other ones than were due where those have gone bad

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.draw_ids.pin_memory(), self.sample_ids.pin_memory())


class BadImages(Exception):
    """Some images of a micro-batch cannot be read: `faults` has the reason for each sample id."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__(faults)
        self.faults = faults


@dataclass(frozen=True)
class Crops:
    """One micro-batch as it is planned."""

    sample_ids: Int64  # [B], what is shown
    draw_ids: Int64  # [B], of what was due: it is the same unless the image has gone bad
    sizes: Int64  # [B, 2], width, height of the whole images, upright
    orientations: Int64  # [B], how the stored images are turned upright
    pil_only: NDArray[np.bool_]  # [B], images that DALI might decode to something else
    boxes: Boxes  # [B, 4], left, top, width, height
    reductions: Int64  # [B], a JPEG may be decoded at 1 / reduction of its width and height
    flips: NDArray[np.bool_]  # [B]
    size: ImageSize  # of the crops
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the pixels, [B, C, H, W]."""
        return len(self.draw_ids), self.channels, *self.size

    @cached_property
    def stored_boxes(self) -> StoredBoxes:
        """Return the boxes in the images as they are stored."""
        return stored_boxes(self.boxes, self.flips, self.sizes, self.orientations)

    def batch(self, images: Tensor) -> Batch:
        """Return the micro-batch with its pixels, [B, C, H, W] uint8."""
        return Batch(images, torch.from_numpy(self.draw_ids), torch.from_numpy(self.sample_ids))

    def only(self, i: int) -> "Crops":
        """Return the micro-batch of image i alone."""
        arrays: dict[str, Any] = {name: v[i : i + 1] for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


def step_draw_ids(layout: StepLayout, step: int, num_images: int, seed: int) -> Tensor:
    """Return the draw ids of all images of a step, [B], whichever rank takes them."""
    return torch.from_numpy(
        draw_ids(*sample_sequence(layout.image(step), layout.at(step).batch_size, num_images, seed))
    )


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Item i is micro-batch i of the run, a pure function of i: the last one of a step may be smaller."""

    images: Images
    augment: Cropping
    seed: int
    layout: StepLayout
    jpeg_draft: float = 0.0  # the oversampling that reduced JPEGs keep (augment.py); 0 for full decoding

    pixel_transform: PixelTransform | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Here, so that a refusal comes before any worker, and workers need not import timm one by one.
        object.__setattr__(self, "pixel_transform", self.augment.pixel_transform(self.images.channels))

    def __getitem__(self, index: int) -> Crops:
        segment, step, part = self.layout.locate(index)
        share = segment.share[part * segment.micro_batch :][: segment.micro_batch]
        first, count = segment.image(step) + share.start, len(share)
        epochs, sample_ids = sample_sequence(first, count, len(self.images), self.seed)
        draws = draw_ids(epochs, sample_ids)
        sample_ids = replacements(draws, sample_ids, self.images.unreadable, len(self.images), self.seed)
        images, augment = self.images, self.augment
        # Pixels of a draft may lie across the edges of a box: no filter could see the inside alone.
        draft = self.jpeg_draft if augment.crop_filter == "around" else 0.0
        sizes, size = images.sizes[sample_ids], segment.image_size
        boxes = augment.boxes(draws, sizes, self.seed, size=size)
        return Crops(
            sample_ids,
            draws,
            sizes,
            images.orientations[sample_ids],
            images.for_pil(size, sample_ids),
            boxes,
            reductions(boxes, size, draft),
            augment.flips(draws, self.seed),
            size,
            images.channels,
        )

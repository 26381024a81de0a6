"""Order, crop boxes and flips as pure functions of (seed, epoch, sample id).

They do not depend on batch size, workers, device or resume; masks (ops/random_keep.py) draw from the same generator.

Shapes: B samples.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from bimkern.data.integers import Int64
from bimkern.data.orientation import Boxes
from bimkern.image_size import ImageSize
from bimkern.rng import WORD, Stream, draw

Interpolation = Literal["bicubic", "bilinear"]
CropFilter = Literal["around", "inside"]

_TRIES = 10
_REDUCTIONS = (2, 4, 8)  # besides 1; those of a JPEG
_EPOCH_SHIFT = 40


def draw_ids(epochs: Int64, sample_ids: Int64) -> Int64:
    """Name each (epoch, sample) by one int64; room for 2**40 samples and 2**23 epochs."""
    return (epochs << _EPOCH_SHIFT) | sample_ids


@lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> Int64:
    """Return the order in which an epoch visits the samples, a permutation of [0, num_samples)."""
    ids = np.arange(num_samples, dtype=np.int64)
    high, low, _, _ = draw(Stream.ORDER, ids, epoch, seed)
    return np.lexsort((low, high))


def sample_sequence(first: int, count: int, num_samples: int, seed: int) -> tuple[Int64, Int64]:
    """Return the epochs and sample ids at positions [first, first + count) of the endless stream of epochs."""
    epochs, positions = np.divmod(np.arange(first, first + count, dtype=np.int64), num_samples)
    ids = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = epoch_order(num_samples, seed, int(epoch))[positions[here]]
    return epochs, ids


def replacements(draw_ids: Int64, sample_ids: Int64, unreadable: frozenset[int], num_samples: int, seed: int) -> Int64:
    """Return sample ids with a uniformly drawn readable sample in the position of every unreadable one.

    Each is the first readable one of its draw's own sequence, so that it stays when others become unreadable.
    """
    ids = sample_ids.copy()
    for position in np.flatnonzero(np.isin(ids, list(unreadable))):
        attempt = 0
        while int(ids[position]) in unreadable:
            assert len(unreadable) < num_samples
            word = draw(Stream.REPLACEMENT, np.array([attempt]), draw_ids[position : position + 1], seed)[0]
            ids[position], attempt = int(_uniform(word)[0] * num_samples), attempt + 1
    return ids


def reductions(boxes: Boxes, size: ImageSize, oversampling: float) -> Int64:
    """Return by how much images may be reduced before they are cropped, [B], each 1, 2, 4 or 8.

    Args:
        boxes: [B, 4], left, top, width, height in the full image.
        size: of the crops.
        oversampling: the least that a reduced box measures, in sides of the crop; 0 for no reduction.
    """
    if not oversampling:
        return np.ones(len(boxes), dtype=np.int64)
    largest = (boxes[:, 2:] / (np.array([size.width, size.height]) * oversampling)).min(axis=1)
    return np.left_shift(1, np.searchsorted(_REDUCTIONS, largest, side="right"))


class PixelTransform(Protocol):
    """What is done to crops besides, as a pure function of their draw ids."""

    @property
    def name(self) -> str:
        """What it is, in messages."""

    def __call__(self, images: NDArray[np.uint8], draw_ids: Int64, seed: int) -> None:
        """Change the pixels of crops in place, [B, C, H, W]."""


class Cropping(Protocol):
    """How samples are cropped and flipped, as a pure function of their draw ids: a frozen dataclass."""

    @property
    def interpolation(self) -> Interpolation: ...
    @property
    def crop_filter(self) -> CropFilter: ...

    def boxes(self, draw_ids: Int64, sizes: Int64, seed: int, *, size: ImageSize) -> Boxes:
        """Return a crop box for every sample: [B, 4] as (left, top, width, height) in pixels, inside sizes [B, 2].

        Args:
            draw_ids: [B].
            sizes: [B, 2], width and height of the images.
            seed: of the run.
            size: of the crops.
        """

    def flips(self, draw_ids: Int64, seed: int) -> NDArray[np.bool_]:
        """Return which samples are mirrored, [B]."""

    def pixel_transform(self, channels: int) -> PixelTransform | None:
        """Return what changes the pixels of crops of so many channels, None if nothing does.

        Raises:
            ValueError: it cannot be done with so many.
        """


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """Crop the center for evaluation: resize an image, as a whole, to just cover size / ratio, then crop it to size.

    The box is that of the resized image, in whole pixels there; in those of the image, in parts of pixels.

    Source: 224 of 256, as in torchvision's and MAE's evaluation; rounded as in timm's transform, which has a way of its
    own for squares.
    """

    ratio: float = 224 / 256  # side of the crop over that side of the resized image that only just covers it
    interpolation: Interpolation = "bicubic"

    @property
    def crop_filter(self) -> CropFilter:
        """The filter sees the whole image."""
        return "around"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"CenterCrop: ratio must be in (0, 1], got {self.ratio}")

    def boxes(self, draw_ids: Int64, sizes: Int64, seed: int, *, size: ImageSize) -> Boxes:
        """Return the central box of every sample, [B, 4], whatever the draw."""
        crop = np.array([size.width, size.height])
        covered = np.floor(crop / self.ratio).astype(np.int64)
        if size.is_square:
            resized = covered * sizes // sizes.min(axis=1, keepdims=True)  # [B, 2]
        else:
            resized = np.rint(sizes / (sizes / covered).min(axis=1, keepdims=True)).astype(np.int64)
        scale = sizes / resized
        return np.concatenate([np.rint((resized - crop) / 2) * scale, crop * scale], axis=1)

    def flips(self, draw_ids: Int64, seed: int) -> NDArray[np.bool_]:
        """Return that no sample is mirrored, [B]."""
        return np.zeros(len(draw_ids), dtype=bool)

    def pixel_transform(self, channels: int) -> PixelTransform | None:
        """Return None: pixels stay as they are."""
        return None


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Crop a box of random area and aspect, resize it to the size of the crops, and flip every other one.

    Where those are no squares the box is still drawn by `ratio`, and then stretched, as in torchvision.

    Source: Szegedy et al. 2015 (Inception), section 6; scale (0.2, 1) is He et al. 2022 (MAE), table 8.
    """

    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.5  # probability
    interpolation: Interpolation = "bicubic"
    crop_filter: CropFilter = "around"  # the filter sees beyond the box; "inside": the box alone, as in torchvision

    def __post_init__(self) -> None:
        own = type(self).__name__
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"{own}: scale must rise within (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"{own}: ratio must rise above 0 and be finite, got {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"{own}: flip must be in [0, 1], got {self.flip}")
        for name, choices in (("interpolation", get_args(Interpolation)), ("crop_filter", get_args(CropFilter))):
            if (given := getattr(self, name)) not in choices:
                raise ValueError(f"{own}: {name} must be {' or '.join(choices)}, got {given!r}")

    def boxes(self, draw_ids: Int64, sizes: Int64, seed: int, *, size: ImageSize) -> Boxes:
        """Draw a crop box for every sample: [B, 4] as (left, top, width, height) in pixels, inside sizes [B, 2] (W, H).

        The first of ten draws that fits is taken; where none does, the largest central box of an allowed aspect.
        """
        tries = np.arange(_TRIES, dtype=np.int64)
        words = draw(Stream.CROP, tries, draw_ids[:, None], seed)  # [B, tries]
        u_area, u_ratio, u_left, u_top = (_uniform(word) for word in words)
        image_width, image_height = sizes[:, :1], sizes[:, 1:]  # [B, 1]
        area = image_width * image_height * (self.scale[0] + u_area * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        aspect = np.exp(low + u_ratio * (high - low))  # [B, tries]
        width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (0 < width) & (width <= image_width) & (0 < height) & (height <= image_height)
        left = (u_left * (image_width - width + 1)).astype(np.int64)
        top = (u_top * (image_height - height + 1)).astype(np.int64)
        boxes = np.stack([left, top, width, height], axis=-1)  # [B, tries, 4]
        chosen = boxes[np.arange(len(boxes)), fits.argmax(axis=1)]
        return np.where(fits.any(axis=1, keepdims=True), chosen, self._central_boxes(sizes))

    def flips(self, draw_ids: Int64, seed: int) -> NDArray[np.bool_]:
        """Draw which samples are mirrored, [B]."""
        return _uniform(draw(Stream.FLIP, 0, draw_ids, seed)[0]) < self.flip

    def pixel_transform(self, channels: int) -> PixelTransform | None:
        """Return None: pixels stay as they are."""
        return None

    def _central_boxes(self, sizes: Int64) -> Int64:
        width, height = sizes[:, 0], sizes[:, 1]
        box_width = np.clip(np.rint(height * self.ratio[1]).astype(np.int64), 1, width)
        box_height = np.clip(np.rint(width / self.ratio[0]).astype(np.int64), 1, height)
        return np.stack([(width - box_width) // 2, (height - box_height) // 2, box_width, box_height], axis=-1)


def _uniform(words: Int64) -> NDArray[np.float64]:
    return words / float(WORD + 1)

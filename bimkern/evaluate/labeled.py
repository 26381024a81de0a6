"""Labeled images, in a training and a test part: class folders, lists, or the digits that come with scikit-learn.

Images are read in batches, as an encoder takes them, so that memory does not grow with their number.

Shapes: B images, C channels, H W pixels.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bimkern.data.decoding import RGB, Decoded, Decoding, decode
from bimkern.data.digits import enlarged, read_digits
from bimkern.data.formats import BadImage
from bimkern.data.images import Images
from bimkern.data.labels import Labels, labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.orientation import turned
from bimkern.data.overlap import refuse_overlap
from bimkern.data.source import Source, open_in, title
from bimkern.evaluate.checked_images import MAX_BAD_RATIO, readable_images
from bimkern.evaluate.errors import EvaluationError
from bimkern.exporters.trained import Preprocessing
from bimkern.image_size import ImageSize

CROP = 224 / 256  # side of the central crop over that side of the resized image that only just covers it
_TEST_SHARE = 0.25  # of the images that come without a part to test on

Read = Callable[[Sequence[int], Preprocessing, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Unlabeled:
    """Some images without their classes."""

    count: int
    read: Read


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images with their classes."""

    labels: Tensor  # [B] int64
    read: Read  # indices, how images are prepared, C -> [B, C, H, W] uint8
    images: Images | None = None  # what random crops are taken of; None: no files

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, images: Preprocessing, channels: int) -> Iterator[Tensor]:
        """Yield all images in order, [B, C, H, W] uint8, B at most size."""
        for first in range(0, len(self), size):
            yield self.read(range(first, min(first + size, len(self))), images, channels)


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """Images to learn from and images to test on, of the same classes."""

    classes: tuple[str, ...]
    train: Part
    test: Part

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise EvaluationError(f"classes must be at least 2, got {len(self.classes)}")
        for part, name in ((self.train, "training"), (self.test, "test")):
            if not len(part):
                raise EvaluationError(f"the {name} part must hold an image, got none")

    @property
    def chance(self) -> float:
        """The share of test images of the class that most training images have."""
        most = torch.bincount(self.train.labels).argmax()
        return (self.test.labels == most).double().mean().item()


def load_digits() -> Labeled:
    """Return the 1797 digits of scikit-learn, enlarged from 8 x 8 pixels to the encoder's size; half is tested."""
    train, test = (in_memory(digits.scans, digits.labels) for digits in read_digits())
    return Labeled(classes=tuple(map(str, range(10))), train=train, test=test)


def in_memory(gray: Tensor, labels: Tensor) -> Part:
    """Return images in gray, [B, 1, H, W] floats in [0, 255], that are scaled to the encoder's size as a whole."""

    def read(indices: Sequence[int], images: Preprocessing, channels: int) -> Tensor:
        return enlarged(gray[list(indices)], images.image_size).expand(-1, channels, -1, -1).contiguous()

    return Part(labels=labels, read=read)


def read_labeled(path: Path, decoding: Decoding = RGB, max_bad_ratio: float = MAX_BAD_RATIO) -> Labeled:
    """Return the images of a folder of classes or of a list, as labeled_images takes them.

    Where they have no part of their own to test on, a quarter of each class is: which, follows from the file names.
    All images are checked first; those that cannot be read are left out, with a warning.

    Args:
        path: the folder or list.
        decoding: of the images.
        max_bad_ratio: share of the images that may be left out.

    Raises:
        SourceError: it cannot be read, holds no image, an image has no label, there are fewer than two classes, or an
            image of val is also in train.
        EvaluationError: a class has too few images, or too many images cannot be read.
    """
    source = labeled_images(path)
    images = readable_images(source, decoding, max_bad_ratio)
    labels = read_labels(source, images.files)
    if source.held_out is not None:
        held_out = readable_images(source.held_out, decoding, max_bad_ratio)
        refuse_overlap(images, held_out)
        held_out_labels = read_labels(source.held_out, held_out.files, labels.classes)
        return Labeled(classes=labels.classes, train=_part(images, labels), test=_part(held_out, held_out_labels))
    parts: tuple[list[int], list[int]] = [], []
    numbers = labels.of(images.files)
    for number, name in enumerate(labels.classes):
        same = np.flatnonzero(numbers == number).tolist()
        shuffled = sorted(same, key=lambda i: _hash(images.files[i]))
        if len(shuffled) < 2:
            few = f"class {name} must have at least 2 images, to split, got {len(shuffled)}"
            raise EvaluationError(f"{title(source)}: {few}")
        count = math.ceil(_TEST_SHARE * len(shuffled))
        parts[0].extend(shuffled[count:])
        parts[1].extend(shuffled[:count])
    train, test = (_part(images.only(sorted(part)), labels) for part in parts)
    return Labeled(classes=labels.classes, train=train, test=test)


def _hash(file: str) -> bytes:
    return hashlib.sha256(os.fsencode(file)).digest()


def read_images(path: Path, decoding: Decoding = RGB) -> Unlabeled:
    """Return the images of a folder or list without their labels; of train and val those of val.

    They are not checked first: of a large folder only a few are looked at.

    Raises:
        SourceError: it cannot be read, or holds no image.
    """
    source = labeled_images(path)
    source = source if source.held_out is None else source.held_out
    files = list_images(source, decoding).files
    return Unlabeled(count=len(files), read=_reader(source, files, decoding))


def _part(found: Images, labels: Labels) -> Part:
    read = _reader(found.source, found.files, found.decoding)
    return Part(labels=torch.from_numpy(labels.of(found.files)), read=read, images=found)


def _reader(source: Source, files: Sequence[str], decoding: Decoding) -> Read:
    def read(indices: Sequence[int], images: Preprocessing, channels: int) -> Tensor:
        assert channels == decoding.channels

        def read_one(index: int) -> NDArray[np.uint8]:
            try:
                with open_in(source, files[index]) as file:
                    return central_crop(decode(file, how=decoding), images)
            except BadImage as error:
                raise EvaluationError(f"{title(source)}: {files[index]}: {error}; replace or remove it") from error

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # PIL decodes and resizes without the GIL
            return torch.from_numpy(np.stack(list(pool.map(read_one, indices))))

    return read


def central_crop(image: Decoded, images: Preprocessing) -> NDArray[np.uint8]:
    """Resize to just cover the crop and cut out the center, as timm's transform of a backbone does: [C, H, W] uint8.

    Source: He et al. 2022 (MAE), evaluation: 256 pixels for a crop of 224.
    """
    crop = images.image_size
    planes = []
    for plane in (turned(plane, image.orientation) for plane in image.planes):
        width, height = _covering(plane.size, crop)
        left, top = round((width - crop.width) / 2), round((height - crop.height) / 2)
        resized = plane.resize((width, height), Image.Resampling[images.interpolation.upper()])
        planes.append(np.asarray(resized.crop((left, top, left + crop.width, top + crop.height))))
    return np.dstack(planes).transpose(2, 0, 1)


def _covering(image: tuple[int, int], crop: ImageSize) -> tuple[int, int]:
    """Return width and height of a resized image, from those that it has; timm rounds in another way for squares."""
    width, height = image
    down, across = (math.floor(side / CROP) for side in crop)
    if crop.is_square:
        return (int(down * width / height), down) if width > height else (down, int(down * height / width))
    factor = min(height / down, width / across)
    return round(width / factor), round(height / factor)

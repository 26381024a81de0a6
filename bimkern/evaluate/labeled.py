"""Labeled images, in a training and a test part: class folders, or the digits that come with scikit-learn.

Images are read in batches, as an encoder takes them, so that memory does not grow with their number.

Shapes: B images, C channels, S pixels a side.
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
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from bimkern.data.formats import BadImage, Decoded, decode
from bimkern.data.orientation import turned
from bimkern.data.source import ImageFolder, list_images, open_in
from bimkern.evaluate.errors import EvaluationError
from bimkern.exporters.trained import Preprocessing

CROP = 224 / 256  # side of the central crop over the short side of the resized image
_TRAIN, _TESTS = "train", ("val", "valid", "test")
_TEST_SHARE = 0.25  # of one folder that is split
_BRIGHTEST = 16  # of a digit

Read = Callable[[Sequence[int], Preprocessing, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images with their classes."""

    labels: Tensor  # [B] int64
    read: Read  # indices, how images are prepared, C -> [B, C, S, S] uint8

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, images: Preprocessing, channels: int) -> Iterator[Tensor]:
        """Yield all images in order, [B, C, S, S] uint8, B at most size."""
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
            raise EvaluationError(f"classes must be at least 2, got {len(self.classes)}: {', '.join(self.classes)}")
        for part, name in ((self.train, "training"), (self.test, "test")):
            if not len(part):
                raise EvaluationError(f"the {name} part holds no image")
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts.tolist(), strict=True) if not count]:
            raise EvaluationError(f"class {empty[0]} has no training image; add some, or remove the class")

    @property
    def chance(self) -> float:
        """The share of test images of the class that most training images have."""
        most = torch.bincount(self.train.labels).argmax()
        return (self.test.labels == most).double().mean().item()


def load_digits() -> Labeled:
    """Return the 1797 digits of scikit-learn, 8 x 8 pixels, which are enlarged to the encoder's size; half is tested.

    The halves are those of scikit-learn's stratified split with random state 0.
    """
    from sklearn.datasets import load_digits as load  # takes 1 s, too long for --help
    from sklearn.model_selection import train_test_split

    scans, labels = load(return_X_y=True)
    halves = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    gray = torch.from_numpy(scans).float().view(-1, 1, 8, 8) * (255 / _BRIGHTEST)
    train, test = (in_memory(gray[half], torch.from_numpy(labels[half])) for half in halves)
    return Labeled(classes=tuple(map(str, range(10))), train=train, test=test)


def in_memory(gray: Tensor, labels: Tensor) -> Part:
    """Return images in gray, [B, 1, H, W] floats in [0, 255], that are scaled to the encoder's size as a whole."""

    def read(indices: Sequence[int], images: Preprocessing, channels: int) -> Tensor:
        side = images.image_size
        scaled = interpolate(gray[list(indices)], (side, side), mode="bilinear", align_corners=False)
        return scaled.round().to(torch.uint8).expand(-1, channels, -1, -1).contiguous()

    return Part(labels=labels, read=read)


def read_folder(folder: Path) -> Labeled:
    """Return the images of class folders: train/CLASS/... and val/CLASS/..., or CLASS/... alone.

    Without a part of their own, a quarter of each class is tested: which, follows from the file names alone.

    Raises:
        SourceError: the folder cannot be read, or holds no image.
        EvaluationError: a file lies in no class folder, there are fewer than two classes, or one has too few images.
    """
    if (folder / _TRAIN).is_dir():
        tests = [name for name in _TESTS if (folder / name).is_dir()]
        if not tests:
            raise EvaluationError(f"{folder} holds {_TRAIN}/ but no images to test on; add {' or '.join(_TESTS)}/")
        train, test = (_files_by_class(folder / name) for name in (_TRAIN, tests[0]))
        if other := sorted(test.keys() - train.keys()):
            raise EvaluationError(f"{folder / tests[0]} holds class {other[0]}, which {folder / _TRAIN} lacks")
        roots = folder / _TRAIN, folder / tests[0]
    else:
        train, test = {}, {}
        for name, files in _files_by_class(folder).items():
            count = math.ceil(_TEST_SHARE * len(files))
            if len(files) < 2:
                raise EvaluationError(f"{folder}: class {name} must have at least 2 images, to split, got {len(files)}")
            shuffled = sorted(files, key=_hash)
            test[name], train[name] = sorted(shuffled[:count]), sorted(shuffled[count:])
        roots = folder, folder
    classes = tuple(sorted(train))
    parts = [_part(root, classes, found) for root, found in zip(roots, (train, test), strict=True)]
    return Labeled(classes=classes, train=parts[0], test=parts[1])


def _files_by_class(folder: Path) -> dict[str, list[str]]:
    """Sort the images below a folder by their class, the first folder of their names."""
    found: dict[str, list[str]] = {}
    for file in list_images(ImageFolder(paths=(folder,))).files:
        name, slash, _ = file.partition("/")
        if not slash:
            raise EvaluationError(f"{folder / file} lies in no class folder; move it to {folder}/CLASS/{file}")
        found.setdefault(name, []).append(file)
    return found


def _hash(file: str) -> bytes:
    return hashlib.sha256(file.encode()).digest()


def _part(folder: Path, classes: Sequence[str], files: dict[str, list[str]]) -> Part:
    source = ImageFolder(paths=(folder,))
    names = [file for name in classes for file in files.get(name, ())]
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]

    def read(indices: Sequence[int], images: Preprocessing, channels: int) -> Tensor:
        def read_one(index: int) -> np.ndarray:
            try:
                with open_in(source, names[index]) as file:
                    return central_crop(decode(file, channels=channels), images)
            except BadImage as error:
                raise EvaluationError(f"{folder / names[index]}: {error}; replace or remove it") from error

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # PIL decodes and resizes without the GIL
            return torch.from_numpy(np.stack(list(pool.map(read_one, indices))))

    return Part(labels=torch.tensor(labels), read=read)


def central_crop(image: Decoded, images: Preprocessing) -> np.ndarray:
    """Resize the short side and cut out the center, as timm's transform of an exported backbone does: [C, S, S] uint8.

    Source: He et al. 2022 (MAE), evaluation: 256 pixels for a crop of 224.
    """
    side = images.image_size
    short = math.floor(side / CROP)
    planes = []
    for plane in (turned(plane, image.orientation) for plane in image.planes):
        width, height = plane.size
        size = (int(short * width / height), short) if width > height else (short, int(short * height / width))
        left, top = (round((extent - side) / 2) for extent in size)
        resized = plane.resize(size, Image.Resampling[images.interpolation.upper()])
        planes.append(np.asarray(resized.crop((left, top, left + side, top + side))))
    return np.dstack(planes).transpose(2, 0, 1)

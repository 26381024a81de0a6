"""The 1797 handwritten digits that come with scikit-learn, 8 x 8 pixels, in two halves that never change.

Shapes: B images.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.written_once import written_once
from bimkern.image_size import ImageSize

_BRIGHTEST = 16  # of a scan
_SIZE = ImageSize.square(64)  # of a file: crops of 8 x 8 pixels would be too coarse
_PARTS = ("train", "val")


class Digits(NamedTuple):
    """Some of the digits."""

    scans: Tensor  # [B, 1, 8, 8] float32 in [0, 255]
    labels: Tensor  # [B] int64


def read_digits() -> tuple[Digits, Digits]:
    """Return the two halves, to train on and to test on: scikit-learn's stratified split with random state 0."""
    from sklearn.datasets import load_digits  # takes 1 s, too long for --help
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    halves = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    gray = torch.from_numpy(scans).float().view(-1, 1, 8, 8) * (255 / _BRIGHTEST)
    train, test = (Digits(gray[half], torch.from_numpy(labels[half])) for half in halves)
    return train, test


def enlarged(scans: Tensor, size: ImageSize) -> Tensor:
    """Return scans [B, 1, H, W] as images of another size, [B, 1, height, width] uint8."""
    return interpolate(scans, tuple(size), mode="bilinear", align_corners=False).round().to(torch.uint8)


def digit_images() -> ImageFolder:
    """Return the digits as class folders, with the second half held out; they are written to a cache on first use.

    Raises:
        SourceError: they cannot be written.
    """
    folder = written_once("digits-v1", _write)
    train, val = (folder / part for part in _PARTS)
    return ImageFolder(paths=(train,), held_out=ImageFolder(paths=(val,)))


def _write(folder: Path) -> None:
    for part, digits in zip(_PARTS, read_digits(), strict=True):
        for number, (pixels, label) in enumerate(zip(enlarged(digits.scans, _SIZE), digits.labels, strict=True)):
            target = folder / part / str(int(label))
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(target / f"{number:04d}.png")

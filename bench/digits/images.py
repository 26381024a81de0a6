"""scikit-learn's digits: 1797 labeled scans of 8 x 8 pixels, drawn up to 32 x 32, in fixed halves.

Shapes: B images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate

SIDE = 32
_BRIGHTEST = 16  # of a scan

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """All images, and the indices of those to train and test with, the same for every seed."""

    images: Tensor  # [B, 3, 32, 32] uint8
    scans: NDArray[np.float64]  # [B, 64], as they come
    labels: NDArray[np.int64]  # [B]
    train: Indices  # one half
    fit: Indices  # two thirds of it, to choose rates with
    validation: Indices  # its last third, which chooses
    held_out: Indices  # the other half, of which nothing is chosen


def load(count: int | None = None) -> Digits:
    """Load the first count images, or all, with every class in the same share in every part."""
    scans, labels = load_digits(return_X_y=True)
    scans, labels = scans[:count], labels[:count]
    gray = torch.from_numpy(scans).float().view(-1, 1, 8, 8) * (255 / _BRIGHTEST)
    images = interpolate(gray, SIDE, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    train, held_out = _divide(np.arange(len(labels)), labels, 1 / 2)
    fit, validation = _divide(train, labels, 1 / 3)
    return Digits(images, scans, labels, train, fit, validation, held_out)


def _divide(indices: Indices, labels: NDArray[np.int64], share: float) -> tuple[Indices, Indices]:
    first, second = train_test_split(indices, test_size=share, stratify=labels[indices], random_state=0)
    return first, second

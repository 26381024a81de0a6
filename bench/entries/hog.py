"""hog against the usual layer and the best of plain torch: cells of 4, 8, 16 and 32 pixels, 18 bins."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, pad

from bench import shapes
from bench.entry import Case, Measure, entry
from bench.refcheck import WrongResult
from bimkern.ops.hog import _bins, _gradients, hog, hog_reference

CELLS, BINS = (4, 8, 16, 32), 18
_FLOAT32_ERROR = 1e-6  # of a unit vector's entry


def sobel(device: torch.device | str = "cpu") -> Tensor:
    """Return the kernels of the two gradients, [2, 1, 3, 3]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=device)
    return torch.stack([kernel, kernel.T])[:, None]


def twelve_passes(images: Tensor, kernels: Tensor, bins: int = BINS) -> tuple[Tensor, ...]:
    """The usual form: for every cell size and channel from the start, over a full map of one-hot bins."""
    targets = []
    for cell in CELLS:
        channels = []
        for plane in images.split(1, dim=1):
            gradient = conv2d(pad(plane, (1, 1, 1, 1), mode="reflect"), kernels)
            gx, gy = gradient.split(1, dim=1)
            index = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
            one_hot = torch.zeros(len(plane), bins, *plane.shape[2:], device=plane.device)
            one_hot.scatter_(1, index, gradient.norm(dim=1, keepdim=True))
            channels.append(normalize(avg_pool2d(one_hot, cell), dim=1))
        targets.append(torch.cat(channels, dim=1).flatten(2).mT)
    return tuple(targets)


def one_pass(images: Tensor) -> tuple[Tensor, ...]:
    """The best of plain torch: one gradient, magnitudes scattered into the finest cells, coarser ones their sums."""
    gx, gy = _gradients(images)
    B, C, H, W = images.shape
    h, w = H // CELLS[0], W // CELLS[0]
    rows, columns = (torch.arange(side, device=images.device) // CELLS[0] for side in (H, W))
    planes = torch.arange(B * C, device=images.device).view(B, C, 1, 1)
    index = (planes * (h * w) + rows[:, None] * w + columns) * BINS + _bins(gx, gy, BINS)
    magnitude = (gx * gx + gy * gy).sqrt()
    sums = gx.new_zeros(B * C * h * w * BINS).scatter_add_(0, index.flatten(), magnitude.flatten())
    sums = sums.view(B, C, h, w, BINS)
    targets = []
    for side in CELLS:
        if side > CELLS[0]:
            sums = sums.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5))
        targets.append(normalize(sums, dim=-1).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2))
    return tuple(targets)


def check(provider: str, got: Any, expected: Any) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        error = (ours - theirs).abs().max().item()
        if not error <= _FLOAT32_ERROR:
            raise WrongResult(f"{provider}: an entry is off by {error:.1e}, expected at most {_FLOAT32_ERROR:.0e}")


@entry("hog", shapes=shapes.HOG, dtypes=("uint8", "float32"), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Gradient histograms at four cell sizes, as targets; rivals are given floats."""
    B, H = case.dims["B"], case.dims["H"]
    # Whole numbers, so that no rounding moves a bin, and all forms agree.
    pixels = torch.randint(0, 256, (B, 3, H, H), dtype=torch.uint8, device=case.device)
    floats = pixels.float()
    images = pixels if case.dtype == "uint8" else floats
    kernels = sobel(case.device)
    compiled = case.compiled(one_pass)
    entries = sum(3 * BINS * (H // cell) ** 2 for cell in CELLS)
    return Measure(
        ours=lambda: hog(images, CELLS, BINS),
        rivals={
            "12 passes": lambda: twelve_passes(floats, kernels),
            "one pass": lambda: one_pass(floats),
            "compile": lambda: compiled(floats),
        },
        reference=lambda: hog_reference(floats, CELLS, BINS),
        check=check,
        bytes=images.nbytes + 4 * B * entries,  # pixels in, the vectors of all cells out
    )

"""hog against the usual layer and the best of plain torch: 224 px, cells of 4, 8, 16 and 32, 18 bins.

Bytes: reads the image, writes the vectors of all cells, both float32. They outweigh the image by half.
"""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, normalize, pad

from bimkern.ops import hog
from bimkern.ops.hog import _bins, _gradients

CELLS, BINS = (4, 8, 16, 32), 18
SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])


def twelve_passes(images, bins=BINS):
    """As MIM programs do it: for every cell size and channel from the start, over a full map of one-hot bins."""
    kernels = torch.stack([SOBEL, SOBEL.T])[:, None]
    targets = []
    for cell in CELLS:
        channels = []
        for plane in images.split(1, dim=1):
            gradient = conv2d(pad(plane, (1, 1, 1, 1), mode="reflect"), kernels)
            gx, gy = gradient.split(1, dim=1)
            index = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
            one_hot = torch.zeros(len(plane), bins, *plane.shape[2:]).scatter_(
                1, index, gradient.norm(dim=1, keepdim=True)
            )
            channels.append(normalize(avg_pool2d(one_hot, cell), dim=1))
        targets.append(torch.cat(channels, dim=1).flatten(2).mT)
    return tuple(targets)


def one_pass(images):
    """The best of plain torch: one gradient, magnitudes scattered into the finest cells, coarser ones their sums."""
    gx, gy = _gradients(images)
    B, C, H, W = images.shape
    h, w = H // CELLS[0], W // CELLS[0]
    cell = torch.arange(H)[:, None] // CELLS[0] * w + torch.arange(W) // CELLS[0]  # [H, W]
    index = (torch.arange(B * C).view(B, C, 1, 1) * (h * w) + cell) * BINS + _bins(gx, gy, BINS)
    magnitude = (gx * gx + gy * gy).sqrt()
    sums = gx.new_zeros(B * C * h * w * BINS).scatter_add_(0, index.flatten(), magnitude.flatten())
    sums = sums.view(B, C, h, w, BINS)
    targets = []
    for side in CELLS:
        if side > CELLS[0]:
            sums = sums.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5))
        targets.append(normalize(sums, dim=-1).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2))
    return tuple(targets)


def ours(images):
    return hog(images, CELLS, BINS)


PROVIDERS = {
    "ours": ours,
    "12 passes": twelve_passes,
    "one pass": one_pass,
    "one pass, compiled": torch.compile(one_pass),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("B", [8, 64])
def test_hog(benchmark, B, provider):
    images = torch.randint(0, 256, (B, 3, 224, 224)).float()  # whole numbers: no rounding moves a bin
    results = PROVIDERS[provider](images)
    torch.testing.assert_close(results, ours(images), rtol=0, atol=1e-6)
    moved = 4 * (images.numel() + sum(result.numel() for result in results))
    benchmark.group = f"hog float32 B={B} 224 px, cells {CELLS}, {BINS} bins"
    rounds = 3 if provider == "12 passes" else 20
    benchmark.pedantic(PROVIDERS[provider], (images,), rounds=rounds, warmup_rounds=1)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["ms/image"] = benchmark.stats.stats.median / B * 1e3
        benchmark.extra_info["GB/s"] = moved / benchmark.stats.stats.median / 1e9

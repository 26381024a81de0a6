"""HOG with the rounding of the published layers, in plain torch: for those who must repeat a run bit for bit.

Shapes: B images, C channels, H W pixels, h w cells.
Source: Wei et al. 2022 (MaskFeat), section 3.2; Wang et al. 2023 (LocalMIM), section 3.3.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def maskfeat(images: Tensor, bins: int, cell: int, window: int) -> Tensor:
    """Return [B, C, bins, h, w] of images [B, C, H, W], float32; window: side of a Gaussian, 0 for none."""
    kernel = images.new_tensor(_SOBEL).expand(images.shape[1], 1, 3, 3)
    gaussian = _gaussian(window).to(images.device) if window else None
    return per_channel(images, (kernel, kernel.mT), bins, cell, gaussian)


def _gaussian(side: int) -> Tensor:
    values = torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side // 2)) ** 2)
    weights = torch.outer(values, values)
    return weights / weights.sum()


def per_channel(images: Tensor, kernels: tuple[Tensor, Tensor], bins: int, cell: int, window: Tensor | None) -> Tensor:
    """Return [B, C, bins, h, w]: a depthwise convolution per gradient, cells summed, as MaskFeat does.

    images: [B, C, H, W]; kernels: of gx and gy, [C, 1, 3, 3]; window: [G, G], tiled over the image.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    gx, gy = (F.conv2d(padded, kernel, groups=len(kernel)) for kernel in kernels)
    magnitude = torch.stack([gx, gy], dim=-1).norm(dim=-1)
    if window is not None:
        magnitude = magnitude * window.tile(magnitude.shape[2] // len(window), magnitude.shape[3] // len(window))
    pixels = _by_bin(gx, gy, magnitude, bins, dim=2)
    return F.normalize(pixels.unfold(3, cell, cell).unfold(4, cell, cell).sum(dim=(-1, -2)), dim=2)


def one_channel(gradients: Tensor, bins: int, cell: int) -> Tensor:
    """Return [B, bins, h, w] of the gradients [B, 2, H, W] of one channel, cells averaged, as LocalMIM does."""
    gx, gy = gradients.unbind(1)
    pixels = _by_bin(gx, gy, gradients.norm(dim=1), bins, dim=1)
    return F.normalize(F.avg_pool2d(pixels, cell), dim=1)


def _by_bin(gx: Tensor, gy: Tensor, magnitude: Tensor, bins: int, dim: int) -> Tensor:
    """Lay every pixel's magnitude into its bin, along a new dimension."""
    index = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    shape = (*gx.shape[:dim], bins, *gx.shape[dim:])
    pixels = torch.zeros(shape, dtype=torch.float32, device=gx.device)
    return pixels.scatter_(dim, index.unsqueeze(dim), magnitude.float().unsqueeze(dim))

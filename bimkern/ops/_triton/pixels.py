"""What the kernels that read patches share: one patch as a target vector, in the registers of one program.

Letters: C channels, p patch size, P = p*p*C values of a patch, channel fastest.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def read_patch(
    images,
    statistics,
    sizes,
    strides,
    row,
    count,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return the values of a patch, [BLOCK], and which of them there are: count is P, or 0 to read nothing."""
    mean, std = statistics
    channels, patch, grid_rows, grid_columns = sizes
    image_stride, channel_stride, row_stride, column_stride = strides
    length = patch * patch * channels
    position = row % (grid_rows * grid_columns)
    corner = (
        images
        + (row // (grid_rows * grid_columns)).to(tl.int64) * image_stride
        + (position // grid_columns * patch).to(tl.int64) * row_stride
        + (position % grid_columns * patch).to(tl.int64) * column_stride
    )
    index = tl.arange(0, BLOCK)
    inside = index < count
    channel = index % channels
    y = index // channels // patch
    x = index // channels % patch
    pixels = (
        corner + channel.to(tl.int64) * channel_stride + y.to(tl.int64) * row_stride + x.to(tl.int64) * column_stride
    )
    values = tl.load(pixels, mask=inside, other=0).to(WIDE)
    for c in range(channels):  # statistics are loaded, and divided by, once a patch
        if mean is not None:
            offset = FULL * tl.load(mean + c, mask=count > 0, other=0)
            values = tl.where(channel == c, values - offset, values)
        if std is not None:
            scale = 1 / (FULL * tl.load(std + c, mask=count > 0, other=1))
            values = tl.where(channel == c, values * scale, values)
    if std is None and FULL != 1:
        values *= 1 / tl.full([1], FULL, WIDE)
    if NORMALIZE:
        first = tl.sum(tl.where(index == 0, values, 0), axis=0)  # a constant patch is exactly zero
        values -= first
        values -= tl.sum(tl.where(inside, values, 0), axis=0) / length
        variance = tl.sum(tl.where(inside, values * values, 0), axis=0) / (length - 1)
        values *= 1 / tl.sqrt(variance + 1e-6)
    return values, inside


def patch_arguments(images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int) -> tuple[Any, ...]:
    """Return what read_patch takes first: images, statistics, sizes and strides."""
    _, C, H, W = images.shape
    return images, (mean, std), (C, patch, H // patch, W // patch), images.stride()


def patch_constants(images: Tensor, patch: int, normalize: bool) -> dict[str, Any]:
    """Return the constants of read_patch, and the warps of its program."""
    block = triton.next_power_of_2(images.shape[1] * patch * patch)
    return {
        "BLOCK": block,
        "FULL": 1 if images.is_floating_point() else 255,
        "NORMALIZE": normalize,
        "num_warps": max(1, min(block // 128, 32)),
    }

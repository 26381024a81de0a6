"""hog: histograms of oriented gradients, the target of MaskFeat and its followers, at several cell sizes at once.

Shapes: B images, C channels, H W pixels, h = H / cell, w = W / cell.
"""

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.schemas.define(
    "hog(Tensor images, int[] cells, int bins, *, int? window, float[] bias, int? patch, ScalarType dtype) -> Tensor[]"
)
# A target is a constant: no gradient flows through, and the result never asks for one.
_backend.schemas.impl("hog", torch.library.fallthrough_kernel, "Autograd")
_backend.declare("hog", kernels={"cpu": "native", "cuda": "native"})

PIXELS = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
MAX_BINS = 36
MAX_CELL_SIZES = 8
MAX_WINDOW = 64


def hog_reference(
    images: Tensor,
    cells: Sequence[int],
    bins: int = 9,
    *,
    window: int | None = None,
    bias: Sequence[float] = (),
    patch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Wei et al. 2022 (MaskFeat), section 3.2: orientations binned by magnitude, L2-normalized per cell and channel."""
    gx, gy = _gradients(images)  # [B, C, H, W]
    results = []
    for i, cell in enumerate(cells):
        x, y = (gx + bias[2 * i], gy + bias[2 * i + 1]) if bias else (gx, gy)
        magnitude = (x * x + y * y).sqrt()
        if window is not None:
            magnitude = magnitude * _window(window, like=magnitude)
        index = _bins(x, y, bins)
        grid = (magnitude.shape[2] // cell, cell, magnitude.shape[3] // cell, cell)
        counts = [
            torch.where(index == b, magnitude, 0).unflatten(3, grid[2:]).unflatten(2, grid[:2]) for b in range(bins)
        ]
        histograms = torch.stack([count.sum((3, 5)) for count in counts], dim=-1)  # [B, C, h, w, bins]
        u = 1 if patch is None else patch // cell
        grouped = normalize(histograms, dim=-1, eps=1e-12).unflatten(3, (-1, u)).unflatten(2, (-1, u))
        vectors = grouped.permute(0, 2, 4, 1, 6, 3, 5).flatten(3).flatten(1, 2)  # [B, h/u * w/u, C * bins * u * u]
        results.append(vectors.to(dtype))
    return results


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel, left minus right and top minus bottom, reflected at the border. Differences first keep exact zeros."""
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))
    padded = pad(pixels, (1, 1, 1, 1), mode="reflect")
    dx = padded[..., :-2] - padded[..., 2:]
    dy = padded[..., :-2, :] - padded[..., 2:, :]
    return dx[..., :-2, :] + dx[..., 2:, :] + 2 * dx[..., 1:-1, :], dy[..., :-2] + dy[..., 2:] + 2 * dy[..., 1:-1]


def _bins(gx: Tensor, gy: Tensor, bins: int) -> Tensor:
    """floor(atan2(gx, gy) / pi * bins) mod bins, by comparing cotangents, which is exact on every boundary."""
    steep = [1.0 if 4 * k == bins else 1 / math.tan(k * math.pi / bins) for k in range(1, (bins + 1) // 2)]
    boundaries = [-cotangent for cotangent in steep] + [0.0] * (bins % 2 == 0) + steep[::-1]
    slope = torch.where(gx == 0, -math.inf, -gy / gx).contiguous()  # of a line: the same in both directions
    return torch.bucketize(slope, slope.new_tensor(boundaries), right=True)


def _window(side: int, like: Tensor) -> Tensor:
    values = [math.exp(-(((i - (side - 1) / 2) / (side / 2)) ** 2) / 2) for i in range(side)]
    weights = like.new_tensor([value / sum(values) for value in values])
    return torch.outer(weights, weights).tile(like.shape[2] // side, like.shape[3] // side)


@overload
def hog(
    images: Tensor,
    cells: int,
    bins: int = 9,
    *,
    window: int | None = None,
    bias: tuple[float, float] | None = None,
    patch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor: ...


@overload
def hog(
    images: Tensor,
    cells: Sequence[int],
    bins: int = 9,
    *,
    window: int | None = None,
    bias: Sequence[tuple[float, float]] | None = None,
    patch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]: ...


def hog(
    images: Tensor,
    cells: int | Sequence[int],
    bins: int = 9,
    *,
    window: int | None = None,
    bias: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    patch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor | tuple[Tensor, ...]:
    """Describe every cell of an image, channel by channel, by the orientations of its gradients.

    A pixel's gradient is that of Sobel, its bin floor(atan2(gx, gy) / pi * bins) mod bins with gx = left - right and
    gy = top - bottom, its weight the gradient's length. The histogram of a cell is divided by its L2 norm; a cell
    without any gradient gives zeros. The result is the same for pixels a * x + b, so uint8 pixels need no
    normalization; and only on whole numbers is it free of rounding, which otherwise moves the many pixels of a
    photograph whose angle lies on a boundary between bins.

    Args:
        images: [B, C, H, W], float32, float16, bfloat16 or uint8; any strides. H and W are at least 2 and multiples of
            every cell size, of window and of patch. Arithmetic is float32.
        cells: side of a cell in pixels, or several, at most 8: gradients are then computed once, and coarser cells are
            sums of finer ones where these divide them.
        bins: 1 to 36.
        window: side of a Gaussian of sigma = window / 2 that is tiled over the image and weighs the pixels; at most 64.
        bias: (x, y) added to every gradient, a pair for each of several cell sizes. It ties the result to the scale of
            the pixels, so images must be normalized floats.
        patch: side in pixels, a multiple of every cell size. Cells of a patch then make one vector.
        dtype: of the result, float32 or bfloat16.

    Returns:
        [B, h * w, C * bins], vectors of cells in raster order, channel-major; with a patch of u x u cells
        [B, h/u * w/u, C * bins * u * u], index (c * bins + bin) * u * u + row * u + column. A tuple for several cell
        sizes. A constant: no gradient flows to the images.

    Raises:
        ValueError, TypeError: a shape, number or dtype is off; the message names it.

    Same as: hog_reference, to the bin of every pixel.
    Source: Dalal and Triggs 2005; Wei et al. 2022 (MaskFeat), section 3.2; several cell sizes and bias: Wang et al.
        2023 (LocalMIM), section 3.3 and its program.
    """
    several = not isinstance(cells, int)
    sizes = list(cells) if isinstance(cells, Sequence) else [cells]
    pairs: list[Any] = [] if bias is None else list(bias) if several else [bias]
    check.once(_check, (images,), bins, window, patch, dtype, *sizes)
    if bias is not None:
        _check_bias(images, pairs, len(sizes))
    flat = [float(value) for pair in pairs for value in pair]
    results = _backend.call(
        "hog", hog_reference, images.detach(), sizes, bins, window=window, bias=flat, patch=patch, dtype=dtype
    )
    return tuple(results) if several else results[0]


def _check(images: Tensor, bins: int, window: int | None, patch: int | None, dtype: torch.dtype, *sizes: int) -> None:
    dims = check.shapes("hog", images=(images, "B C H W"))
    check.dtypes("hog", images=(images, PIXELS))
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"hog: dtype must be float32 or bfloat16, got {str(dtype).removeprefix('torch.')}")
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"hog: bins must be in [1, {MAX_BINS}], got {bins}")
    if not 1 <= len(sizes) <= MAX_CELL_SIZES:
        raise ValueError(f"hog: cells must hold 1 to {MAX_CELL_SIZES} sizes, got {len(sizes)}")
    if dims["H"] < 2 or dims["W"] < 2:
        raise ValueError(f"hog: images must have at least 2 x 2 pixels, got {list(images.shape)}")
    for cell in sizes:
        _check_divides("cell", cell, images)
        if patch is not None and (patch < 1 or patch % cell):
            raise ValueError(f"hog: patch must be a multiple of cell={cell}, got {patch}")
    if window is not None:
        _check_divides("window", window, images)
        if window > MAX_WINDOW:
            raise ValueError(f"hog: window must be at most {MAX_WINDOW}, got {window}")
    if patch is not None:
        _check_divides("patch", patch, images)


def _check_divides(name: str, side: int, images: Tensor) -> None:
    if side < 1 or images.shape[2] % side or images.shape[3] % side:
        raise ValueError(
            f"hog: images must be [B, C, H, W] with H and W multiples of {name}={side}, got {list(images.shape)}"
        )


def _check_bias(images: Tensor, pairs: Sequence[Any], num_sizes: int) -> None:
    if not images.is_floating_point():
        raise TypeError("hog: images must be normalized floats where bias is given, got uint8")
    if len(pairs) != num_sizes or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise ValueError(f"hog: bias must be a pair (x, y) for each of {num_sizes} cell sizes, got {pairs}")


@torch.library.register_fake("bimkern::hog", lib=_backend.schemas)
def _(
    images: Tensor,
    cells: Sequence[int],
    bins: int,
    *,
    window: int | None,
    bias: Sequence[float],
    patch: int | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    B, C, H, W = images.shape
    sides = [(patch or cell, (patch or cell) // cell) for cell in cells]
    return [images.new_empty(B, (H // side) * (W // side), C * bins * u * u, dtype=dtype) for side, u in sides]

"""masked_pixel_loss and its gradient: one program a patch, which makes its target in registers.

Predictions and pixels of patches of weight zero are masked out of every load. A patch leaves its error, and one program
adds these in a fixed order: the same bits in every run.

Shapes: B images, C channels, H W pixels, N patches, p patch size, P = p*p*C values a patch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bimkern.ops._triton.launch import launch
from bimkern.ops._triton.masked_loss import WIDE, slope_of, sum_of
from bimkern.ops._triton.pixels import patch_arguments, patch_constants, read_patch
from bimkern.ops._triton.rows import alignment, row_starts, row_strides, with_contiguous_rows


@triton.jit
def loss_patches(
    pred,
    weight,
    partial,
    pred_strides,
    weight_strides,
    images,
    statistics,
    sizes,
    image_strides,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    channels, patch, grid_rows, grid_columns = sizes
    length = patch * patch * channels // ALIGNMENT * ALIGNMENT  # the same, known to be a multiple
    row = tl.program_id(0)
    image = (row // (grid_rows * grid_columns)).to(tl.int64)
    token = (row % (grid_rows * grid_columns)).to(tl.int64)
    w = tl.load(weight + image * weight_strides[0] + token * weight_strides[1])
    count = tl.where(w != 0, length, 0)
    t, inside = read_patch(images, statistics, sizes, image_strides, row, count, BLOCK, FULL, NORMALIZE, WIDE)
    p_row = row_starts(pred, pred_strides, image, token, ALIGNMENT)
    p = tl.load(p_row + tl.arange(0, BLOCK), mask=inside, other=0).to(WIDE)
    difference = tl.where(inside, p - t, 0)
    error = tl.sum(difference * difference if L2 else tl.abs(difference), axis=0)
    tl.store(partial + row, w * (error / length))


@triton.jit
def slope_patches(
    grad,
    pred,
    weight,
    denominator,
    grad_pred,
    pred_strides,
    weight_strides,
    images,
    statistics,
    sizes,
    image_strides,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    channels, patch, grid_rows, grid_columns = sizes
    length = patch * patch * channels // ALIGNMENT * ALIGNMENT  # the same, known to be a multiple
    row = tl.program_id(0)
    image = (row // (grid_rows * grid_columns)).to(tl.int64)
    token = (row % (grid_rows * grid_columns)).to(tl.int64)
    w = tl.load(weight + image * weight_strides[0] + token * weight_strides[1])
    d = tl.load(denominator)
    w = tl.where(d == 0, 0, w)
    count = tl.where(w != 0, length, 0)
    t, inside = read_patch(images, statistics, sizes, image_strides, row, count, BLOCK, FULL, NORMALIZE, WIDE)
    index = tl.arange(0, BLOCK)
    p_row = row_starts(pred, pred_strides, image, token, ALIGNMENT)
    p = tl.load(p_row + index, mask=inside, other=0).to(WIDE)
    factor = w * (tl.load(grad) / (tl.where(d == 0, 1, d) * length))
    values = tl.where(inside, factor * slope_of(p - t, L2, WIDE), 0)
    tl.store(grad_pred + row.to(tl.int64) * length + index, values.to(grad_pred.dtype.element_ty), mask=index < length)


def masked_pixel_loss(
    pred: Tensor,
    images: Tensor,
    weight: Tensor,
    denominator: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch: int,
    normalize: bool,
    absolute: bool,
) -> Tensor:
    pred = with_contiguous_rows(pred)
    partial = weight.new_empty(weight.numel())
    if weight.numel():
        arguments = row_strides(pred), weight.stride(), *patch_arguments(images, mean, std, patch)
        constants = patch_constants(images, patch, normalize)
        constants |= {"ALIGNMENT": alignment(pred), "L2": not absolute, "WIDE": WIDE[weight.dtype]}
        launch(loss_patches, weight.numel(), pred, weight, partial, *arguments, **constants)
    return sum_of(partial, denominator)


def masked_pixel_loss_bwd(
    grad: Tensor,
    pred: Tensor,
    images: Tensor,
    weight: Tensor,
    denominator: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch: int,
    normalize: bool,
    absolute: bool,
) -> Tensor:
    pred = with_contiguous_rows(pred)
    grad_pred = torch.empty(pred.shape, dtype=pred.dtype, device=pred.device)
    if weight.numel():
        arguments = row_strides(pred), weight.stride(), *patch_arguments(images, mean, std, patch)
        constants = patch_constants(images, patch, normalize)
        constants |= {"ALIGNMENT": alignment(pred), "L2": not absolute, "WIDE": WIDE[weight.dtype]}
        rows = grad, pred, weight, denominator, grad_pred
        launch(slope_patches, weight.numel(), *rows, *arguments, **constants)
    return grad_pred

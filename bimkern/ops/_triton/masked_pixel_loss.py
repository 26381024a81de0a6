"""masked_pixel_loss and its gradient: one program a patch, which makes its target in registers.

Predictions and pixels of patches of weight zero are masked out of every load. A patch leaves its error, and one program
adds these in a fixed order: the same bits in every run.

Shapes: B images, C channels, H W pixels, N patches, p patch size, P = p*p*C values a patch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bimkern.ops._triton.launch import launch, with_contiguous_rows
from bimkern.ops._triton.masked_loss import WIDE, slope_of, sum_of
from bimkern.ops._triton.pixels import patch_arguments, patch_constants, read_patch


@triton.jit
def loss_patches(
    pred,
    weight,
    partial,
    pred_image_stride,
    pred_token_stride,
    weight_image_stride,
    weight_token_stride,
    images,
    mean,
    std,
    channels,
    patch,
    grid_rows,
    grid_columns,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_STD: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0)
    image = (row // (grid_rows * grid_columns)).to(tl.int64)
    token = (row % (grid_rows * grid_columns)).to(tl.int64)
    length = patch * patch * channels
    w = tl.load(weight + image * weight_image_stride + token * weight_token_stride)
    count = tl.where(w != 0, length, 0)
    t, inside = read_patch(
        images, mean, std, row, count, channels, patch, grid_rows, grid_columns, image_stride, channel_stride,
        row_stride, column_stride, BLOCK, HAS_MEAN, HAS_STD, FULL, NORMALIZE, WIDE,
    )  # fmt: skip
    p_row = pred + image * pred_image_stride + token * pred_token_stride
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
    pred_image_stride,
    pred_token_stride,
    weight_image_stride,
    weight_token_stride,
    images,
    mean,
    std,
    channels,
    patch,
    grid_rows,
    grid_columns,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_STD: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0)
    image = (row // (grid_rows * grid_columns)).to(tl.int64)
    token = (row % (grid_rows * grid_columns)).to(tl.int64)
    length = patch * patch * channels
    w = tl.load(weight + image * weight_image_stride + token * weight_token_stride)
    d = tl.load(denominator)
    w = tl.where(d == 0, 0, w)
    count = tl.where(w != 0, length, 0)
    t, inside = read_patch(
        images, mean, std, row, count, channels, patch, grid_rows, grid_columns, image_stride, channel_stride,
        row_stride, column_stride, BLOCK, HAS_MEAN, HAS_STD, FULL, NORMALIZE, WIDE,
    )  # fmt: skip
    index = tl.arange(0, BLOCK)
    p_row = pred + image * pred_image_stride + token * pred_token_stride
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
        strides = *pred.stride()[:2], *weight.stride()
        tensors, numbers = patch_arguments(images, mean, std, patch)
        constants = patch_constants(images, mean, std, patch, normalize)
        constants |= {"L2": not absolute, "WIDE": WIDE[weight.dtype]}
        launch(loss_patches, weight.numel(), pred, weight, partial, *strides, *tensors, *numbers, **constants)
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
        strides = *pred.stride()[:2], *weight.stride()
        tensors, numbers = patch_arguments(images, mean, std, patch)
        constants = patch_constants(images, mean, std, patch, normalize)
        constants |= {"L2": not absolute, "WIDE": WIDE[weight.dtype]}
        rows = grad, pred, weight, denominator, grad_pred
        launch(slope_patches, weight.numel(), *rows, *strides, *tensors, *numbers, **constants)
    return grad_pred

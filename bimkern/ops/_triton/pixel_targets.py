"""pixel_targets: one program a patch, every pixel read once, every value written once.

Shapes: B images, C channels, H W pixels, N patches, p patch size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bimkern.ops._triton.launch import launch
from bimkern.ops._triton.masked_loss import WIDE
from bimkern.ops._triton.pixels import patch_arguments, patch_constants, read_patch


@triton.jit
def write_patches(
    out,
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
    WIDE: tl.constexpr,
):
    row = tl.program_id(0)
    length = patch * patch * channels
    values, inside = read_patch(
        images, mean, std, row, length, channels, patch, grid_rows, grid_columns, image_stride, channel_stride,
        row_stride, column_stride, BLOCK, HAS_MEAN, HAS_STD, FULL, NORMALIZE, WIDE,
    )  # fmt: skip
    tl.store(out + row.to(tl.int64) * length + tl.arange(0, BLOCK), values, mask=inside)


def pixel_targets(
    images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int, normalize: bool, dtype: torch.dtype
) -> Tensor:
    B, C, H, W = images.shape
    out = images.new_empty(B, (H // patch) * (W // patch), C * patch * patch, dtype=dtype)
    if out.numel():
        tensors, numbers = patch_arguments(images, mean, std, patch)
        constants = patch_constants(images, mean, std, patch, normalize)
        launch(write_patches, B * out.shape[1], out, *tensors, *numbers, WIDE=WIDE[dtype], **constants)
    return out

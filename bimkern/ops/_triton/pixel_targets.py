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
from bimkern.ops._triton.rows import alignment


@triton.jit
def write_patches(
    out,
    images,
    statistics,
    sizes,
    strides,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WIDE: tl.constexpr,
):
    channels, patch, _, _ = sizes
    length = patch * patch * channels // ALIGNMENT * ALIGNMENT  # the same, known to be a multiple
    row = tl.program_id(0)
    values, inside = read_patch(images, statistics, sizes, strides, row, length, BLOCK, FULL, NORMALIZE, WIDE)
    tl.store(out + row.to(tl.int64) * length + tl.arange(0, BLOCK), values, mask=inside)


def pixel_targets(
    images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int, normalize: bool, dtype: torch.dtype
) -> Tensor:
    B, C, H, W = images.shape
    out = images.new_empty(B, (H // patch) * (W // patch), C * patch * patch, dtype=dtype)
    if out.numel():
        constants = patch_constants(images, patch, normalize) | {"ALIGNMENT": alignment(out), "WIDE": WIDE[dtype]}
        launch(write_patches, B * out.shape[1], out, *patch_arguments(images, mean, std, patch), **constants)
    return out

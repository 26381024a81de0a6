"""pixel_targets: the pixels of every patch as a vector, raw or normalised per patch.

Shapes: B images, C channels, H W pixels, N patches, p patch size.
"""

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.declare("pixel_targets")

_EPS = 1e-6


def pixel_targets_reference(images: Tensor, patch: int, normalize: bool) -> Tensor:
    B, C, H, W = images.shape
    cells = images.reshape(B, C, H // patch, patch, W // patch, patch)
    vectors = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, N, p*p*C]
    vectors = vectors.to(torch.promote_types(images.dtype, torch.float32))
    if normalize:
        vectors = vectors - vectors[..., :1]  # so that a constant patch is exactly zero, whatever its mean rounds to
        variance, mean = torch.var_mean(vectors, dim=-1, keepdim=True)  # unbiased: divided by p*p*C - 1
        vectors = (vectors - mean) / (variance + _EPS).sqrt()
    return vectors


def pixel_targets(images: Tensor, patch: int, normalize: bool = True) -> Tensor:
    """Cut images into patches and flatten each, channel fastest; by default to zero mean and unit variance per patch.

    Args:
        images: [B, C, H, W], floating, H and W multiples of patch.
        patch: side in pixels.
        normalize: subtract the mean and divide by sqrt(unbiased variance + 1e-6), over all p*p*C values of a patch.

    Returns:
        [B, N, p*p*C], float32 (float64 for float64 images), patches in raster order, values (row, column, channel).
        A constant patch gives zeros when normalised.

    Raises:
        ValueError, TypeError: a shape or dtype is off; the message names it.

    Same as: pixel_targets_reference.
    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    dims = check.shapes("pixel_targets", images=(images, "B C H W"))
    check.dtypes("pixel_targets", images=(images, check.FLOATS))
    if patch < 1 or dims["H"] % patch or dims["W"] % patch:
        raise ValueError(
            f"pixel_targets: images must be [B, C, H, W] with H and W multiples of patch={patch}, "
            f"got {list(images.shape)}"
        )
    if normalize and dims["C"] * patch * patch < 2:
        raise ValueError(
            f"pixel_targets: normalize needs patches of at least 2 values, got patch={patch}, C={dims['C']}"
        )
    return _backend.call("pixel_targets", pixel_targets_reference, images, patch, normalize)

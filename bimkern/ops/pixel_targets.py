"""pixel_targets: the pixels of every patch as a vector, raw or normalized per patch.

Shapes: B images, C channels, H W pixels, N patches, p patch size.
"""

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.schemas.define(
    "pixel_targets(Tensor images, Tensor? mean, Tensor? std, int patch, bool normalize, ScalarType dtype) -> Tensor"
)
# A target is a constant: no gradient flows through, and the result never asks for one.
_backend.schemas.impl("pixel_targets", torch.library.fallthrough_kernel, "Autograd")
_backend.declare("pixel_targets", kernels={"cpu": "native", "cuda": "triton"})
_backend.run_by_triton("pixel_targets", module="pixel_targets")

PIXELS = (torch.uint8, *check.FLOATS)

_EPS = 1e-6


def pixel_targets_reference(
    images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int, normalize: bool, dtype: torch.dtype
) -> Tensor:
    """He et al. 2022 (MAE), section 3 "reconstruction target"."""
    B, C, H, W = images.shape
    pixels = images.to(dtype)
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if mean is not None:
        pixels = pixels - mean.view(-1, 1, 1)
    if std is not None:
        pixels = pixels / std.view(-1, 1, 1)
    cells = pixels.reshape(B, C, H // patch, patch, W // patch, patch)
    vectors = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, N, p*p*C]
    if normalize:
        vectors = vectors - vectors[..., :1]  # so that a constant patch is exactly zero, whatever its mean rounds to
        vectors = vectors - vectors.mean(dim=-1, keepdim=True)
        variance = vectors.square().sum(dim=-1, keepdim=True) / (C * patch * patch - 1)  # unbiased
        vectors = vectors / (variance + _EPS).sqrt()
    return vectors


def pixel_targets(
    images: Tensor,
    patch: int,
    normalize: bool = True,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Cut images into patches and flatten each, channel fastest; by default to zero mean and unit variance per patch.

    Args:
        images: [B, C, H, W], uint8, float32, float16, bfloat16 or float64, H and W multiples of patch; any strides.
            uint8 is divided by 255.
        patch: side in pixels.
        normalize: subtract the mean and divide by sqrt(unbiased variance + 1e-6), over all p*p*C values of a patch.
        mean, std: [C], float32 or float64, of pixels in [0, 1] for uint8. Before all else pixels become
            (pixel - mean) / std, which matters to patches that are normalized, too, as their channels are so together.
            None stands for 0 and 1.

    Returns:
        [B, N, p*p*C], float32 (float64 where images, mean or std are), patches in raster order, values (row, column,
        channel). A constant patch gives zeros when normalized. A constant: no gradient flows to the images.

    Raises:
        ValueError, TypeError: a shape, dtype or device is off; the message names it.

    Same as: pixel_targets_reference.
    Source: He et al. 2022 (MAE), section 3 "reconstruction target".
    """
    dtype = check.once(_check, (images, mean, std), patch, normalize)
    args = images.detach(), *as_statistics(mean, std, dtype), patch, normalize, dtype
    return _backend.call("pixel_targets", pixel_targets_reference, *args)


def _check(images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int, normalize: bool) -> torch.dtype:
    """Check what pixel_targets takes and return the dtype of its result."""
    op = "pixel_targets"
    check_images(op, images, patch, normalize, mean, std)
    statistics = (torch.float32, torch.float64)
    check.dtypes(op, mean=(mean, statistics), std=(std, statistics))
    wide = any(values is not None and values.dtype == torch.float64 for values in (images, mean, std))
    return torch.float64 if wide else torch.float32


def check_images(
    op: str, images: Tensor, patch: int, normalize: bool, mean: Tensor | None, std: Tensor | None
) -> tuple[int, int, int]:
    """Hold images, and how they are read, to what a kernel takes; return B, N and P of their patches."""
    dims = check.shapes(op, images=(images, "B C H W"), mean=(mean, "C"), std=(std, "C"))
    check.dtypes(op, images=(images, PIXELS))
    if patch < 1 or dims["H"] % patch or dims["W"] % patch:
        raise ValueError(
            f"{op}: images must be [B, C, H, W] with H and W multiples of patch={patch}, got {list(images.shape)}"
        )
    length = dims["C"] * patch * patch
    if normalize and length < 2:
        raise ValueError(f"{op}: normalize needs patches of at least 2 values, got patch={patch}, C={dims['C']}")
    check.same_device(op, images=images, mean=mean, std=std)
    return dims["B"], (dims["H"] // patch) * (dims["W"] // patch), length


def as_statistics(mean: Tensor | None, std: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return mean and std as the kernels take them; constants, as the target is."""
    first, second = (None if values is None else values.detach().to(dtype).contiguous() for values in (mean, std))
    return first, second


@torch.library.register_fake("bimkern::pixel_targets", lib=_backend.schemas)
def _(
    images: Tensor, mean: Tensor | None, std: Tensor | None, patch: int, normalize: bool, dtype: torch.dtype
) -> Tensor:
    B, C, H, W = images.shape
    return images.new_empty(B, (H // patch) * (W // patch), C * patch * patch, dtype=dtype)

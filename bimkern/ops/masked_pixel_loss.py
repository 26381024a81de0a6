"""masked_pixel_loss: masked_loss against the pixels of the images, which are never laid out in patches.

Shapes: B images, C channels, H W pixels, N patches, p patch size, P = p*p*C values a patch.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.ops.masked_loss import as_denominator, check_constants, check_kind, curvature, dot, masked_loss_reference
from bimkern.ops.pixel_targets import as_statistics, check_images, pixel_targets_reference

_ARGUMENTS = (
    "Tensor pred, Tensor images, Tensor weight, Tensor denominator, Tensor? mean, Tensor? std, int patch,"
    " bool normalize, bool absolute"
)
_backend.schemas.define(f"masked_pixel_loss({_ARGUMENTS}) -> Tensor")
_backend.schemas.define(f"masked_pixel_loss_bwd(Tensor grad, {_ARGUMENTS}) -> Tensor")
_backend.declare("masked_pixel_loss", kernels={"cpu": "native", "cuda": "triton"})
_backend.run_by_triton("masked_pixel_loss", "masked_pixel_loss_bwd", module="masked_pixel_loss")


def masked_pixel_loss_reference(
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
    """He et al. 2022 (MAE), section 3: target, then error."""
    target = pixel_targets_reference(images, mean, std, patch, normalize, weight.dtype)
    return masked_loss_reference(pred, target, weight, denominator, absolute)


def masked_pixel_loss(
    pred: Tensor,
    images: Tensor,
    weight: Tensor,
    kind: str = "l2",
    *,
    patch: int,
    normalize: bool = True,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Average the error of predicted patches over those that count, reading the truth from uint8 or float images.

    Patches of weight zero are read neither from pred nor from the images.

    Args:
        pred: [B, N, P], float32, float16, bfloat16 or float64; patches in raster order, values (row, column, channel).
        images: [B, C, H, W], uint8, float32, float16, bfloat16 or float64, H and W multiples of patch; any strides.
            uint8 is divided by 255. A constant: no gradient flows to them.
        weight: [B, N], bool, float32, float16, bfloat16 or float64, in [0, 1], 1 where masked. The arithmetic is
            done in float32, or float64 where weight or images are. It must not require a gradient.
        kind: "l2" (squared error) or "l1" (absolute error).
        patch: side in pixels.
        normalize: bring every patch to zero mean and unit variance, as pixel_targets does.
        mean, std: [C], float32, or float64 where the arithmetic is, of pixels in [0, 1] for uint8; before all else
            pixels become (pixel - mean) / std. None stands for 0 and 1. So what is predicted are the pixels of
            normalized images, which need not be made.
        denominator: as for masked_loss.

    Returns:
        Scalar, dtype of the arithmetic. Differentiable in pred. Zero, with zero gradients, where the denominator is
        zero.

    Raises:
        ValueError, TypeError: a shape, dtype, device, kind or number is off, or weight or the denominator requires a
            gradient; the message names it.

    Same as: masked_pixel_loss_reference.
    Source: He et al. 2022 (MAE), section 3 "reconstruction target"; Xie et al. 2022 (SimMIM), section 3.4 for l1.
    """
    op = "masked_pixel_loss"
    wide = check.once(_check, (pred, images, weight, mean, std), patch, normalize)
    check_kind(op, kind)
    weight = weight.to(wide)
    divisor = as_denominator(op, denominator, weight)
    statistics = as_statistics(mean, std, wide)
    args = pred, images.detach(), weight, divisor, *statistics, patch, normalize, kind == "l1"
    return _backend.call(op, masked_pixel_loss_reference, *args)


def _check(
    pred: Tensor,
    images: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch: int,
    normalize: bool,
) -> torch.dtype:
    """Check what masked_pixel_loss takes and return the dtype of its arithmetic."""
    op = "masked_pixel_loss"
    B, N, P = check_images(op, images, patch, normalize, mean, std)
    check.shapes(op, {"B": B, "N": N, "P": P}, pred=(pred, "B N P"), weight=(weight, "B N"))
    if P == 0:
        raise ValueError(f"{op}: images must have at least one channel, got {list(images.shape)}")
    wide = torch.float64 if torch.float64 in (images.dtype, weight.dtype) else torch.float32
    check.dtypes(op, pred=(pred, check.FLOATS), weight=(weight, check.MASKS), mean=(mean, wide), std=(std, wide))
    check.same_device(op, pred=pred, images=images, weight=weight)
    check_constants(op, weight=weight)
    return wide


@torch.library.register_fake("bimkern::masked_pixel_loss", lib=_backend.schemas)
def _(pred: Tensor, images: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return weight.new_empty(())


@torch.library.register_fake("bimkern::masked_pixel_loss_bwd", lib=_backend.schemas)
def _(grad: Tensor, pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty(pred.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.patch, ctx.normalize, ctx.absolute = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.patch, ctx.normalize, ctx.absolute
    return _backend.run("masked_pixel_loss_bwd", grad, *ctx.saved_tensors, *options), *[None] * 8


_backend.register_autograd("masked_pixel_loss", _backward, setup_context=_save)


def _backward_bwd(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, *tensors = ctx.saved_tensors
    _pred, _images, weight, denominator, *_ = tensors
    wants_grad, wants_pred, *_ = ctx.needs_input_grad
    grad_grad = grad_pred = None
    if wants_grad:
        options = ctx.patch, ctx.normalize, ctx.absolute
        slopes = _backend.run("masked_pixel_loss_bwd", torch.ones_like(grad), *tensors, *options)
        grad_grad = dot(cotangent, slopes, grad.dtype)
    if wants_pred:
        grad_pred = curvature(grad, cotangent, weight, denominator, ctx.absolute)
    return grad_grad, grad_pred, *[None] * 8


_backend.register_autograd("masked_pixel_loss_bwd", _backward_bwd, setup_context=_save)

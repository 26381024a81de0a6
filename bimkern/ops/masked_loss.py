"""masked_loss: the error of the masked tokens' predictions.

Shapes: B images, N tokens, P values a token.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

# No `str kind`: torch's stable interface never frees the strings that it hands to a kernel.
_ARGUMENTS = "Tensor pred, Tensor target, Tensor weight, Tensor denominator, bool absolute"
_backend.schemas.define(f"masked_loss({_ARGUMENTS}) -> Tensor")
_backend.schemas.define(f"masked_loss_bwd(Tensor grad, {_ARGUMENTS}) -> Tensor")
_backend.declare("masked_loss", kernels={"cpu": "native", "cuda": "triton"})
_backend.run_by_triton("masked_loss", "masked_loss_bwd", module="masked_loss")

KINDS = ("l2", "l1")


def masked_loss_reference(pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor, absolute: bool) -> Tensor:
    """He et al. 2022 (MAE), section 3: the mean error of a token's values, over the masked tokens."""
    counts = (weight != 0).unsqueeze(-1)  # where not, nothing is read: neither NaN nor infinity may come through
    error = torch.where(counts, pred.to(weight.dtype) - target.to(weight.dtype), 0)
    per_token = (error.abs() if absolute else error.square()).mean(dim=-1)  # [B, N]
    # Nothing counts: 0, not 0/0, and with zero gradients.
    return (per_token * weight).sum() / torch.where(denominator == 0, torch.inf, denominator)


def masked_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor,
    kind: str = "l2",
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Average the error of predictions over the tokens that count: sum(weight * mean_P error) / denominator.

    Rows of weight zero are not read, so they may hold anything. Nothing of pred's size is made but its gradient. On a
    CPU the result has the same bits for any number of threads.

    Args:
        pred: [B, N, P], float32, float16, bfloat16 or float64; any strides, fastest with P contiguous.
        target: [B, N, P], float32, float16, bfloat16 or float64. A constant: it must not require a gradient.
        weight: [B, N], bool or one of these dtypes; in [0, 1], 1 where masked. The arithmetic is done in float32, or
            float64 where target is. It must not require a gradient.
        kind: "l2" (squared error) or "l1" (absolute error).
        denominator: scalar tensor on the device of pred, or a number; by default sum(weight). Slices, micro-batches and
            ranks pass that of the whole batch, so that their losses and gradients add up to those of the whole.

    Returns:
        Scalar, dtype of the arithmetic. Differentiable in pred. Zero, with zero gradients, where the denominator is
        zero.

    Raises:
        ValueError, TypeError: a shape, dtype, device, kind or number is off, or something else than pred requires a
            gradient; the message names it.

    Same as: masked_loss_reference.
    Source: He et al. 2022 (MAE), section 3; Xie et al. 2022 (SimMIM), section 3.4 for l1.
    """
    op = "masked_loss"
    check.once(_check, (pred, target, weight))
    check_kind(op, kind)
    weight = weight.to(torch.promote_types(target.dtype, torch.float32))
    divisor = as_denominator(op, denominator, weight)
    return _backend.call(op, masked_loss_reference, pred, target, weight, divisor, kind == "l1")


def _check(pred: Tensor, target: Tensor, weight: Tensor) -> None:
    op = "masked_loss"
    dims = check.shapes(op, pred=(pred, "B N P"), target=(target, "B N P"), weight=(weight, "B N"))
    if dims["P"] == 0:
        raise ValueError(f"{op}: pred must hold at least one value a token, got {list(pred.shape)}")
    check.dtypes(op, pred=(pred, check.FLOATS), target=(target, check.FLOATS), weight=(weight, check.MASKS))
    check.same_device(op, pred=pred, target=target, weight=weight)
    check_constants(op, target=target, weight=weight)


def check_kind(op: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")


def check_constants(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(f"{op}: {name} must not require a gradient, got requires_grad=True")


def as_denominator(op: str, denominator: Tensor | float | None, weight: Tensor, *, like: str = "pred") -> Tensor:
    """Return the denominator as a scalar tensor, dtype and device of weight, without waiting for the device.

    like: the argument whose device it must be on, in messages.
    """
    if denominator is None:
        # float64 adds float32 weights without rounding, so their order does not matter.
        return weight.sum(dtype=torch.float64).to(weight.dtype)
    if not isinstance(denominator, Tensor):
        if not denominator >= 0:
            raise ValueError(f"{op}: denominator must be at least 0, got {denominator}")
        return weight.new_full((), denominator)
    if denominator.ndim != 0:
        raise ValueError(f"{op}: denominator must be a scalar, got shape {list(denominator.shape)}")
    check.dtypes(op, denominator=(denominator, check.FLOATS))
    check.same_device(op, **{like: weight, "denominator": denominator})
    check_constants(op, denominator=denominator)
    return denominator.to(weight.dtype)


@torch.library.register_fake("bimkern::masked_loss", lib=_backend.schemas)
def _(pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor, absolute: bool) -> Tensor:
    return weight.new_empty(())


@torch.library.register_fake("bimkern::masked_loss_bwd", lib=_backend.schemas)
def _(grad: Tensor, pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor, absolute: bool) -> Tensor:
    return pred.new_empty(pred.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.absolute = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _backend.run("masked_loss_bwd", grad, *ctx.saved_tensors, ctx.absolute), None, None, None, None


_backend.register_autograd("masked_loss", _backward, setup_context=_save)


def _backward_bwd(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, pred, target, weight, denominator = ctx.saved_tensors
    wants_grad, wants_pred, *_ = ctx.needs_input_grad
    grad_grad = grad_pred = None
    if wants_grad:
        ones = torch.ones_like(grad)
        slopes = _backend.run("masked_loss_bwd", ones, pred, target, weight, denominator, ctx.absolute)
        grad_grad = dot(cotangent, slopes, grad.dtype)
    if wants_pred:
        grad_pred = curvature(grad, cotangent, weight, denominator, ctx.absolute)
    return grad_grad, grad_pred, None, None, None, None


def dot(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return (a.to(dtype) * b.to(dtype)).sum()


def curvature(grad: Tensor, cotangent: Tensor, weight: Tensor, denominator: Tensor, absolute: bool) -> Tensor:
    """Apply the second derivative in pred: constant for l2, whose gradient from a target of zero it is; zero for l1."""
    zeros = torch.zeros_like(cotangent)
    if absolute:
        return zeros
    return _backend.run("masked_loss_bwd", grad, cotangent, zeros, weight, denominator, absolute)


_backend.register_autograd("masked_loss_bwd", _backward_bwd, setup_context=_save)

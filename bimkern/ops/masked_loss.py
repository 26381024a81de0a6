"""masked_loss: the error of the hidden tokens' predictions.

Shapes: B images, N tokens, P values a token.
"""

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.declare("masked_loss")

KINDS = ("l2", "l1")


def masked_loss_reference(pred: Tensor, target: Tensor, weight: Tensor, kind: str, denominator: Tensor) -> Tensor:
    error = pred.to(target.dtype) - target
    per_token = (error.square() if kind == "l2" else error.abs()).mean(dim=-1)  # [B, N]
    # An empty selection has loss 0, not 0/0; a positive denominator is left as it is.
    return (per_token * weight).sum() / torch.where(denominator > 0, denominator, 1.0)


def masked_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor,
    kind: str = "l2",
    *,
    denominator: Tensor | None = None,
) -> Tensor:
    """Average the error of predictions over the tokens that count: sum(weight * mean_P error) / denominator.

    Args:
        pred: [B, N, P], floating.
        target: [B, N, P], float32 or float64; the arithmetic is done in its dtype.
        weight: [B, N], dtype of target, in [0, 1]; 1 where hidden.
        kind: "l2" (squared error) or "l1" (absolute error).
        denominator: scalar tensor; by default sum(weight). Slices, micro-batches and ranks pass that of the whole
            batch, so that their losses and gradients add up to those of the whole.

    Returns:
        Scalar, dtype of target. Differentiable in pred. Zero, with zero gradients, where the denominator is zero.

    Raises:
        ValueError, TypeError: a shape, dtype, device or kind is off; the message names it.

    Same as: masked_loss_reference.
    Source: He et al. 2022 (MAE), section 3; Xie et al. 2022 (SimMIM), section 3.4 for l1.
    """
    check.shapes("masked_loss", pred=(pred, "B N P"), target=(target, "B N P"), weight=(weight, "B N"))
    check.dtypes(
        "masked_loss",
        pred=(pred, check.FLOATS),
        target=(target, (torch.float32, torch.float64)),
        weight=(weight, target.dtype),
    )
    if kind not in KINDS:
        raise ValueError(f"masked_loss: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if denominator is None:
        denominator = weight.sum()
    elif not isinstance(denominator, Tensor) or denominator.ndim != 0:
        got = f"shape {list(denominator.shape)}" if isinstance(denominator, Tensor) else repr(denominator)
        raise ValueError(f"masked_loss: denominator must be a scalar tensor, got {got}")
    check.same_device("masked_loss", pred=pred, target=target, weight=weight)
    return _backend.call("masked_loss", masked_loss_reference, pred, target, weight, kind, denominator)

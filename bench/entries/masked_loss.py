"""masked_loss against boolean indexing and other forms in plain torch."""

import torch
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops import keep_to_mask
from bimkern.ops.masked_loss import masked_loss, masked_loss_reference


def select(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One usual form: masked rows are picked by a boolean mask, then compared."""
    return (pred[mask].to(target.dtype) - target[mask]).square().mean()


def mean_then_mask(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The other usual form: all tokens are compared, then the visible ones' errors dropped."""
    loss = (pred.to(target.dtype) - target) ** 2
    return (loss.mean(dim=-1) * weight).sum() / weight.sum()


def weighted(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The best form in plain torch: one difference, and its product with itself, row by row, as a matrix product."""
    difference = (pred.to(target.dtype) - target).flatten(0, 1)
    per_token = torch.linalg.vecdot(difference, difference) / pred.shape[-1]
    return torch.dot(per_token, weight.flatten()) / weight.sum()


@entry("masked_loss", shapes=shapes.LOSS)
def measure(case: Case) -> Measure:
    """Mean squared error of masked tokens, float32 targets."""
    B, N, K, P = (case.dims[letter] for letter in "BNKP")
    pred = inputs.floats(case, "B", "N", "P")
    target = torch.randn(B, N, P, device=case.device)
    weight = keep_to_mask(inputs.keep(case), N)
    mask, total = weight.bool(), weight.sum()
    compiled = case.compiled(masked_loss_reference)
    # Masked rows of predictions and targets in; back: the same, and all gradients out.
    masked = B * (N - K) * P * (case.itemsize + target.itemsize) + weight.nbytes
    return Measure(
        ours=lambda: masked_loss(pred, target, weight, denominator=total),
        rivals={
            "select": lambda: select(pred, target, mask),
            "mean then mask": lambda: mean_then_mask(pred, target, weight),
            "weighted": lambda: weighted(pred, target, weight),
            "compile": lambda: compiled(pred, target, weight, total, False),
        },
        reference=lambda: masked_loss_reference(pred, target, weight, total, False),
        leaves=[pred],
        bytes=masked if case.pass_name == "fwd" else 2 * masked + B * N * P * case.itemsize,
    )

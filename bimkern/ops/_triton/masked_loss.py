"""masked_loss and its gradient; bound by memory.

Parallel over tiles of rows. Rows of weight zero are masked out of every load. A tile leaves one partial sum, and one
program adds these in a fixed order: the same bits in every run.

Shapes: B images, N tokens, P values a token.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bimkern.ops._triton.launch import launch, power_of_2
from bimkern.ops._triton.rows import alignment, row_starts, row_strides, with_contiguous_rows

_TILE = 1024  # values
_MAX_COLUMNS = 256
_SUM_BLOCK = 4096
WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def loss_tiles(
    pred,
    target,
    weight,
    partial,
    sizes,
    pred_strides,
    target_strides,
    weight_strides,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    num_rows, tokens, length = sizes
    length = length // ALIGNMENT * ALIGNMENT  # the same, known to be a multiple
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = (rows // tokens).to(tl.int64)  # divided in 32 bits, which is several times faster
    token = (rows % tokens).to(tl.int64)
    w = tl.load(weight + image * weight_strides[0] + token * weight_strides[1], mask=rows < num_rows, other=0)
    counts = w != 0
    pred_rows = row_starts(pred, pred_strides, image, token, ALIGNMENT)
    target_rows = row_starts(target, target_strides, image, token, ALIGNMENT)
    errors = tl.zeros([ROWS], WIDE)
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = counts[:, None] & (columns < length)[None, :]
        p = tl.load(pred_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
        t = tl.load(target_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
        difference = p - t
        errors += tl.sum(difference * difference if L2 else tl.abs(difference), axis=1)
    tl.store(partial + tl.program_id(0), tl.sum(w * (errors / length), axis=0))


@triton.jit
def add_partials(partial, denominator, loss, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        total += tl.load(partial + positions, mask=positions < count, other=0).to(tl.float64)
    d = tl.load(denominator)
    quotient = tl.sum(total, axis=0) / tl.where(d == 0, 1, d).to(tl.float64)
    tl.store(loss, tl.where(d == 0, 0, quotient))


@triton.jit
def slope_of(difference, L2: tl.constexpr, WIDE: tl.constexpr):
    """Return the derivative of the squared error, or else of the absolute one, which is 0 at 0."""
    if L2:
        slope = 2 * difference
    else:
        slope = (difference > 0).to(WIDE) - (difference < 0).to(WIDE)
    return slope


@triton.jit
def slope_tiles(
    grad,
    pred,
    target,
    weight,
    denominator,
    grad_pred,
    sizes,
    pred_strides,
    target_strides,
    weight_strides,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    L2: tl.constexpr,
    WIDE: tl.constexpr,
):
    num_rows, tokens, length = sizes
    length = length // ALIGNMENT * ALIGNMENT  # the same, known to be a multiple
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = (rows // tokens).to(tl.int64)  # divided in 32 bits, which is several times faster
    token = (rows % tokens).to(tl.int64)
    exists = rows < num_rows
    w = tl.load(weight + image * weight_strides[0] + token * weight_strides[1], mask=exists, other=0)
    d = tl.load(denominator)
    w = tl.where(d == 0, 0, w)
    counts = w != 0
    factor = w * (tl.load(grad) / (tl.where(d == 0, 1, d) * length))
    pred_rows = row_starts(pred, pred_strides, image, token, ALIGNMENT)
    target_rows = row_starts(target, target_strides, image, token, ALIGNMENT)
    out_rows = grad_pred + rows.to(tl.int64) * length
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = counts[:, None] & (columns < length)[None, :]
        p = tl.load(pred_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
        t = tl.load(target_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
        difference = p - t
        values = (factor[:, None] * slope_of(difference, L2, WIDE)).to(grad_pred.dtype.element_ty)
        tl.store(out_rows[:, None] + columns[None, :], values, mask=exists[:, None] & (columns < length)[None, :])


def masked_loss(pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor, absolute: bool) -> Tensor:
    pred, target = with_contiguous_rows(pred), with_contiguous_rows(target)
    programs, numbers, constants = _tiles(pred, target, weight, absolute)
    partial = weight.new_empty(programs)
    if programs:
        launch(loss_tiles, programs, pred, target, weight, partial, *numbers, **constants)
    return sum_of(partial, denominator)


def sum_of(partial: Tensor, denominator: Tensor) -> Tensor:
    """Add partial sums [*] and divide; zero where the denominator is."""
    loss = partial.new_empty(())
    launch(add_partials, 1, partial, denominator, loss, partial.numel(), num_warps=8, BLOCK=_SUM_BLOCK)
    return loss


def masked_loss_bwd(
    grad: Tensor, pred: Tensor, target: Tensor, weight: Tensor, denominator: Tensor, absolute: bool
) -> Tensor:
    pred, target = with_contiguous_rows(pred), with_contiguous_rows(target)
    grad_pred = torch.empty(pred.shape, dtype=pred.dtype, device=pred.device)
    programs, numbers, constants = _tiles(pred, target, weight, absolute)
    if programs:
        launch(slope_tiles, programs, grad, pred, target, weight, denominator, grad_pred, *numbers, **constants)
    return grad_pred


def _tiles(
    pred: Tensor, target: Tensor, weight: Tensor, absolute: bool
) -> tuple[int, tuple[tuple[int, ...], ...], dict[str, Any]]:
    """Return how many programs there are, and the numbers and constants of a kernel over tiles."""
    columns = power_of_2(pred.shape[2], _MAX_COLUMNS)
    rows = _TILE // columns
    constants = {
        "ROWS": rows,
        "COLUMNS": columns,
        "ALIGNMENT": alignment(pred, target),
        "L2": not absolute,
        "WIDE": WIDE[weight.dtype],
        "num_warps": 4,
    }
    sizes = weight.numel(), pred.shape[1], pred.shape[2]
    strides = row_strides(pred), row_strides(target), weight.stride()
    return triton.cdiv(weight.numel(), rows), (sizes, *strides), constants

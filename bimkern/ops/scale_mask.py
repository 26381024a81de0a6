"""scale_mask: a mask of the token grid at another scale.

Shapes: B images, N = rows x columns tokens, M tokens of the other scale.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

MAX_SIDE = 2**30 - 1  # of both grids and of the squares: products of two, in bytes, fit 64 bits

_backend.schemas.define("scale_mask(Tensor mask, int rows, int columns, int average, int repeat) -> Tensor")
_backend.declare("scale_mask", kernels={"cpu": "native", "cuda": "native"})


def scale_mask_reference(mask: Tensor, rows: int, columns: int, average: int, repeat: int) -> Tensor:
    squares = mask.reshape(len(mask), rows // average, average, columns // average, average)
    means = squares.mean(dim=(2, 4))
    return means.repeat_interleave(repeat, dim=1).repeat_interleave(repeat, dim=2).flatten(1)


def scale_mask(mask: Tensor, factor: float, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Bring a mask to a grid with `factor` times the rows and columns: repeat its values, or average squares of them.

    At a coarser scale the values are weights in [0, 1], the share of a cell that is masked, with no threshold.

    Args:
        mask: [B, N], float32, float16, bfloat16, float64 or bool, tokens in raster order; any strides.
        factor: 1, 2, 3, ... or 1/2, 1/3, ...
        grid: (rows, columns) of the mask; by default N is a square.

    Returns:
        [B, M], dtype of mask, float32 of bool, tokens in raster order; M = N * factor**2. Differentiable.

    Raises:
        ValueError: factor, grid or a shape is off; the message names it.
        TypeError: the dtype is off.

    Same as: scale_mask_reference.
    Source: Wang et al. 2023 (LocalMIM), section 3.2; averaged as in its published program.
    """
    rows, columns, average, repeat = check.once(_check, (mask,), factor, *(grid or ()))
    if mask.dtype == torch.bool:
        mask = mask.float()
    return _backend.call("scale_mask", scale_mask_reference, mask, rows, columns, average, repeat)


def _check(mask: Tensor, factor: float, *grid: int) -> tuple[int, int, int, int]:
    """Check what scale_mask takes and return rows, columns, average and repeat."""
    op = "scale_mask"
    dims = check.shapes(op, mask=(mask, "B N"))
    check.dtypes(op, mask=(mask, check.MASKS))
    rows, columns = grid or _grid(dims["N"])
    if rows < 0 or columns < 0 or rows * columns != dims["N"]:
        raise ValueError(f"{op}: grid must be (rows, columns) of the N={dims['N']} tokens, got ({rows}, {columns})")
    average, repeat = _sides(factor)
    if rows % average or columns % average:
        raise ValueError(f"{op}: grid must have multiples of {average} for factor={factor}, got ({rows}, {columns})")
    if repeat > MAX_SIDE or rows * repeat > MAX_SIDE or columns * repeat > MAX_SIDE:
        raise ValueError(
            f"{op}: factor must give less than 2**30 rows and columns, got {factor} for grid=({rows}, {columns})"
        )
    return rows, columns, average, repeat


def _grid(num_tokens: int) -> tuple[int, int]:
    side = int(num_tokens**0.5)  # torch.compile traces no math.isqrt
    if side * side != num_tokens:
        raise ValueError(f"scale_mask: grid must be given where N is not a square, got N={num_tokens}")
    return side, side


def _sides(factor: float) -> tuple[int, int]:
    """Return the sides of the square that is averaged and of that which is repeated; one of them is 1."""
    if factor >= 1 and factor % 1 == 0:
        return 1, round(factor)
    if 1e-9 < factor < 1 and factor == 1 / round(1 / factor):
        return round(1 / factor), 1
    raise ValueError(f"scale_mask: factor must be a whole number or one over a whole number, got {factor}")


@torch.library.register_fake("bimkern::scale_mask", lib=_backend.schemas)
def _(mask: Tensor, rows: int, columns: int, average: int, repeat: int) -> Tensor:
    return mask.new_empty(mask.shape[0], (rows // average * repeat) * (columns // average * repeat))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _mask, rows, columns, ctx.average, ctx.repeat = inputs
    ctx.grid = (rows // ctx.average * ctx.repeat, columns // ctx.average * ctx.repeat)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Transposed, a mean is a repetition of shares, and a repetition a sum.
    mean = _backend.run("scale_mask", grad, *ctx.grid, ctx.repeat, ctx.average)
    return mean * (ctx.repeat / ctx.average) ** 2, None, None, None, None


_backend.register_autograd("scale_mask", _backward, setup_context=_save)

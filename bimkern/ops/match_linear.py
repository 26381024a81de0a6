"""The layers of match_predict at scales 1 and 1/2, with their gradients: pooled squares, and a narrow linear layer.

Shapes: B images, N = rows x columns tokens, D width, n rows, P values predicted a row.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend

_backend.schemas.define("match_pool(Tensor tokens, Tensor? weight, int rows, int columns, ScalarType dtype) -> Tensor")
_backend.schemas.define("match_pool_bwd(Tensor grad, int rows, int columns, ScalarType dtype) -> Tensor")
_backend.schemas.define("match_product(Tensor left, Tensor right, Tensor? bias, bool add, Tensor(a!) out) -> ()")
_backend.schemas.define(
    "match_spread(Tensor grad, Tensor weight, int rows, int columns, bool squares, Tensor(a!) out) -> ()"
)
_backend.schemas.define(
    "match_linear(Tensor tokens, Tensor weight, Tensor bias, int rows, int columns, bool squares) -> (Tensor, Tensor)"
)
_backend.schemas.define(
    "match_linear_bwd(Tensor grad, Tensor x, Tensor weight, int rows, int columns, bool squares, ScalarType dtype,"
    " bool[3] needed) -> (Tensor, Tensor, Tensor)"
)


def refuse_second_gradients(op: str) -> None:
    """Raise inside a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: no gradients of gradients here; BIMKERN_BACKEND=reference has them")


def pool(tokens: Tensor, weight: Tensor | None, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Average 2x2 squares of tokens [B, N, D] to dtype, [B, N / 4, D]; cells of weight zero are not read, and zero."""
    if (tokens.dtype == torch.float64) != (dtype == torch.float64):
        tokens = tokens.to(torch.promote_types(dtype, torch.float32))
    return _backend.run("match_pool", tokens, weight, rows, columns, dtype)


@torch.library.register_fake("bimkern::match_pool", lib=_backend.schemas)
def _(tokens: Tensor, weight: Tensor | None, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return tokens.new_empty((tokens.shape[0], rows * columns // 4, tokens.shape[2]), dtype=dtype)


@torch.library.register_fake("bimkern::match_pool_bwd", lib=_backend.schemas)
def _(grad: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return grad.new_empty((grad.shape[0], rows * columns, grad.shape[2]), dtype=dtype)


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, ctx.weighted, ctx.rows, ctx.columns, _dtype = inputs[0], inputs[1] is not None, *inputs[2:]
    ctx.dtype = tokens.dtype


def _pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_gradients("match_loss" if ctx.weighted else "match_predict")
    return torch.ops.bimkern.match_pool_bwd(grad, ctx.rows, ctx.columns, ctx.dtype), None, None, None, None


_backend.register_autograd("match_pool", _pool_backward, setup_context=_save_pool)


def _linear(
    tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int, squares: bool
) -> tuple[Tensor, Tensor]:
    """Multiply tokens [B, N, D], or means of their squares, by weight [P, D] and add bias [P], all in float32.

    Returns: predictions [B, M, P] and the means [B, M, D], empty without squares.
    """
    ops = torch.ops.bimkern
    x = ops.match_pool(tokens, None, rows, columns, torch.float32) if squares else tokens
    out = weight.new_empty(*x.shape[:2], weight.shape[0])
    ops.match_product(x.flatten(0, 1), weight.T.contiguous(), bias, False, out.flatten(0, 1))
    return out, x if squares else x.new_empty(0)


def _linear_bwd(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: int,
    columns: int,
    squares: bool,
    dtype: torch.dtype,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of tokens, weight and bias, the first in dtype; empty where not needed.

    x [B, M, D]: what weight multiplied.
    """
    ops = torch.ops.bimkern
    images, grad, weight = len(x), grad.contiguous().flatten(0, 1), weight.contiguous()  # [B * M, P]
    if needed[0]:
        grad_tokens = x.new_empty((images, rows * columns, x.shape[2]), dtype=dtype)
        ops.match_spread(grad, weight, rows, columns, squares, grad_tokens)
    else:
        grad_tokens = x.new_empty(0, dtype=dtype)
    grad_weight = weight.new_empty(weight.shape if needed[1] else 0)
    if needed[1]:
        ops.match_product(grad.T, x.flatten(0, 1), None, False, grad_weight)
    return grad_tokens, grad_weight, grad.sum(0) if needed[2] else grad.new_empty(0)


_backend.compose("match_linear", _linear, "CPU")
_backend.compose("match_linear_bwd", _linear_bwd, "CPU")


@torch.library.register_fake("bimkern::match_linear", lib=_backend.schemas)
def _(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int, squares: bool) -> tuple[Tensor, Tensor]:
    images, _, width = tokens.shape
    cells = rows * columns // (4 if squares else 1)
    means = weight.new_empty((images, cells, width) if squares else 0)
    return weight.new_empty(images, cells, weight.shape[0]), means


@torch.library.register_fake("bimkern::match_linear_bwd", lib=_backend.schemas)
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: int,
    columns: int,
    squares: bool,
    dtype: torch.dtype,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (len(x), rows * columns, x.shape[2]), weight.shape, grad.shape[2:]
    grads = (x.new_empty(shape if need else 0) for shape, need in zip(shapes, needed, strict=True))
    grad_tokens, grad_weight, grad_bias = grads
    return grad_tokens.to(dtype), grad_weight, grad_bias


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, weight, _bias, *ctx.grid = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1] if ctx.grid[-1] else tokens, weight)
    ctx.dtype = tokens.dtype


def _linear_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_second_gradients("match_predict")
    if grad is None:
        return (None,) * 6
    needed = list(ctx.needs_input_grad[:3])
    grads = torch.ops.bimkern.match_linear_bwd(grad, *ctx.saved_tensors, *ctx.grid, ctx.dtype, needed)
    return *(found if need else None for found, need in zip(grads, needed, strict=True)), None, None, None


_backend.register_autograd("match_linear", _linear_backward, setup_context=_save_linear)

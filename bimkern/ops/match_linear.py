"""The layer of match_predict and match_loss at scales 1 and 1/2: one linear layer, of tokens or means of their squares.

Shapes: B images, N = rows x columns tokens, D width, M cells (N, or N / 4 squares), P values predicted a cell.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend

_backend.schemas.define("match_pool(Tensor tokens, Tensor? weight, int rows, int columns, ScalarType dtype) -> Tensor")
_backend.schemas.define("match_pool_bwd(Tensor grad, int rows, int columns, ScalarType dtype) -> Tensor")
_backend.schemas.define("match_product(Tensor left, Tensor right, Tensor? bias, bool add, Tensor(a!) out) -> ()")
_LAYER = "Tensor tokens, Tensor weight, Tensor bias"
_GRID = "int rows, int columns, bool squares"
_backend.schemas.define(f"match_linear({_LAYER}, {_GRID}) -> (Tensor, Tensor)")
_backend.schemas.define(
    f"match_linear_loss({_LAYER}, Tensor target, Tensor mask, Tensor denominator, {_GRID}, bool absolute,"
    " bool with_grads) -> (Tensor, Tensor, Tensor, Tensor)"
)
_backend.schemas.define(
    f"match_linear_bwd(Tensor grad, Tensor? x, Tensor weight, {_GRID}, ScalarType dtype, bool tokens_needed,"
    " bool weight_needed, bool bias_needed) -> (Tensor, Tensor, Tensor)"
)


def refuse_second_gradients(op: str) -> None:
    """Raise inside a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: no gradients of gradients here; BIMKERN_BACKEND=reference has them")


def in_float32(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return operands as match_linear takes them: tokens may be narrower."""
    if tokens.dtype == torch.float64:
        tokens = tokens.to(torch.float32)
    return tokens, weight.to(torch.float32).contiguous(), bias.to(torch.float32).contiguous()


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


@torch.library.register_fake("bimkern::match_linear", lib=_backend.schemas)
def _(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int, squares: bool) -> tuple[Tensor, Tensor]:
    images, _, width = tokens.shape
    cells = rows * columns // (4 if squares else 1)
    means = weight.new_empty((images, cells, width) if squares else 0)
    return weight.new_empty(images, cells, weight.shape[0]), means


@torch.library.register_fake("bimkern::match_linear_bwd", lib=_backend.schemas)
def _(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    rows: int,
    columns: int,
    squares: bool,
    dtype: torch.dtype,
    *needed: bool,
) -> tuple[Tensor, ...]:
    shapes = (len(grad), rows * columns, weight.shape[1]), weight.shape, grad.shape[2:]
    dtypes = dtype, weight.dtype, weight.dtype
    made = zip(shapes, dtypes, needed, strict=True)
    return tuple(weight.new_empty(shape if need else 0, dtype=dtype) for shape, dtype, need in made)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, weight, _bias, *ctx.grid = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1] if ctx.grid[-1] else tokens, weight)
    ctx.dtype = tokens.dtype


def _linear_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_second_gradients("match_predict")
    if grad is None:
        return (None,) * 6
    needed = ctx.needs_input_grad[:3]
    grads = torch.ops.bimkern.match_linear_bwd(grad, *ctx.saved_tensors, *ctx.grid, ctx.dtype, *needed)
    return *(found if need else None for found, need in zip(grads, needed, strict=True)), None, None, None


_backend.register_autograd("match_linear", _linear_backward, setup_context=_save_linear)


@torch.library.register_fake("bimkern::match_linear_loss", lib=_backend.schemas)
def _(tokens: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, ...]:
    shapes = (target.shape, weight.shape, bias.shape) if others[-1] else (0,) * 3
    return weight.new_empty(()), *(weight.new_empty(shape) for shape in shapes)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, weight, *_, rows, columns, squares, _absolute, _with_grads = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *output[1:])
    ctx.options = rows, columns, squares, tokens.dtype


def _loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Scale what forward found; the gradient of tokens is made here, so that only that of predictions was kept."""
    refuse_second_gradients("match_loss")
    if grad_loss is None:
        return (None,) * 11
    weight, grad_out, grad_weight, grad_bias = ctx.saved_tensors
    grad_tokens = None
    if ctx.needs_input_grad[0]:
        scaled = weight * grad_loss
        needed = True, False, False
        grad_tokens, *_ = torch.ops.bimkern.match_linear_bwd(grad_out, None, scaled, *ctx.options, *needed)
    return grad_tokens, grad_weight * grad_loss, grad_bias * grad_loss, *(None,) * 8


_backend.register_autograd("match_linear_loss", _loss_backward, setup_context=_save_loss)

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
_backend.schemas.define("match_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor")
_backend.schemas.define(
    "match_linear_bwd(Tensor grad, Tensor x, Tensor weight, bool[3] needed) -> (Tensor, Tensor, Tensor)"
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


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply rows x [n, D] by weight [P, D] and add bias [P], all float32, rows of x contiguous."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    torch.ops.bimkern.match_product(x, weight.T.contiguous(), bias, False, out)
    return out


def _linear_bwd(grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; empty where not needed."""
    product = torch.ops.bimkern.match_product
    grad_x, grad_weight = (
        y.new_empty(y.shape if need else (0, 0)) for y, need in zip((x, weight), needed, strict=False)
    )
    if needed[0]:
        product(grad, weight, None, False, grad_x)
    if needed[1]:
        product(grad.T, x, None, False, grad_weight)
    return grad_x, grad_weight, grad.sum(0) if needed[2] else grad.new_empty(0)


_backend.compose("match_linear", _linear, "CPU")
_backend.compose("match_linear_bwd", _linear_bwd, "CPU")


@torch.library.register_fake("bimkern::match_linear", lib=_backend.schemas)
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("bimkern::match_linear_bwd", lib=_backend.schemas)
def _(grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = (
        y.new_empty(y.shape if need else (0, 0)) for y, need in zip((x, weight), needed, strict=False)
    )
    return grad_x, grad_weight, grad.new_empty(grad.shape[1] if needed[2] else 0)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _bias = inputs
    ctx.save_for_backward(x, weight)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_gradients("match_predict")
    needed = list(ctx.needs_input_grad)
    grads = torch.ops.bimkern.match_linear_bwd(grad, *ctx.saved_tensors, needed)
    return tuple(found if need else None for found, need in zip(grads, needed, strict=True))


_backend.register_autograd("match_linear", _linear_backward, setup_context=_save_linear)

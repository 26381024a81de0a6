"""gather_tokens: keep the visible tokens of each image and add their positions, in one pass.

Shapes: B images, M masks of each, R prefix tokens, N tokens, K kept tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.schemas.define(
    "gather_tokens(Tensor tokens, Tensor keep, Tensor? pos, int num_prefix, int num_masks=1) -> Tensor"
)
_backend.schemas.define(
    "gather_tokens_bwd(Tensor grad, Tensor keep, int num_tokens, int num_prefix, int num_masks=1) -> Tensor"
)
_backend.schemas.define("gather_tokens_bwd_pos(Tensor grad, Tensor keep, int num_tokens, int num_prefix) -> Tensor")
_backend.declare("gather_tokens", kernels={"cpu": "native", "cuda": "native"})


def gather_tokens_reference(
    tokens: Tensor, keep: Tensor, pos: Tensor | None = None, num_prefix: int = 0, num_masks: int = 1
) -> Tensor:
    """He et al. 2022 (MAE), section 3: positions are added to all tokens, then a subset goes into the encoder."""
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]  # [B, R, D], [B, N, D]
    if pos is not None:
        patches = patches + pos
    prefix, patches = prefix.repeat(num_masks, 1, 1), patches.repeat(num_masks, 1, 1)  # [M*B, *, D]
    index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])  # [M*B, K, D]
    return torch.cat([prefix, patches.gather(1, index)], dim=1)  # [M*B, R+K, D]


def gather_tokens(
    tokens: Tensor, keep: Tensor, pos: Tensor | None = None, *, num_prefix: int = 0, num_masks: int = 1
) -> Tensor:
    """Select the kept tokens of each image, behind its prefix tokens, and add their position embedding.

    Args:
        tokens: [B, R+N, D], float32, float16, bfloat16 or float64; any strides, fastest with D contiguous.
        keep: [M*B, K], int64 ids in [0, N), in any order, none twice in a row; 0 <= K <= N. On a CPU the values are
            checked; on a GPU with BIMKERN_DEBUG=1. Otherwise the CUDA kernels wait for no check: an id out of
            range makes NaN of its row, of the gradients of all N tokens of its image and of that of pos; a repeated id
            of the gradients of its token (with several masks, of all N tokens of its image) and of pos. The reference
            is plain torch there: it asserts on the device, and adds up the gradients of a repeated id.
        pos: [N, D], any of these dtypes; converted to that of tokens. None adds nothing.
        num_prefix: R, tokens in front that are always kept and get no position.
        num_masks: M. keep then holds B rows for the first mask, B for the second, and so on; a token that several
            masks keep gets the sum of their gradients, in one pass.

    Returns:
        [M*B, R+K, D], dtype of tokens. Differentiable in tokens and pos.

    Raises:
        ValueError: a shape, a device, num_prefix or num_masks is off; the message names it.
        TypeError: a dtype is off.
        RuntimeError: an id is out of range or repeated (on a CPU, or with BIMKERN_DEBUG=1).

    Same as: gather_tokens_reference.
    Source: He et al. 2022 (MAE), section 3 "masking"; used by BIM, LocalMIM, ViTFreeze.
    """
    num_tokens = check.once(_check, (tokens, keep, pos), num_prefix, num_masks)
    if pos is not None and pos.dtype != tokens.dtype:
        pos = pos.to(tokens.dtype)
    args = tokens, keep, pos, num_prefix, num_masks
    return _backend.call("gather_tokens", gather_tokens_reference, *args, ids=("keep", keep, num_tokens))


def _check(tokens: Tensor, keep: Tensor, pos: Tensor | None, num_prefix: int, num_masks: int) -> int:
    """Check what gather_tokens takes and return N."""
    op = "gather_tokens"
    if num_prefix < 0:
        raise ValueError(f"{op}: num_prefix must be at least 0, got {num_prefix}")
    if num_masks < 1:
        raise ValueError(f"{op}: num_masks must be at least 1, got {num_masks}")
    dims = check.shapes(op, {"R": num_prefix}, tokens=(tokens, "B R+N D"), pos=(pos, "N D"))
    if num_masks == 1:
        dims = check.shapes(op, dims, keep=(keep, "B K"))
    else:
        dims = check.shapes(op, dims | {"M*B": num_masks * dims["B"]}, keep=(keep, "M*B K"))
    check.dtypes(op, tokens=(tokens, check.FLOATS), keep=(keep, torch.int64), pos=(pos, check.FLOATS))
    check.same_device(op, tokens=tokens, keep=keep, pos=pos)
    if dims["K"] > dims["N"]:
        raise ValueError(f"{op}: keep must hold at most N={dims['N']} ids per image, got K={dims['K']}")
    return dims["N"]


@torch.library.register_fake("bimkern::gather_tokens", lib=_backend.schemas)
def _(tokens: Tensor, keep: Tensor, pos: Tensor | None, num_prefix: int, num_masks: int = 1) -> Tensor:
    return tokens.new_empty(keep.shape[0], num_prefix + keep.shape[1], tokens.shape[2])


@torch.library.register_fake("bimkern::gather_tokens_bwd", lib=_backend.schemas)
def _(grad: Tensor, keep: Tensor, num_tokens: int, num_prefix: int, num_masks: int = 1) -> Tensor:
    return grad.new_empty(grad.shape[0] // num_masks, num_prefix + num_tokens, grad.shape[2])


@torch.library.register_fake("bimkern::gather_tokens_bwd_pos", lib=_backend.schemas)
def _(grad: Tensor, keep: Tensor, num_tokens: int, num_prefix: int) -> Tensor:
    return grad.new_empty(num_tokens, grad.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, keep, _pos, num_prefix, ctx.num_masks = inputs
    ctx.save_for_backward(keep)
    ctx.num_prefix = num_prefix
    ctx.num_tokens = tokens.shape[1] - num_prefix


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (keep,) = ctx.saved_tensors
    args = (grad, keep, ctx.num_tokens, ctx.num_prefix)
    grad_tokens = _backend.run("gather_tokens_bwd", *args, ctx.num_masks) if ctx.needs_input_grad[0] else None
    grad_pos = _backend.run("gather_tokens_bwd_pos", *args) if ctx.needs_input_grad[2] else None
    return grad_tokens, None, grad_pos, None, None


_backend.register_autograd("gather_tokens", _backward, setup_context=_save)


# The backward ops are linear in grad; their gradients make a second backward pass right.
def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _grad, keep, ctx.num_tokens, ctx.num_prefix, ctx.num_masks = inputs
    ctx.save_for_backward(keep)


def _save_bwd_pos(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _grad, keep, ctx.num_tokens, ctx.num_prefix = inputs
    ctx.save_for_backward(keep)


def _backward_bwd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (keep,) = ctx.saved_tensors
    return _backend.run("gather_tokens", grad, keep, None, ctx.num_prefix, ctx.num_masks), None, None, None, None


def _backward_bwd_pos(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (keep,) = ctx.saved_tensors
    zeros = grad.new_zeros(1, 1, grad.shape[1]).expand(len(keep), ctx.num_prefix + ctx.num_tokens, -1)
    return _backend.run("gather_tokens", zeros, keep, grad, ctx.num_prefix, 1), None, None, None


_backend.register_autograd("gather_tokens_bwd", _backward_bwd, setup_context=_save_bwd)
_backend.register_autograd("gather_tokens_bwd_pos", _backward_bwd_pos, setup_context=_save_bwd_pos)

"""restore_tokens: the decoder's input, every token back in its place and the mask token elsewhere.

Shapes: B images, R prefix tokens, N tokens, K kept tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.schemas.define(
    "restore_tokens(Tensor visible, Tensor keep, Tensor mask_token, Tensor? pos, int num_tokens, int num_prefix)"
    " -> Tensor"
)
_backend.schemas.define(
    "restore_tokens_bwd(Tensor grad, Tensor keep, int num_prefix, bool with_pos) -> (Tensor, Tensor, Tensor)"
)
_backend.declare("restore_tokens", kernels={"cpu": "native", "cuda": "native"})


def restore_tokens_reference(
    visible: Tensor,
    keep: Tensor,
    mask_token: Tensor,
    pos: Tensor | None,
    num_tokens: int,
    num_prefix: int = 0,
) -> Tensor:
    """He et al. 2022 (MAE), section 3: encoded patches in order, a shared vector elsewhere, positions."""
    prefix, kept = visible[:, :num_prefix], visible[:, num_prefix:]
    index = keep.unsqueeze(-1).expand_as(kept)  # [B, K, D]
    tokens = mask_token.expand(len(visible), num_tokens, -1).scatter(1, index, kept)  # [B, N, D]
    return torch.cat([prefix, tokens if pos is None else tokens + pos], dim=1)


def restore_tokens(
    visible: Tensor,
    keep: Tensor,
    mask_token: Tensor,
    pos: Tensor | None = None,
    *,
    num_tokens: int,
    num_prefix: int = 0,
) -> Tensor:
    """Put visible tokens back in order, the mask token everywhere else, and add positions.

    Args:
        visible: [B, R+K, D], float32, float16, bfloat16 or float64; any strides, fastest with D contiguous.
        keep: [B, K], int64 ids in [0, N), in any order, none twice in an image; 0 <= K <= N. On a CPU the values are
            checked; on a GPU with BIMKERN_DEBUG=1. Otherwise the CUDA kernels wait for no check: an id out of
            range makes NaN of all N tokens of its image, a repeated one of its token, and both of the gradients of the
            image's K visible tokens, of pos, and of mask_token where K < N. The reference is plain torch there: it
            asserts on the device, and puts one of two visible tokens at a repeated id. MAE's ids_restore [B, N] holds
            keep as ids_restore.argsort(dim=1)[:, :K].
        mask_token: [D] or [1, 1, D], any of these dtypes; converted to that of visible.
        pos: [N, D], likewise. None adds nothing.
        num_tokens: N.
        num_prefix: R, tokens in front of the visible ones, which get no position.

    Returns:
        [B, R+N, D], dtype of visible. Differentiable in visible, mask_token and pos.

    Raises:
        ValueError: a shape, a count or a device is off; the message names it.
        TypeError: a dtype is off.
        RuntimeError: an id is out of range or repeated (on a CPU, or with BIMKERN_DEBUG=1).

    Same as: restore_tokens_reference.
    Source: He et al. 2022 (MAE), section 3 "MAE decoder"; appended mask tokens, un-shuffled.
    """
    check.once(_check, (visible, keep, mask_token, pos), num_tokens, num_prefix)
    dtype = visible.dtype
    if mask_token.ndim == 3:
        mask_token = mask_token.flatten()
    if mask_token.dtype != dtype:
        mask_token = mask_token.to(dtype)
    if pos is not None and pos.dtype != dtype:
        pos = pos.to(dtype)
    args = visible, keep, mask_token, pos, num_tokens, num_prefix
    return _backend.call("restore_tokens", restore_tokens_reference, *args, ids=("keep", keep, num_tokens))


def _check(
    visible: Tensor, keep: Tensor, mask_token: Tensor, pos: Tensor | None, num_tokens: int, num_prefix: int
) -> None:
    op = "restore_tokens"
    if num_prefix < 0 or num_tokens < 0:
        raise ValueError(f"{op}: num_tokens and num_prefix must be at least 0, got {num_tokens} and {num_prefix}")
    known = {"N": num_tokens, "R": num_prefix}
    of_mask = "1 1 D" if mask_token.ndim == 3 else "D"
    dims = check.shapes(
        op, known, keep=(keep, "B K"), visible=(visible, "B R+K D"), mask_token=(mask_token, of_mask), pos=(pos, "N D")
    )
    if dims["K"] > num_tokens:
        raise ValueError(f"{op}: keep must hold at most N={num_tokens} ids per image, got K={dims['K']}")
    floats = {name: (x, check.FLOATS) for name, x in (("visible", visible), ("mask_token", mask_token), ("pos", pos))}
    check.dtypes(op, keep=(keep, torch.int64), **floats)
    check.same_device(op, visible=visible, keep=keep, mask_token=mask_token, pos=pos)


@torch.library.register_fake("bimkern::restore_tokens", lib=_backend.schemas)
def _(
    visible: Tensor, keep: Tensor, mask_token: Tensor, pos: Tensor | None, num_tokens: int, num_prefix: int
) -> Tensor:
    return visible.new_empty(visible.shape[0], num_prefix + num_tokens, visible.shape[2])


@torch.library.register_fake("bimkern::restore_tokens_bwd", lib=_backend.schemas)
def _(grad: Tensor, keep: Tensor, num_prefix: int, with_pos: bool) -> tuple[Tensor, Tensor, Tensor]:
    width = grad.shape[2]
    return (
        grad.new_empty(grad.shape[0], num_prefix + keep.shape[1], width),
        grad.new_empty(width),
        grad.new_empty(grad.shape[1] - num_prefix if with_pos else 0, width),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _visible, keep, _mask_token, _pos, _num_tokens, num_prefix = inputs
    ctx.save_for_backward(keep)
    ctx.num_prefix = num_prefix


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (keep,) = ctx.saved_tensors
    with_pos = ctx.needs_input_grad[3]
    # One op for all three: they are sums over, and a selection of, the same rows, which are read once.
    visible, mask_token, pos = _backend.run("restore_tokens_bwd", grad, keep, ctx.num_prefix, with_pos)
    return visible, None, mask_token, pos if with_pos else None, None, None


_backend.register_autograd("restore_tokens", _backward, setup_context=_save)


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, keep, ctx.num_prefix, ctx.with_pos = inputs
    ctx.save_for_backward(keep)
    ctx.num_tokens = grad.shape[1] - ctx.num_prefix


def _backward_bwd(ctx: Any, visible: Tensor, mask_token: Tensor, pos: Tensor) -> tuple[Tensor | None, ...]:
    (keep,) = ctx.saved_tensors
    # The transpose of a linear op's transpose: the op itself.
    args = (visible, keep, mask_token, pos if ctx.with_pos else None, ctx.num_tokens, ctx.num_prefix)
    return _backend.run("restore_tokens", *args), None, None, None


_backend.register_autograd("restore_tokens_bwd", _backward_bwd, setup_context=_save_bwd)

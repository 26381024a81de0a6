"""restore_tokens: the decoder's input, every token back in its place and the mask token elsewhere.

Shapes: B images, N tokens, K kept tokens, R prefix tokens, D channels.
"""

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.declare("restore_tokens")


def restore_tokens_reference(
    visible: Tensor, keep: Tensor, mask_token: Tensor, pos: Tensor | None, num_tokens: int, num_prefix: int
) -> Tensor:
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
    """Put visible tokens back in their places, the mask token everywhere else, and add positions.

    Args:
        visible: [B, R+K, D], floating; prefix tokens first, they get no position.
        keep: [B, K], int64 in [0, N), no repeats within a row; the values are not checked.
        mask_token: [D], dtype of visible.
        pos: [N, D], dtype of visible, or None.
        num_tokens: N.
        num_prefix: R.

    Returns:
        [B, R+N, D], dtype of visible. Differentiable in visible, mask_token and pos.

    Raises:
        ValueError, TypeError: a shape, count, device or dtype is off; the message names it.

    Same as: restore_tokens_reference.
    Source: He et al. 2022 (MAE), section 3 "MAE decoder"; appended mask tokens, un-shuffled.
    """
    op = "restore_tokens"
    if num_prefix < 0 or num_tokens < 0:
        raise ValueError(f"{op}: num_tokens and num_prefix must be at least 0, got {num_tokens} and {num_prefix}")
    known = {"N": num_tokens, "R": num_prefix}
    dims = check.shapes(
        op, known, keep=(keep, "B K"), visible=(visible, "B R+K D"), mask_token=(mask_token, "D"), pos=(pos, "N D")
    )
    if dims["K"] > num_tokens:
        raise ValueError(f"{op}: keep must hold at most N={num_tokens} tokens, got K={dims['K']}")
    dtype = visible.dtype
    check.dtypes(
        op, visible=(visible, check.FLOATS), keep=(keep, torch.int64), mask_token=(mask_token, dtype), pos=(pos, dtype)
    )
    check.same_device(op, visible=visible, keep=keep, mask_token=mask_token, pos=pos)
    return _backend.call(op, restore_tokens_reference, visible, keep, mask_token, pos, num_tokens, num_prefix)

"""keep_to_mask: 1 where a token is masked.

Shapes: B images, N tokens, K kept tokens.
"""

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check

_backend.schemas.define("keep_to_mask(Tensor keep, int num_tokens) -> Tensor")
_backend.declare("keep_to_mask", kernels={"cpu": "native", "cuda": "native"})


def keep_to_mask_reference(keep: Tensor, num_tokens: int) -> Tensor:
    mask = torch.ones(len(keep), num_tokens, device=keep.device)
    return mask.scatter(1, keep, 0.0)


def keep_to_mask(keep: Tensor, num_tokens: int) -> Tensor:
    """Turn kept token ids into a mask of masked tokens.

    Args:
        keep: [B, K], int64 ids in [0, N), in any order, none twice in an image; 0 <= K <= N. On a CPU the values are
            checked; on a GPU with BIMKERN_DEBUG=1. Otherwise a repeated id counts once there, and one out of range
            makes NaN of its image, without a wait; the reference, plain torch, asserts on the device.
        num_tokens: N.

    Returns:
        [B, N], float32: 1 where masked, 0 where kept.

    Raises:
        ValueError, TypeError: a shape or dtype is off; the message names it.
        RuntimeError: an id is out of range or repeated (on a CPU, or with BIMKERN_DEBUG=1).

    Same as: keep_to_mask_reference.
    Source: He et al. 2022 (MAE), section 3 "reconstruction target": the loss is on masked patches only.
    """
    check.once(_check, (keep,), num_tokens)
    return _backend.call("keep_to_mask", keep_to_mask_reference, keep, num_tokens, ids=("keep", keep, num_tokens))


def _check(keep: Tensor, num_tokens: int) -> None:
    dims = check.shapes("keep_to_mask", keep=(keep, "B K"))
    if dims["K"] > num_tokens:
        raise ValueError(f"keep_to_mask: keep must hold at most N={num_tokens} ids per image, got K={dims['K']}")
    check.dtypes("keep_to_mask", keep=(keep, torch.int64))


@torch.library.register_fake("bimkern::keep_to_mask", lib=_backend.schemas)
def _(keep: Tensor, num_tokens: int) -> Tensor:
    return keep.new_empty(keep.shape[0], num_tokens, dtype=torch.float32)

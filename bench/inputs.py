"""Random inputs of the ops, made from a case's shape, the same for every entry.

Shapes: B images, N patches, K kept patches, D width, R prefix tokens.
"""

import torch
from torch import Tensor

from bench.entry import Case
from bimkern.ops import keep_to_mask, random_keep


def floats(case: Case, *dims: str | int, grad: bool = True) -> Tensor:
    """Make normal numbers of the case's dtype; a letter stands for its size."""
    shape = [case.dims[d] if isinstance(d, str) else d for d in dims]
    return torch.randn(shape, device=case.device, dtype=case.torch_dtype, requires_grad=grad)


def sample_ids(case: Case) -> Tensor:
    """Number the images, [B] int64."""
    return torch.arange(case.dims["B"], device=case.device)


def keep(case: Case) -> Tensor:
    """Draw kept patches, [B, K] int64, ascending."""
    return random_keep(sample_ids(case), case.dims["N"], case.dims["K"], seed=0)


def ids_restore(keep: Tensor, num_tokens: int) -> Tensor:
    """Return the position of every patch among [kept..., masked...], [B, N]: how MIM programs remember a mask."""
    return keep_to_mask(keep, num_tokens).argsort(dim=1, stable=True).argsort(dim=1)

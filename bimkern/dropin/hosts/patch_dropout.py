"""PatchDropout of timm and open_clip: a random part of the tokens is dropped in training.

Shapes: B images, R prefix tokens, N tokens, K kept, D width.
Source: Liu et al. 2022 (PatchDropout); Li et al. 2023 (FLIP).
"""

from typing import Any

import torch
from torch import Tensor

from bimkern.dropin import layers
from bimkern.dropin.structure import Host, Part, Trial
from bimkern.ops import _check as check


def _keep(self: Any, x: Tensor, num_prefix: int) -> Tensor:
    """Draw as timm does."""
    B, N = x.shape[0], x.shape[1] - num_prefix
    num_kept = max(1, int(N * (1.0 - self.prob)))
    order = self._bimkern_order(
        lambda: torch.argsort(torch.randn(B, N, device=x.device), dim=-1), B, N, num_kept, x.device
    )
    keep = order[:, :num_kept]
    return keep.sort(dim=-1)[0] if self.ordered else keep


def _suits(x: Tensor) -> bool:
    """Return whether our op takes tokens; the host takes others, or says what is wrong with them."""
    return x.ndim == 3 and x.dtype in check.FLOATS


def forward(self: Any, x: Tensor) -> Tensor:
    """Drop tokens of x [B, R+N, D] in training: [B, R+K, D]."""
    if not _suits(x):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    return forward_with_indices(self, x)[0]


def forward_with_indices(self: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drop tokens of x [B, R+N, D] in training: [B, R+K, D] and keep [B, K]; else all of it and None."""
    if not _suits(x):
        host: tuple[Tensor, Tensor | None] = self._bimkern_host.forward(self, x)
        return host
    if not self.training or self.prob == 0.0:
        return x, None
    keep = _keep(self, x, self.num_prefix_tokens)
    return layers.gather(x, keep, num_prefix=self.num_prefix_tokens), keep


def forward_of_open_clip(self: Any, x: Tensor) -> Tensor:
    """Drop tokens of x [B, R+N, D] in training, where R is 1 or 0: [B, R+K, D]."""
    if not _suits(x):
        host: Tensor = self._bimkern_host.forward(self, x)
        return host
    if not self.training or self.prob == 0.0:
        return x
    R = int(self.exclude_first_token)
    B, N = x.shape[0], x.shape[1] - R
    num_kept = max(1, int(N * (1 - self.prob)))
    drawn = self._bimkern_order(lambda: torch.randn(B, N).topk(num_kept, dim=-1).indices, B, N, num_kept, x.device)
    keep = drawn[:, :num_kept].to(x.device, non_blocking=True)
    return layers.gather(x, keep, num_prefix=R)


def _try(module: Any) -> Trial:
    return Trial(args=(torch.randn(2, 13, 8, device="cpu").requires_grad_(),))


TIMM = Host(
    name="timm PatchDropout",
    package="timm",
    tested=("1.0.30", "1.0.31"),
    attributes=("prob", "num_prefix_tokens", "ordered"),
    parts=(
        Part(what="gathering of kept tokens", method="forward", ours=forward, trial=_try, reads_training=True),
        Part(
            what="gathering of kept tokens",
            method="forward",
            ours=forward_with_indices,
            trial=_try,
            reads_training=True,
        ),
    ),
)
OPEN_CLIP = Host(
    name="open_clip PatchDropout",
    package="open_clip_torch",
    tested=("3.2.0", "3.3.0"),
    attributes=("prob", "exclude_first_token"),
    parts=(
        Part(
            what="gathering of kept tokens",
            method="forward",
            ours=forward_of_open_clip,
            trial=_try,
            reads_training=True,
        ),
    ),
)

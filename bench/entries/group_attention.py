"""group_attention against attention within padded groups, under a mask.

Shapes: B images, N mask units of which K are visible, T visible tokens, H heads of d channels, G groups of g members, w
tokens a side of a window, u a side of a mask unit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import shapes
from bench.entry import Case, Measure, entry
from bench.refcheck import equal_up_to_rounding, tensors
from bimkern.ops import WindowGroups, group_attention, group_windows, keep_to_mask, random_keep, scale_mask
from bimkern.ops.group_attention import group_attention_reference


def visible_tokens(case: Case) -> tuple[Tensor, int]:
    """Draw visible units, the same of all images; return their tokens [1, T], ascending, and the side of the grid."""
    N, K, u = (case.dims[letter] for letter in "NKu")
    units = 1 - keep_to_mask(random_keep(torch.arange(1), N, K, seed=0), N)
    tokens = scale_mask(units, u).nonzero()[:, 1]
    return tokens[None], round(N**0.5) * u


class Groups:
    """What plain torch needs to know of a plan that all images share, prepared once."""

    def __init__(self, groups: WindowGroups, table_length: int) -> None:
        members = groups.members[0].long()  # [G, g]
        real = members >= 0
        self.ids = members.clamp(min=0).flatten()
        self.size = members.shape
        window = torch.where(real, groups.windows[0][members], -1)
        position = groups.positions[0][members]
        self.together = (window[:, :, None] == window[:, None])[:, None]  # [G, 1, g, g]
        self.index = torch.where(self.together[:, 0], position[:, :, None] - position[:, None], 0) + table_length // 2
        self.slots = members.flatten().argsort()[-groups.windows.shape[1] :]

    def bias(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the float mask [G, H, g, g]."""
        bias = table[self.index.flatten()].view(*self.index.shape, -1).movedim(-1, 1)
        return bias.masked_fill(~self.together, -torch.inf).to(dtype)

    def split(self, qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        """Return queries, keys and values, [B, G, H, g, d] each."""
        grouped = qkv[:, self.ids].view(len(qkv), *self.size, 3, num_heads, -1)
        return grouped.permute(3, 0, 1, 4, 2, 5).unbind(0)

    def merge(self, out: Tensor) -> Tensor:
        """Return tokens [B, T, H*d] of [B, G, H, g, d]."""
        return out.transpose(2, 3).flatten(3).flatten(1, 2)[:, self.slots]

    def sdpa(self, qkv: Tensor, table: Tensor, num_heads: int) -> Tensor:
        """Gather, torch's attention with a float mask, scatter: the best form in plain torch."""
        q, k, v = (x.flatten(0, 1) for x in self.split(qkv, num_heads))
        mask = self.bias(table, qkv.dtype).expand(len(qkv), -1, -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.flatten(0, 1))
        return self.merge(out.unflatten(0, (len(qkv), -1)))

    def products(self, qkv: Tensor, table: Tensor, num_heads: int) -> Tensor:
        """The same in products and a softmax, as Swin writes it."""
        q, k, v = self.split(qkv, num_heads)
        logits = q * q.shape[-1] ** -0.5 @ k.mT + self.bias(table, qkv.dtype)
        return self.merge(logits.softmax(dim=-1) @ v)


@entry("group_attention", shapes=shapes.ATTENTION)
def measure(case: Case) -> Measure:
    """Attention within windows of visible tokens, with relative position bias, where all images share a mask."""
    B, H, d, w = (case.dims[letter] for letter in "BHdw")
    keep, side = visible_tokens(case)
    groups = group_windows(keep, (side, side), w, case.dims["shift"]).to(case.device)
    T, window = keep.shape[1], min(w, side)
    qkv = torch.randn(B, T, 3 * H * d, device=case.device, dtype=case.torch_dtype, requires_grad=True)
    table = torch.randn((2 * window - 1) ** 2, H, device=case.device, requires_grad=True)
    plain = Groups(groups, len(table))
    compiled = case.compiled(plain.products)
    plan = groups.members, groups.windows, groups.positions
    # Queries, keys and values in, their mixtures out; back: all of these again, and gradients of the former out.
    moved = 4 * B * T * H * d * case.itemsize
    counts = groups.windows.flatten().unique(return_counts=True)[1]

    def check(provider: str, got: Any, expected: Any) -> None:
        """Hold the gradient of the table, too, to the dtype of the tokens: plain forms take the bias in that dtype."""
        in_dtype = ([x.to(case.torch_dtype) for x in tensors(output)] for output in (got, expected))
        equal_up_to_rounding(provider, *in_dtype)

    product = 2 * B * int(counts.square().sum()) * H * d  # what tokens of a window cost, without padding
    return Measure(
        ours=lambda: group_attention(qkv, table, groups, H),
        rivals={
            "sdpa": lambda: plain.sdpa(qkv, table, H),
            "products": lambda: plain.products(qkv, table, H),
            "compile": lambda: compiled(qkv, table, H),
        },
        reference=lambda: group_attention_reference(qkv, table, *plan, H, d**-0.5),
        check=check,
        leaves=[qkv, table],
        bytes=moved if case.pass_name == "fwd" else moved + 7 * moved // 4,
        matrix_flops=(2 if case.pass_name == "fwd" else 7) * product,
    )

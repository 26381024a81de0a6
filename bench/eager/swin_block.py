"""A Swin block on visible tokens as GreenMIM's program runs it; parameter names are those of timm's Swin.

Windows are grouped in Python at every forward. Tokens are gathered into padded groups before the first linear layer,
and every group attends to all of itself, with -100 where the windows differ.

Shapes: B images, T visible tokens, C width, H heads, G groups, g slots of a group.

Source: Huang et al. 2022 (GreenMIM), section 3.2, and its published program.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.eager.network import Mlp
from bimkern.ops.group_windows import pack

APART = -100.0  # added to logits of tokens in different windows


@dataclass(frozen=True)
class Grouping:
    slots: Tensor  # [G, g], the token of every slot, token 0 in padded ones
    restore: Tensor  # [T], the slot of every token
    mask: Tensor  # [G, 1, g, g], 0 within a window, else APART
    bias_index: Tensor  # [G, g, g], rows of the relative position table, 0 where they have no meaning
    has_bias: Tensor  # [G, 1, g, g], 0 or 1


def group(keep: Tensor, grid: tuple[int, int], window: int, shift: int) -> Grouping:
    """Group the visible tokens keep [T] of one mask, on its device; up to two windows of them are one group."""
    sides = [(window, shift) if window < side else (side, 0) for side in grid]
    coordinates = torch.stack([keep // grid[1], keep % grid[1]], dim=1)  # [T, 2]
    row, column = ((coordinates[:, axis] + (side - shift) % side) // side for axis, (side, shift) in enumerate(sides))
    windows = row * grid[1] + column  # [T]
    (height, _), (width, _) = sides
    if len(keep) <= 2 * height * width:
        slots = torch.arange(len(keep), device=keep.device)[None]
    else:
        slots = _pack_windows(windows, height * width)
    present = slots >= 0
    restore = slots.flatten().argsort()[-len(keep) :]
    slots = slots.clamp(min=0)
    ids = torch.where(present, windows[slots], -1)
    same = (ids[:, :, None] == ids[:, None]) & present[:, :, None]  # [G, g, g]
    mask = torch.zeros(same.shape, device=keep.device).masked_fill(~same, APART)
    distance = coordinates[slots][:, :, None] - coordinates[slots][:, None]  # [G, g, g, 2]
    index = (distance[..., 0] + height - 1) * (2 * width - 1) + distance[..., 1] + width - 1
    return Grouping(slots, restore, mask[:, None], index * same, same[:, None].float())


def _pack_windows(windows: Tensor, window_area: int) -> Tensor:
    """Return the token of every slot, [G, g], -1 in padded ones."""
    counts = windows.unique(return_counts=True)[1].tolist()  # waits for a GPU
    tokens = windows.argsort().split(counts)
    size = min(window_area, max(counts))
    groups = [torch.cat([tokens[i] for i in chosen]) for chosen in pack(counts, size)]
    return torch.stack([F.pad(group, (0, size - len(group)), value=-1) for group in groups])


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        table = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table, num_heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, grouping: Grouping) -> Tensor:
        """Attend within groups, x [B * G, g, C]."""
        G, (_, g, C) = len(grouping.slots), x.shape
        q, k, v = self.qkv(x).reshape(-1, g, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.scale) @ k.transpose(-2, -1)  # [B * G, H, g, g]
        bias = self.relative_position_bias_table[grouping.bias_index.flatten()].view(G, g, g, -1).permute(0, 3, 1, 2)
        logits = logits.view(-1, G, self.num_heads, g, g) + (bias * grouping.has_bias + grouping.mask)
        x = logits.flatten(0, 1).softmax(dim=-1).to(v.dtype) @ v  # [B * G, H, g, d]
        return self.proj(x.transpose(1, 2).reshape(-1, g, C))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, window: tuple[int, int], mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, grouping: Grouping) -> Tensor:
        """Run on visible tokens, x [B, T, C]."""
        B, _, C = x.shape
        grouped = self.norm1(x)[:, grouping.slots]  # [B, G, g, C]
        attended = self.attn(grouped.flatten(0, 1), grouping).view(B, -1, C)
        x = x + attended[:, grouping.restore]
        return x + self.mlp(self.norm2(x))

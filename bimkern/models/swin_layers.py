"""The modules of a Swin, with timm's parameter names.

Shapes: B images, T tokens, D width, H heads, S masks of the plan (1 or B).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimkern.models.attention_maps import AttentionMaps, window_maps
from bimkern.models.drop_path import DropPath
from bimkern.models.encoder import Grid
from bimkern.models.layers import LayerNorm, Linear, Mlp, PatchEmbed
from bimkern.ops import WindowGroups, gather_tokens, group_attention

NORM_EPS = 1e-5
INIT_STD = 0.02
BIASES = "relative_position_bias_table"  # the name of such a table in its WindowAttention


class NormedPatchEmbed(nn.Module):
    """A patch embedding and a norm behind it."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = PatchEmbed(channels, width, patch)
        self.norm = LayerNorm(width, NORM_EPS)

    def forward(self, images: Tensor, keep: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        return self.norm(self.proj(images, keep, mean=mean, std=std))


class WindowAttention(nn.Module):
    """Attention within windows, with a bias for each relative position.

    Source: Liu et al. 2021 (Swin Transformer), section 3.2.
    """

    def __init__(self, width: int, num_heads: int, window: Grid) -> None:
        """Build it with a table of biases for windows of some rows and columns."""
        super().__init__()
        self.num_heads, self.window = num_heads, window
        rows, columns = (2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows * columns, num_heads))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)

    def fit(self, table: Tensor, window: Grid | None = None) -> tuple[Tensor, Grid]:
        """Resize a table of biases [(2 * side - 1) ** 2, H] to the window here; return it, and the window that it had.

        Args:
            table: the biases.
            window: that it is said to have; without it, or where it has another number of biases, a square is assumed,
                and else the window here.

        Raises:
            ValueError: it is of another number of heads, or of no such window.
        """
        rows, heads = table.shape if table.dim() == 2 else (0, 0)
        side = (math.isqrt(rows) + 1) // 2
        likely = [*([] if window is None else [window]), (side, side), self.window]
        found = [own for own in likely if (2 * own[0] - 1) * (2 * own[1] - 1) == rows]
        if heads != self.num_heads or not found:
            raise ValueError(f"biases must be [(2 * side - 1) ** 2, {self.num_heads}], got {list(table.shape)}")
        return resized_table(table, found[0], self.window), found[0]

    def forward(self, x: Tensor, groups: WindowGroups, window: Grid) -> Tensor:
        return self.proj(group_attention(self.qkv(x), self._table(window), groups, self.num_heads))

    def attention_maps(self, x: Tensor, groups: WindowGroups, window: Grid) -> list[AttentionMaps]:
        """Return the weights by which forward averages values, for analysis of whole images."""
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # [B, T, H, E]
        return window_maps(q, k, self._table(window), groups)

    def _table(self, window: Grid) -> Tensor:
        return resized_table(self.relative_position_bias_table, self.window, window)


class SwinLayer(nn.Module):
    """A pre-norm transformer layer with attention in windows: a Swin block."""

    def __init__(self, width: int, num_heads: int, window: Grid, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, NORM_EPS)
        self.attn = WindowAttention(width, num_heads, window)
        self.drop_path1 = DropPath()
        self.norm2 = LayerNorm(width, NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path2 = DropPath()

    def forward(self, x: Tensor, groups: WindowGroups, window: Grid) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), groups, window))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens into one of twice the width.

    Source: Liu et al. 2021 (Swin Transformer), section 3.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width, NORM_EPS)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, merge: Tensor) -> Tensor:
        """Merge tokens [B, T, D], listed by fours in merge [S, T]: [B, T / 4, 2 * D], the next residual stream."""
        B, T, D = x.shape
        fours = gather_tokens(x, merge.expand(B, -1)).view(B, T // 4, 4 * D)
        return self.reduction(self.norm(fours)).to(x.dtype)


class SwinStage(nn.Module):
    """The layers of one level, behind the merging that leads to it."""

    def __init__(self, width: int, depth: int, num_heads: int, window: Grid, mlp_ratio: float, *, merges: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(width // 2) if merges else nn.Identity()
        self.blocks = nn.ModuleList(SwinLayer(width, num_heads, window, mlp_ratio) for _ in range(depth))

    @property
    def called(self) -> tuple[nn.Module, ...]:
        """The merging and the layers: the stage itself is not called."""
        return self.downsample, *self.blocks

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the merging and the layers, each on its own, as they are called."""
        for module in self.called:
            module.compile(*args, **options)


def init_swin(module: nn.Module) -> None:
    """Initialize linear layers as the program of Swin does: truncated normal weights, zero biases."""
    if isinstance(module, Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resized_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize a table of relative position biases [(2 * rows - 1) * (2 * columns - 1), H] bicubically to other windows.

    Source: Guo et al. 2022 (FastMIM), section 3, for images that grow.
    """
    if old == new:
        return table
    # As two matrix products: the gradient of torch's interpolation has no fixed order of additions on a GPU.
    rows, columns = (_bicubic(2 * a - 1, 2 * b - 1, table) for a, b in zip(old, new, strict=True))
    biases = table.unflatten(0, (2 * old[0] - 1, -1))
    return torch.einsum("ar,bc,rch->abh", rows, columns, biases).flatten(0, 1)


def _bicubic(old: int, new: int, like: Tensor) -> Tensor:
    """Return the matrix [new, old] of bicubic interpolation, on the device and in the dtype of a tensor."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None, None], (new, old), mode="bicubic", align_corners=False)[0, 0]

"""GreenMIM's sparse Swin as its program runs it; parameter names are those of bimkern.models.swin.

All patches are embedded, and then the visible ones are taken. Windows are grouped, and the squares that are merged are
sorted, in Python at every forward.

Shapes: B images, C channels, H W pixels, T visible tokens, D width.

Source: Huang et al. 2022 (GreenMIM), section 3, and its published program.
"""

from torch import Tensor, nn

from bench.eager.swin_block import Block, group
from bimkern.models.encoder import Grid
from bimkern.models.swin import SwinConfig


class PatchEmbed(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class PatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, keep: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Merge visible tokens x [B, T, D]; return them with keep [T / 4] of the coarser grid."""
        row, column = keep // grid[1], keep % grid[1]
        square = row // 2 * (grid[1] // 2) + column // 2
        order = (square * 4 + column % 2 * 2 + row % 2).argsort()
        fours = x[:, order].unflatten(1, (-1, 4)).flatten(2)
        return self.reduction(self.norm(fours)), square[order[::4]]


class Stage(nn.Module):
    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        width, window = config.width * 2**stage, config.table_window(stage)
        self.window = config.window
        self.downsample = PatchMerging(width // 2) if stage else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads[stage], window, config.mlp_ratio) for _ in range(config.depths[stage])
        )

    def forward(self, x: Tensor, keep: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Grid]:
        """Run on visible tokens x [B, T, D], at keep [T] of a grid; return them with what they are at."""
        if isinstance(self.downsample, PatchMerging):
            x, keep = self.downsample(x, keep, grid)
            grid = grid[0] // 2, grid[1] // 2
        groupings = [group(keep, grid, self.window, 0)]
        if self.window < max(grid):
            groupings.append(group(keep, grid, self.window, self.window // 2))
        for i, block in enumerate(self.blocks):
            x = block(x, groupings[i % len(groupings)])
        return x, keep, grid


class SwinEncoder(nn.Module):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.grid = config.level(0).grid(*config.image_size)
        self.patch_embed = PatchEmbed(config)
        self.layers = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Run on normalized images [B, C, H, W]; visible [rows, columns] of the last level's grid is True or False."""
        grid = self.grid
        unit = grid[0] // visible.shape[0]
        patches = visible.repeat_interleave(unit, dim=0).repeat_interleave(unit, dim=1).flatten()
        keep = patches.nonzero()[:, 0]
        x = self.patch_embed(images)[:, keep]
        for stage in self.layers:
            x, keep, grid = stage(x, keep, grid)
        return x

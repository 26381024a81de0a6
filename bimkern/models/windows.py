"""Which tokens of a sparse Swin share a window, and which are merged: planned once for a mask, on the host.

Shapes: S masks, one for all images of a batch or one for each; T tokens of a level, in raster order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bimkern.models.encoder import Grid
from bimkern.ops import WindowGroups, group_windows


@dataclass(frozen=True)
class LevelPlan:
    """The tokens between two mergings."""

    window: Grid  # rows and columns; on a side that is not longer, the side itself
    plain: WindowGroups
    shifted: WindowGroups
    merge: Tensor | None  # [S, T], the four tokens of each merged one in Swin's order; None: they are not merged

    def groups(self, layer: int) -> WindowGroups:
        """Return the windows of a layer of the level, counted from 0."""
        return self.shifted if layer % 2 else self.plain

    def map(self, change: Callable[[Tensor], Tensor]) -> "LevelPlan":
        plain = _map(self.plain, change)
        shifted = plain if self.shifted is self.plain else _map(self.shifted, change)
        return LevelPlan(self.window, plain, shifted, None if self.merge is None else change(self.merge))


@dataclass(frozen=True)
class SwinPlan:
    levels: tuple[LevelPlan, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "SwinPlan":
        return SwinPlan(tuple(level.map(change) for level in self.levels))


def plan_windows(keep: Tensor, grid: Grid, windows: Sequence[int]) -> SwinPlan:
    """Plan the levels of a Swin, each on a grid of half as many rows and columns as the one before.

    Args:
        keep: [S, T], int64 on the CPU, ascending, of whole 2 x 2 squares at every level but the last.
        grid: rows and columns of the first level.
        windows: rows and columns of a window, of every level; every other layer is shifted by half of it.

    Raises:
        ValueError: a level has an odd number of rows or columns, and cannot be merged.
    """
    levels = []
    for level, window in enumerate(windows):
        plain = group_windows(keep, grid, window)
        shifts = window < max(grid) and window > 1
        shifted = group_windows(keep, grid, window, window // 2) if shifts else plain
        merge = None
        if level + 1 < len(windows):
            if grid[0] % 2 or grid[1] % 2:
                raise ValueError(
                    f"Swin: the grid of level {level} must have even rows and columns to be merged, got {grid}"
                )
            merged = coarsened(keep, grid, (grid[0] // 2, grid[1] // 2))
            merge = torch.searchsorted(keep, _children(merged, grid))
        levels.append(LevelPlan((min(window, grid[0]), min(window, grid[1])), plain, shifted, merge))
        if merge is not None:
            keep, grid = merged, (grid[0] // 2, grid[1] // 2)
    return SwinPlan(tuple(levels))


def coarsened(keep: Tensor, grid: Grid, coarse: Grid) -> Tensor:
    """Return the tokens of a coarser grid that stand for the tokens keep [S, T] of whole squares, ascending."""
    sides = grid[0] // coarse[0], grid[1] // coarse[1]
    rows, columns = keep // grid[1] // sides[0], keep % grid[1] // sides[1]
    # Each of them is found once for every token that it stands for.
    return (rows * coarse[1] + columns).sort(dim=1).values[:, :: sides[0] * sides[1]].contiguous()


def _children(merged: Tensor, grid: Grid) -> Tensor:
    """Return the four tokens of a grid that each merged token stands for, [S, T], in Swin's order.

    Column by column, as in the program of Liu et al. 2021 (Swin): (0, 0), (1, 0), (0, 1), (1, 1). LocalMIM's published
    program goes row by row, so that its weights are permuted when they are fine-tuned.
    """
    columns = grid[1] // 2
    first = merged // columns * 2 * grid[1] + merged % columns * 2
    return (first[..., None] + first.new_tensor((0, grid[1], 1, grid[1] + 1))).flatten(1)


def _map(groups: WindowGroups, change: Callable[[Tensor], Tensor]) -> WindowGroups:
    return WindowGroups(*map(change, (groups.members, groups.windows, groups.positions)))

"""Position tables that are not trained: the sin-cos one of the MAE family, and stored ones."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimkern.models.encoder import Grid


class _Positions(nn.Module, ABC):
    """The table of each grid that images have, built once; nothing of it is trained or saved."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}

    def forward(self, grid: Grid, like: Tensor) -> Tensor:
        """Return the table of a grid, [N, width], on the device and in the dtype of a tensor."""
        key = (grid, like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = self.build(grid).to(like)
        return self._tables[key]

    @abstractmethod
    def build(self, grid: Grid) -> Tensor:
        """Build the table of a grid, [N, width]."""


class SinCosPositions(_Positions):
    """Tables of sincos_table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def build(self, grid: Grid) -> Tensor:
        return sincos_table(self.width, grid)


class StoredPositions(_Positions):
    """A table that comes with the weights, resized bicubically for other grids than its own."""

    def __init__(self, table: Tensor, grid: Grid) -> None:
        """Take the table [N, width] of a grid."""
        super().__init__()
        self._table, self._grid = table, grid

    def build(self, grid: Grid) -> Tensor:
        if grid == self._grid:
            return self._table
        own = self._table.T.reshape(1, -1, *self._grid)
        return F.interpolate(own, grid, mode="bicubic", align_corners=False).flatten(2)[0].T.contiguous()


def sincos_table(width: int, grid: Grid) -> Tensor:
    """Build the 2-D sine-cosine position table of a patch grid.

    The first half of the channels encodes the column, the second half the row; each half is [sin | cos], concatenated.

    Args:
        width: D, a multiple of 4.
        grid: (rows, columns) of patches; need not be square.

    Returns:
        [rows * columns, D], float32, raster order. Prefix tokens have no row here: their position is zero.

    Raises:
        ValueError: width is not a multiple of 4.

    Source: He et al. 2022 (MAE), appendix A.1; the order of the halves is that of the published checkpoints.
    """
    if width % 4:
        raise ValueError(f"sincos_table: width must be a multiple of 4, got {width}")
    rows, columns = grid
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(positions: Tensor) -> Tensor:
        angles = positions.double().outer(frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column = encode(torch.arange(columns)).repeat(rows, 1)
    row = encode(torch.arange(rows)).repeat_interleave(columns, dim=0)
    return torch.cat([column, row], dim=1).float()


def with_prefix(table: Tensor) -> Tensor:
    """Return a table [N, D] as other programs store it, [1, 1+N, D]; the row of cls is zero."""
    return torch.cat([torch.zeros_like(table[:1]), table]).unsqueeze(0)

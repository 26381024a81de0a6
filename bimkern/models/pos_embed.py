"""Position tables: the sin-cos one of the MAE family, stored ones, and those that fine-tuning trains."""

import math
import weakref
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimkern.models.encoder import Grid

WIDTH_UNIT = 4  # of a sin-cos table: sine and cosine of row and column
_SAME = 1e-5  # of values in [-1, 1]: published tables are computed in float32


class _Positions(nn.Module, ABC):
    """The table of each grid that images have, built once."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}

    def forward(self, grid: Grid, like: Tensor) -> Tensor:
        """Return the table of a grid, [N, width], on the device and in the dtype of a tensor."""
        key = (grid, like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = self.build(grid).to(like)
        return self._tables[key]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_tables": {}}  # loaded, they may lie on another device than that of their keys

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


class Positions(_Positions):
    """Tables of sincos_table, until load_state_dict brings one: that is kept, and resized bicubically for other grids.

    The table [1, R+N, D] of R prefix tokens and N patches is stored as other programs do. It is a buffer: it is saved
    with the weights, and not trained unless train_table() makes it a parameter.
    """

    table: Tensor | None
    _resized: weakref.ref[Tensor] | None = None  # the table that those of other grids were made of

    def __init__(self, width: int, grid: Grid, num_prefix: int) -> None:
        """Take the grid of a stored table."""
        super().__init__()
        self.grid, self._num_prefix, self._width = grid, num_prefix, width
        self.register_buffer("table", None)

    def expect_table(self, like: Tensor) -> None:
        """Make room for a table, on the device and in the dtype of a tensor; load_state_dict then requires one."""
        if self.table is None:
            self.table = like.new_empty(1, self._num_prefix + self.grid[0] * self.grid[1], self._width)
        self._tables.clear()

    def train_table(self, like: Tensor) -> None:
        """Make the table a parameter that begins with its values now, of the device and dtype of a tensor.

        It is frozen if the tensor is.

        Source: He et al. 2022 (MAE), fine-tuning program: timm's ViT, whose positions are trained.
        """
        table = (self.computed(self.grid) if self.table is None else self.table).to(like).clone()
        self.table = nn.Parameter(table, requires_grad=like.requires_grad)
        self._tables.clear()

    def forward(self, grid: Grid, like: Tensor) -> Tensor:
        """Return the table of a grid, [N, width]; one that is trained is read each time."""
        if "table" in self._parameters:
            return self.build(grid)
        if not self._is_current():  # torch.func.functional_call brings others
            self._tables.clear()
            self._resized = None if self.table is None else weakref.ref(self.table)
        return super().forward(grid, like)

    def _is_current(self) -> bool:
        if self._resized is None:
            return self.table is None
        return self.table is not None and self._resized() is self.table

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_resized": None}

    @property
    def prefix(self) -> Tensor | None:
        """The positions of the prefix tokens, [R, D]; None where they have none."""
        return None if self.table is None else self.table[0, : self._num_prefix]

    def build(self, grid: Grid) -> Tensor:
        if self.table is None:
            return sincos_table(self._width, grid)
        return resized(self.table[:, self._num_prefix :], self.grid, grid)[0]

    def fit(self, table: Tensor, grid: Grid | None = None) -> tuple[Tensor | None, Grid]:
        """Resize a table to the grid here; prefix tokens keep their positions, or get zeros if the table has none.

        Args:
            table: [1, R+N, D] or [1, N, D].
            grid: that it is said to have; without it, or where it has another number of patches, a square is assumed,
                and else the grid here.

        Returns:
            The table, [1, R+N', D], or None where it is the one that is computed without; and the grid that it had.

        Raises:
            ValueError: it has another width, or is of no such grid.
        """
        rows = table.shape[1] if table.dim() == 3 else 0
        prefixes = (self._num_prefix, 0)
        squares = [(math.isqrt(max(0, rows - prefix)),) * 2 for prefix in prefixes]
        likely = [*([] if grid is None else [grid]), *squares, self.grid]
        found = [(prefix, own) for own in likely for prefix in prefixes if 0 < own[0] * own[1] == rows - prefix]
        if not found or table.shape[2] != self._width:
            expected = "a square" if self.grid[0] == self.grid[1] else f"a square or {self.grid[0]} x {self.grid[1]}"
            raise ValueError(
                f"positions must be [1, {self._num_prefix} + {expected}, {self._width}], got {list(table.shape)}"
            )
        num_prefix, own = found[0]
        prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
        if not num_prefix:
            prefix = table.new_zeros(1, self._num_prefix, self._width)
        fitted = torch.cat([prefix, resized(patches.float(), own, self.grid).to(table.dtype)], dim=1)
        same = torch.allclose(fitted.float(), self.computed(self.grid), rtol=0, atol=_SAME)
        return None if same else fitted, own

    def computed(self, grid: Grid) -> Tensor:
        """Return the table of a grid as other programs store it, [1, R+N, D]: zeros for the prefix, then sin-cos."""
        return F.pad(sincos_table(self._width, grid), (0, 0, self._num_prefix, 0)).unsqueeze(0)


def resized(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize a table of patches [1, N, D] bicubically from one grid to another: [1, N', D]."""
    if old == new:
        return table
    image = table.mT.unflatten(2, old)  # [1, D, rows, columns]
    return F.interpolate(image, new, mode="bicubic", align_corners=False).flatten(2).mT.contiguous()


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
    if width % WIDTH_UNIT:
        raise ValueError(f"sincos_table: width must be a multiple of {WIDTH_UNIT}, got {width}")
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

"""The fixed sin-cos position table of the MAE family."""

import torch
from torch import Tensor, nn


class SinCosPositions(nn.Module):
    """The position tables of every grid that comes along, each built once; nothing of it is trained or saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._tables: dict[tuple[tuple[int, int], torch.device, torch.dtype], Tensor] = {}

    def forward(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Return the table of a grid, [N, width], on the device and in the dtype of a tensor."""
        key = (grid, like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = sincos_table(self.width, grid).to(like)
        return self._tables[key]


def sincos_table(width: int, grid: tuple[int, int]) -> Tensor:
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

    def encode(places: Tensor) -> Tensor:
        angles = places.double().outer(frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column = encode(torch.arange(columns)).repeat(rows, 1)
    row = encode(torch.arange(rows)).repeat_interleave(columns, dim=0)
    return torch.cat([column, row], dim=1).float()

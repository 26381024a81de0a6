"""Maskers whose hidden patches are filled in, so that all tokens pass the encoder: units drawn evenly over the image.

Shapes: B images, U units, N patches, K visible patches.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bimkern.mim.masking.random import Grid, Hiding, StageView, check_hidden, num_kept
from bimkern.ops import keep_to_mask, random_keep


@dataclass(frozen=True, kw_only=True)
class _Units(ABC):
    """A random share of square units of unit x unit patches is hidden, the same ones from every stage."""

    ratio: float
    unit: int = 1  # patches a side

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.ratio < 1:
            raise ValueError(f"{name}: ratio must be in (0, 1), got {self.ratio}")
        if self.unit < 1:
            raise ValueError(f"{name}: unit must be at least 1 patch, got {self.unit}")

    @abstractmethod
    def num_visible(self, num_units: int) -> int:
        """Return how many of so many units are not hidden."""

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        self._units(grid)
        return [grid[0] * grid[1]] * num_stages

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        num_units, visible = self._units(grid)
        keep = random_keep(draw_ids, num_units, visible, seed=seed)  # of units
        if self.unit > 1:
            keep = _patches_of_units(grid, self.unit, keep.device)[keep].flatten(1).sort(dim=1).values
        return [filled_view(grid, keep)] * num_stages

    def _units(self, grid: Grid) -> tuple[int, int]:
        """Return how many units a grid has, and how many of them stay visible."""
        name = type(self).__name__
        if grid[0] % self.unit or grid[1] % self.unit:
            raise ValueError(f"{name}: unit must divide the {grid[0]} x {grid[1]} patches, got {self.unit}")
        num_units = grid[0] * grid[1] // self.unit**2
        visible = self.num_visible(num_units)
        check_hidden(f"{name}: ratio", self.ratio, num_units - visible, num_units, "units")
        return num_units, visible


@dataclass(frozen=True, kw_only=True)
class TokenReplace(_Units):
    """Hide units behind a mask token that takes the place of patch embeddings; a count that is not whole is raised.

    Source: Xie et al. 2022 (SimMIM), section 3.2; the rounding as in its published program.
    """

    hiding: ClassVar[Hiding] = "replace"

    def num_visible(self, num_units: int) -> int:
        return num_units - math.ceil(num_units * self.ratio)


@dataclass(frozen=True, kw_only=True)
class BlockPixels(_Units):
    """Hide units under a learned colour in the image itself, so that any encoder can be trained.

    Source: Guo et al. 2022 (FastMIM), section 3; the rounding as in its published program.
    """

    hiding: ClassVar[Hiding] = "paint"

    def num_visible(self, num_units: int) -> int:
        return num_kept(num_units, self.ratio)


def filled_view(grid: Grid, keep: Tensor, hidden: Tensor | None = None) -> StageView:
    """Return what a stage sees where all tokens pass it, from the visible patches [B, K], ascending.

    A hidden [B, N] of 0 and 1 is needed only where images have different numbers of visible patches; keep then holds
    all N.
    """
    weight = keep_to_mask(keep, grid[0] * grid[1]) if hidden is None else hidden
    return StageView(grid=grid, keep=keep, within=None, hidden=weight, decoded=None, decoded_within=None)


def _patches_of_units(grid: Grid, unit: int, device: torch.device) -> Tensor:
    """List the patches of every unit, [U, unit * unit]."""
    patches = torch.arange(grid[0] * grid[1], device=device).view(grid[0] // unit, unit, grid[1] // unit, unit)
    return patches.transpose(1, 2).reshape(-1, unit * unit)

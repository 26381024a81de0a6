"""Random masks drawn in mask units, whose patches are filled in or do not enter the encoder.

Shapes: B images, U mask units, N patches, K visible patches.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bimkern import pieces
from bimkern.mim.mask_embedding import DropMasked, MaskEmbedding, MaskPixels, MaskToken
from bimkern.mim.masking.masker import Masker, check_masked, num_kept
from bimkern.mim.masking.view import StageView, dropped_view, filled_view
from bimkern.models.encoder import Grid
from bimkern.ops import random_keep


@dataclass(frozen=True, kw_only=True)
class _Units(ABC):
    """A random share of the mask units, the same ones from every stage."""

    ratio: float
    mask_unit: int = 1  # patches a side of the squares that are masked as a whole

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.ratio < 1:
            raise ValueError(f"{name}: ratio must be in (0, 1), got {self.ratio}")
        if self.mask_unit < 1:
            raise ValueError(f"{name}: mask_unit must be at least 1 patch, got {self.mask_unit}")

    @abstractmethod
    def num_visible(self, num_units: int) -> int:
        """Return how many of the mask units are visible."""

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        self._units(grid)
        return [grid[0] * grid[1]] * num_stages

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        return [filled_view(grid, self._keep(draw_ids, grid, seed))] * num_stages

    def _keep(self, draw_ids: Tensor, grid: Grid, seed: int) -> Tensor:
        """Draw the visible patches of every image, [B, K], ascending."""
        num_units, visible = self._units(grid)
        keep = random_keep(draw_ids, num_units, visible, seed=seed)  # of mask units
        if self.mask_unit > 1:
            keep = _patches_of_units(grid, self.mask_unit, keep.device)[keep].flatten(1).sort(dim=1).values
        return keep

    def _units(self, grid: Grid) -> tuple[int, int]:
        """Return how many mask units a grid has, and how many of them stay visible."""
        name = type(self).__name__
        if grid[0] % self.mask_unit or grid[1] % self.mask_unit:
            raise ValueError(f"{name}: mask_unit must divide the {grid[0]} x {grid[1]} patches, got {self.mask_unit}")
        num_units = grid[0] * grid[1] // self.mask_unit**2
        visible = self.num_visible(num_units)
        check_masked(f"{name}: ratio", self.ratio, num_units - visible, num_units, "mask units")
        return num_units, visible


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class TokenReplace(_Units):
    """Mask units at random with a token that replaces patch embeddings; a count that is not whole is rounded up.

    Source: Xie et al. 2022 (SimMIM), section 3.2; the rounding as in its published program.
    """

    mask_embedding: ClassVar[type[MaskEmbedding]] = MaskToken

    def num_visible(self, num_units: int) -> int:
        return num_units - math.ceil(num_units * self.ratio)


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class BlockPixels(_Units):
    """Mask units at random with a learned color in the image itself, so that any encoder can be trained.

    Source: Guo et al. 2022 (FastMIM), section 3; the rounding as in its published program.
    """

    mask_embedding: ClassVar[type[MaskEmbedding]] = MaskPixels

    def num_visible(self, num_units: int) -> int:
        return num_kept(num_units, self.ratio)


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class RandomUnits(_Units):
    """Mask units at random, for each image on its own; only the patches of the others enter the encoder.

    An encoder that merges tokens takes units of as many patches as it merges into one.

    Source: Huang et al. 2022 (GreenMIM), section 3.1, which has one mask for a batch; the rounding as in its program.
    """

    mask_embedding: ClassVar[type[MaskEmbedding]] = DropMasked

    def num_visible(self, num_units: int) -> int:
        return num_kept(num_units, self.ratio)

    def entering(self, grid: Grid, num_stages: int) -> list[int]:
        return [self._units(grid)[1] * self.mask_unit**2] * num_stages

    def views(self, draw_ids: Tensor, grid: Grid, num_stages: int, seed: int) -> list[StageView]:
        return [dropped_view(grid, self._keep(draw_ids, grid, seed))] * num_stages


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class SharedUnits(RandomUnits):
    """Mask the same random units of all images of a micro-batch: those of its first; the others are left out.

    So a mask depends on how a batch is divided.

    Source: Huang et al. 2022 (GreenMIM), section 3.1; Wang et al. 2023 (LocalMIM) for Swin.
    """

    def _keep(self, draw_ids: Tensor, grid: Grid, seed: int) -> Tensor:
        return super()._keep(draw_ids[:1], grid, seed).expand(len(draw_ids), -1)


def _patches_of_units(grid: Grid, mask_unit: int, device: torch.device) -> Tensor:
    """List the patches of every mask unit, [U, mask_unit ** 2]."""
    rows, columns = (side // mask_unit for side in grid)
    patches = torch.arange(grid[0] * grid[1], device=device).view(rows, mask_unit, columns, mask_unit)
    return patches.transpose(1, 2).reshape(-1, mask_unit**2)

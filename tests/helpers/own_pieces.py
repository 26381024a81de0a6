"""Pieces as a user writes them in a file of their own, and a recipe made of them.

Shapes: B images, C channels, N patches, M cells.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import torch
from torch.nn.functional import adaptive_avg_pool2d

from bimkern import pieces
from bimkern.data.source import Source
from bimkern.image_size import ImageSize
from bimkern.mim.mask_embedding import MaskToken
from bimkern.mim.masking.masker import Masker
from bimkern.mim.masking.view import filled_view
from bimkern.mim.reconstruction.renderers import Renderer
from bimkern.mim.schedule import Schedule
from bimkern.mim.targets import Colors, Target, cell_side
from bimkern.recipes import RECIPES


@pieces.register(Masker)
@dataclass(frozen=True, kw_only=True)
class Checkerboard:
    """Mask every other patch: the black ones or the white ones, by the draw id."""

    mask_embedding: ClassVar = MaskToken

    def entering(self, grid, num_stages):
        if grid[1] % 2:
            raise ValueError(f"Checkerboard: the grid must have an even number of columns, got {grid[1]}")
        return [grid[0] * grid[1]] * num_stages

    def views(self, draw_ids, grid, num_stages, seed):
        self.entering(grid, num_stages)
        rows, columns = torch.arange(grid[0]).view(-1, 1), torch.arange(grid[1] // 2)
        keeps = [(rows * grid[1] + 2 * columns + (rows + start) % 2).flatten() for start in (0, 1)]
        keep = torch.stack(keeps).to(draw_ids.device)[(draw_ids + seed) % 2]
        return [filled_view(grid, keep)] * num_stages


@pieces.register(Target)
@dataclass(frozen=True, kw_only=True)
class MeanColor:
    """The mean normalized color of every cell."""

    kind: str = "l2"

    def length(self, channels, patch, scale):
        cell_side(patch, scale)
        return channels

    def vectors(self, images, patch, scale, colors):
        cells = [round(side / cell_side(patch, scale)) for side in images.shape[2:]]
        return adaptive_avg_pool2d(colors.normalize(images), cells).flatten(2).mT  # [B, M, C]


@pieces.register(Renderer, of=MeanColor)
@dataclass(frozen=True)
class MeanColorRenderer:
    target: MeanColor
    patch: int
    scale: float
    colors: Colors
    baseline: ClassVar[str] = "the mean visible cell"
    legend: ClassVar[str] = "mean colors: no statistics of the truth are used"
    note: ClassVar[str] = ""
    statistics: ClassVar[tuple[str, ...]] = ("visible",)

    @classmethod
    def of(cls, model, stage, target):
        return cls(target, model.method.level(stage).patch, model.method.head(stage).scale, model.colors)

    def truth(self, images):
        grid = [round(side / cell_side(self.patch, self.scale)) for side in images.shape[2:]]
        return self.target.vectors(images, self.patch, self.scale, self.colors).mT.unflatten(2, grid)

    def read(self, vectors, grid, truth, shown, statistics):
        return vectors.mT.unflatten(2, grid)

    def target_name(self, truth):
        return "mean colors"

    def size(self, truth):
        return ImageSize(20 * truth.shape[2], 20 * truth.shape[3])

    def draw(self, values, size):
        return adaptive_avg_pool2d(self.colors.restore(values), size)


@pieces.register(Schedule)
@dataclass(frozen=True, kw_only=True)
class Linear:
    """Fall from the peak to nothing; the embedding stands still from the middle of the run on."""

    per_group: ClassVar[bool] = True

    def frozen_groups(self, progress, depth):
        return int(progress > 0.5)

    def factor(self, progress, group=0, depth=1, *, head=False):
        return 0.0 if group < self.frozen_groups(progress, depth) else 1 - progress


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class Archive:
    """The images in a ZIP file, which stay there."""

    archive: Path
    held_out: ClassVar[Source | None] = None

    @property
    def paths(self):
        return (self.archive,)

    def files(self):
        with ZipFile(self.archive) as members:
            return dict.fromkeys(name for name in members.namelist() if not name.endswith("/"))

    def stat(self, file):
        with ZipFile(self.archive) as members:
            return members.getinfo(file).file_size, self.archive.stat().st_mtime_ns

    def open(self, file):
        with ZipFile(self.archive) as members:
            return BytesIO(members.read(file))

    def path(self, file):
        return None


def own_recipe(name, source=None):
    """Checkerboards, mean colors and a falling line on the ViT of SimMIM's small recipe."""
    base = RECIPES["simmim_vit_test"].config
    method = replace(base.method, masker=Checkerboard(), targets=(MeanColor(),))
    return replace(base, recipe=name, method=method, schedule=Linear(), source=source)

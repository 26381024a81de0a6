"""Renderers: predictions laid out over the image, in units that can be compared, and as pictures.

A map has a position for every pixel with its colors, or for every cell with its histograms.

Shapes: B images, C channels, H W pixels, M predicted cells, P values of a cell, h w positions, Q values of a position.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from bimkern import pieces
from bimkern.image_size import ImageSize
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.hog_strokes import draw_hog
from bimkern.mim.targets import Colors, HogTarget, PixelTarget, Target, cell_side, unpatchify
from bimkern.models.encoder import Grid
from bimkern.ops import pixel_targets

Statistics = Literal["visible", "truth"]

_EXPONENT = 0.75  # of drawn values: brightens histograms that are spread over many bins, as predictions are
_STROKE = 6  # pixels of a drawn cell, at least
_PANEL = 160  # pixels of the width of a picture, at least


class Renderer(Protocol):
    """Compares the predictions of a stage with the truth, and draws both; registered for a class of targets."""

    baseline: ClassVar[str]  # in words: the mean of the visible positions of a map

    @classmethod
    def of(cls, model: MIM, stage: int, target: Any) -> Self:
        """Return the renderer of a stage that predicts a target."""

    @property
    def legend(self) -> str:
        """Say whose statistics a picture of predictions uses."""

    @property
    def note(self) -> str:
        """Say what the error does not measure; empty where it measures what is learned."""

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Return the choices that read() has, the honest one first."""

    def truth(self, images: Tensor) -> Tensor:
        """Compute what predictions are compared with, [B, Q, h, w], from uint8 images [B, C, H, W]."""

    def read(self, vectors: Tensor, grid: Grid, truth: Tensor, shown: Tensor, statistics: Statistics) -> Tensor:
        """Lay predictions out in the units of the truth, [B, Q, h, w].

        Args:
            vectors: [B, M, P], of a grid of cells.
            grid: its rows and columns.
            truth: [B, Q, h, w]; with "visible" statistics only what is shown of it counts.
            shown: [B, 1, h, w], the share of every position that the stage sees.
            statistics: one of those above.
        """

    def target_name(self, truth: Tensor) -> str | None:
        """Return the title of a picture of the truth; None where it would show the original."""

    def size(self, truth: Tensor) -> ImageSize:
        """Return the size of the smallest picture that shows every position of a map [B, Q, h, w]."""

    def draw(self, values: Tensor, size: ImageSize) -> Tensor:
        """Draw a map of one image [Q, h, w], on the host, as a picture of such a size: [C, H, W] in [0, 1]."""


@pieces.register(Renderer, of=PixelTarget)
@dataclass(frozen=True)
class PixelRenderer:
    """Pixels in normalized colors.

    Predictions of normalized cells carry no brightness or contrast. These are put back from the average visible cell
    (an honest reconstruction), or from the masked cell itself (it leaks, and a picture that uses it must say so).
    """

    target: PixelTarget
    side: int  # of a cell
    colors: Colors
    baseline: ClassVar[str] = "the mean visible color"

    @classmethod
    def of(cls, model: MIM, stage: int, target: PixelTarget) -> "PixelRenderer":
        side = cell_side(model.method.level(stage).patch, model.method.head(stage).scale)
        return cls(target, side, model.colors)

    @property
    def legend(self) -> str:
        if not self.target.normalize:
            return "raw pixel predictions: no statistics of the truth are used"
        return (
            "de-normalized with brightness and contrast of the average visible patch;\n"
            "* with those of the masked truth, which leaks"
        )

    @property
    def note(self) -> str:
        if not self.target.normalize:
            return ""
        return (
            "The target is normalized per patch: brightness and contrast are those of the average visible patch,\n"
            "so a good model may still lose to the baseline. The loss says how well it learns."
        )

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        return ("visible", "truth") if self.target.normalize else ("visible",)

    def truth(self, images: Tensor) -> Tensor:
        return self.colors.normalize(images)

    def read(self, vectors: Tensor, grid: Grid, truth: Tensor, shown: Tensor, statistics: Statistics) -> Tensor:
        if self.target.normalize:
            seen = truth.new_ones(truth.shape) if statistics == "truth" else shown.expand_as(truth)
            mean, std, count = self._moments(truth, seen)
            if statistics == "visible":  # of the average cell, by what is visible of each: [B, 1, 1]
                mean, std = ((value * count).sum(1, keepdim=True) / count.sum(1, keepdim=True) for value in (mean, std))
            vectors = vectors * std + mean
        return unpatchify(vectors, self.side, grid)

    def _moments(self, truth: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, standard deviation and number of the seen values of every cell, each [B, M, 1]."""
        values, weight = (pixel_targets(pixels, self.side, normalize=False) for pixels in (truth, seen))  # [B, M, P]
        count = weight.sum(-1, keepdim=True)
        mean = (values * weight).sum(-1, keepdim=True) / count.clamp(min=1)
        variance = ((values - mean).square() * weight).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return mean, variance.sqrt(), count

    def target_name(self, truth: Tensor) -> str | None:
        return None

    def size(self, truth: Tensor) -> ImageSize:
        return _enlarged(truth, _PANEL)

    def draw(self, values: Tensor, size: ImageSize) -> Tensor:
        return adaptive_avg_pool2d(self.colors.restore(values), (size.height, size.width))


@pieces.register(Renderer, of=HogTarget)
@dataclass(frozen=True)
class HogRenderer:
    """Histograms of oriented gradients, [C * bins] of every cell."""

    target: HogTarget
    patch: int
    scale: float
    colors: Colors
    baseline: ClassVar[str] = "the mean visible histogram"
    legend: ClassVar[str] = (
        "histograms of oriented gradients, where patches are visible the target's: "
        "no statistics of the truth are used; all are drawn at length 1"
    )
    note: ClassVar[str] = ""
    statistics: ClassVar[tuple[Statistics, ...]] = ("visible",)

    @classmethod
    def of(cls, model: MIM, stage: int, target: HogTarget) -> "HogRenderer":
        return cls(target, model.method.level(stage).patch, model.method.head(stage).scale, model.colors)

    def truth(self, images: Tensor) -> Tensor:
        grid = tuple(int(side // self.patch * self.scale) for side in images.shape[2:])
        vectors = self.target.vectors(images, self.patch, self.scale, self.colors)
        return self._lay_out(vectors, (grid[0], grid[1]))

    def read(self, vectors: Tensor, grid: Grid, truth: Tensor, shown: Tensor, statistics: Statistics) -> Tensor:
        return self._lay_out(vectors, grid)

    def _lay_out(self, vectors: Tensor, grid: Grid) -> Tensor:
        cells = vectors.unflatten(-1, (-1, self.target.cells, self.target.cells)).unflatten(1, grid)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def target_name(self, truth: Tensor) -> str | None:
        return f"target, {truth.shape[2]} x {truth.shape[3]}"

    def size(self, truth: Tensor) -> ImageSize:
        return _enlarged(truth, max(_PANEL, _STROKE * truth.shape[-1]))

    def draw(self, values: Tensor, size: ImageSize) -> Tensor:
        grid, bins = (values.shape[1], values.shape[2]), self.target.bins
        histograms = normalize(values.clamp(min=0).unflatten(0, (-1, bins)), dim=1)  # [C, bins, h, w]
        vectors = histograms.pow(_EXPONENT).flatten(2).flatten(0, 1).T
        return adaptive_avg_pool2d(draw_hog(vectors, grid, bins, side=size.width // grid[1]), (size.height, size.width))


def renderer_class(target: Target) -> type[Renderer]:
    """Return what draws predictions of a target.

    Raises:
        PieceError: nothing is registered for it.
    """
    found: type[Renderer] = pieces.find_for(Renderer, type(target))
    return found


def renderer_for(model: MIM, stage: int) -> Renderer:
    """Return what draws the predictions of a stage.

    Raises:
        PieceError: nothing is registered for its target.
    """
    target = model.method.target(stage)
    return renderer_class(target).of(model, stage, target)


def _enlarged(truth: Tensor, width: int) -> ImageSize:
    """Return the size of a map [B, Q, h, w] times the smallest whole number that makes it at least so wide."""
    times = -(-width // truth.shape[3])
    return ImageSize(times * truth.shape[2], times * truth.shape[3])

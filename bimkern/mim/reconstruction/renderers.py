"""Readers: what a prediction says, laid out over the image, in units that can be compared, and as a picture.

A map has one place for what is seen in one piece: a pixel with its colours, or a cell with its histograms.

Shapes: B images, C channels, H W pixels, M predicted cells, P values a cell, h w places, Q values a place, S pixels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from bimkern.mim.masking.random import Grid
from bimkern.mim.model import MIM
from bimkern.mim.reconstruction.hog_strokes import draw_hog
from bimkern.mim.targets import Colors, HogTarget, PixelTarget, cell_side, unpatchify
from bimkern.ops import pixel_targets

Statistics = Literal["visible", "truth"]

_EXPONENT = 0.75  # of drawn values: brightens histograms that are spread over many bins, as predictions are
_STROKE = 6  # pixels of a drawn cell, at least
_PANEL = 160  # pixels of a picture, at least


class Reader(Protocol):
    """What a stage predicts, and how it is shown."""

    guess: ClassVar[str]  # in words: the mean of the visible places of a map

    @property
    def note(self) -> str:
        """Say whose statistics a picture of predictions uses."""

    @property
    def caveat(self) -> str:
        """Say what the error does not measure; empty where it measures what is learnt."""

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Return the choices that read() has, the honest one first."""

    def truth(self, images: Tensor) -> Tensor:
        """Compute what predictions are held against, [B, Q, h, w], from uint8 images [B, C, H, W]."""

    def read(self, vectors: Tensor, grid: Grid, truth: Tensor, shown: Tensor, statistics: Statistics) -> Tensor:
        """Lay predictions out in the units of the truth, [B, Q, h, w].

        Args:
            vectors: [B, M, P], of a grid of cells.
            grid: its rows and columns.
            truth: [B, Q, h, w]; with "visible" statistics only what is shown of it counts.
            shown: [B, 1, h, w], the share of every place that the stage sees.
            statistics: one of those above.
        """

    def target_name(self, truth: Tensor) -> str | None:
        """Return the title of a picture of the truth; None where it would show the original."""

    def size(self, truth: Tensor) -> int:
        """Return S of the smallest picture that shows every place of a map [B, Q, h, w]."""

    def draw(self, places: Tensor, size: int) -> Tensor:
        """Draw a map of one image [Q, h, w], on the host: [C, S, S] in [0, 1]."""


@dataclass(frozen=True)
class PixelReader:
    """Pixels in normalised colours.

    Predictions of normalised cells carry no brightness or contrast. These are put back from the average visible cell
    (an honest reconstruction), or from the hidden cell itself (it leaks, and a picture that uses it must say so).
    """

    target: PixelTarget
    side: int  # of a cell
    colors: Colors
    guess: ClassVar[str] = "the mean visible colour"

    @classmethod
    def of(cls, model: MIM, stage: int, target: PixelTarget) -> "PixelReader":
        side = cell_side(model.method.encoder.patch, model.method.head(stage).scale)
        return cls(target, side, model.colors)

    @property
    def note(self) -> str:
        if not self.target.normalize:
            return "raw pixel predictions: no statistics of the truth are used"
        return (
            "de-normalised with brightness and contrast of the average visible patch;\n"
            "* with those of the hidden truth, which leaks"
        )

    @property
    def caveat(self) -> str:
        if not self.target.normalize:
            return ""
        return (
            "The target is normalised per patch: brightness and contrast are those of the average visible patch,\n"
            "so a good model may still lose to the guess. The loss says how well it learns."
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

    def size(self, truth: Tensor) -> int:
        return _at_least(_PANEL, truth.shape[-1])

    def draw(self, places: Tensor, size: int) -> Tensor:
        return adaptive_avg_pool2d(self.colors.restore(places), size)


@dataclass(frozen=True)
class HogReader:
    """Histograms of oriented gradients, [C * bins] of every cell."""

    target: HogTarget
    patch: int
    scale: float
    colors: Colors
    guess: ClassVar[str] = "the mean visible histogram"
    note: ClassVar[str] = (
        "histograms of oriented gradients, where patches are visible the target's: "
        "no statistics of the truth are used; all are drawn at length 1"
    )
    caveat: ClassVar[str] = ""
    statistics: ClassVar[tuple[Statistics, ...]] = ("visible",)

    @classmethod
    def of(cls, model: MIM, stage: int, target: HogTarget) -> "HogReader":
        return cls(target, model.method.encoder.patch, model.method.head(stage).scale, model.colors)

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

    def size(self, truth: Tensor) -> int:
        return _at_least(max(_PANEL, _STROKE * truth.shape[-1]), truth.shape[-1])

    def draw(self, places: Tensor, size: int) -> Tensor:
        grid, bins = (places.shape[1], places.shape[2]), self.target.bins
        histograms = normalize(places.clamp(min=0).unflatten(0, (-1, bins)), dim=1)  # [C, bins, h, w]
        vectors = histograms.pow(_EXPONENT).flatten(2).flatten(0, 1).T
        return adaptive_avg_pool2d(draw_hog(vectors, grid, bins, side=size // grid[1]), size)


_READERS: dict[type, Any] = {PixelTarget: PixelReader, HogTarget: HogReader}


def reader_of(model: MIM, stage: int) -> Reader:
    """Return what reads the predictions of a stage."""
    target = model.method.target(stage)
    reader: Reader = _READERS[type(target)].of(model, stage, target)
    return reader


def _at_least(size: int, side: int) -> int:
    """Return the smallest multiple of side that is at least size."""
    return -(-size // side) * side

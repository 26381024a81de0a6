"""Targets: what is predicted for every cell of a stage's grid.

Shapes: B images, C channels, H W pixels, N patches, M = N * scale**2 cells, P values a cell.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import interpolate

from bimkern import pieces
from bimkern.ops import hog, masked_pixel_loss, pixel_targets

LossKind = Literal["l2", "l1"]


@dataclass(frozen=True)
class Colors:
    """Mean and standard deviation of the channels of pixels in [0, 1], by which images are normalized."""

    mean: Tensor  # [C]
    std: Tensor  # [C]

    def normalize(self, images: Tensor) -> Tensor:
        """Bring uint8 images [B, C, H, W] to zero mean and unit variance, in the dtype of the statistics."""
        return (images.to(self.mean.dtype) / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def restore(self, pixels: Tensor) -> Tensor:
        """Bring normalized pixels [..., C, H, W] back to [0, 1], on their own device."""
        mean, std = (values.to(pixels).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels * std + mean).clamp(0, 1)


class Target(Protocol):
    """What a stage predicts; a frozen dataclass."""

    @property
    def kind(self) -> LossKind:
        """The error of a prediction."""

    def length(self, channels: int, patch: int, scale: float) -> int:
        """Return P.

        Raises:
            ValueError: patches of this size have no such cells.
        """

    def vectors(self, images: Tensor, patch: int, scale: float, colors: Colors) -> Tensor:
        """Compute [B, M, P] from uint8 images [B, C, H, W]; patch is the side of a token in pixels."""


@runtime_checkable
class JointTarget(Target, Protocol):
    """A target that costs less when several stages compute it together."""

    @property
    def family(self) -> Hashable:
        """Equal for targets of one class that can be computed together."""

    def joint_vectors(
        self, members: Sequence[Any], images: Tensor, patch: int, scales: Sequence[float], colors: Colors
    ) -> list[Tensor]:
        """Compute the vectors of targets of this family, each at its scale."""


@runtime_checkable
class FusedTarget(Target, Protocol):
    """A target whose loss can be computed without its vectors."""

    def loss(
        self, pred: Tensor, images: Tensor, weight: Tensor, patch: int, colors: Colors, denominator: Tensor
    ) -> Tensor:
        """Average the error of predictions [B, N, P] of whole tokens by weight [B, N]."""


@dataclass(frozen=True)
class StageTarget:
    """What a stage learns from in one batch."""

    vectors: Tensor | None = None  # [B, M, P]; None where they are read from the images, slice by slice
    features: Tensor | None = None  # [B, N, D'] of a teacher, if there is one

    def rows(self, rows: slice) -> "StageTarget":
        """Return that of a slice of the batch."""
        return StageTarget(*(None if tensor is None else tensor[rows] for tensor in (self.vectors, self.features)))


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Every stage also learns to predict the tokens of a teacher's layer for masked patches, through a projection.

    Source: Guo et al. 2022 (FastMIM), section 5.6: an L1 loss beside the first. It leaves open which layers, which
    tokens and at what weight; here the teacher sees the whole image, and its features have mean 0 and variance 1.
    """

    layers: tuple[int, ...]  # of the teacher, 0-based, one for every stage
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Distillation: weight must be at least 0 and finite, got {self.weight}")


def cell_side(patch: int, scale: float) -> int:
    """Return the side in pixels of a cell of the grid that a head predicts.

    Raises:
        ValueError: it is not a whole number.
    """
    side = patch / scale
    if side < 1 or side % 1:
        raise ValueError(f"a patch of {patch} pixels has no cells of a whole number of pixels at scale {scale}")
    return int(side)


@pieces.register(Target)
@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """The pixels of a cell, raw or normalized by the cell's own mean and variance.

    Source: He et al. 2022 (MAE), section 3 "reconstruction target" and table 1d; l1 Xie et al. 2022 (SimMIM), 3.4.
    """

    normalize: bool = True
    kind: LossKind = "l2"

    def length(self, channels: int, patch: int, scale: float = 1.0) -> int:
        return channels * cell_side(patch, scale) ** 2

    def vectors(self, images: Tensor, patch: int, scale: float, colors: Colors) -> Tensor:
        side = cell_side(patch, scale)
        return pixel_targets(images, side, self.normalize, mean=colors.mean, std=colors.std)

    def loss(
        self, pred: Tensor, images: Tensor, weight: Tensor, patch: int, colors: Colors, denominator: Tensor
    ) -> Tensor:
        """Average the error of predicted patches [B, N, P] by weight [B, N], without making the vectors."""
        return masked_pixel_loss(
            pred,
            images,
            weight,
            self.kind,
            patch=patch,
            normalize=self.normalize,
            mean=colors.mean,
            std=colors.std,
            denominator=denominator,
        )


@pieces.register(Target)
@dataclass(frozen=True, kw_only=True)
class HogTarget:
    """Histograms of oriented gradients, of one or several cells for every cell of the predicted grid.

    They are taken from uint8 pixels, whose gradients are exact; with a bias, which ties them to the pixels' scale, from
    normalized ones.

    Source: Wei et al. 2022 (MaskFeat), section 3.2; Wang et al. 2023 (LocalMIM), section 3.3, for several scales;
    window and bias as in published programs.
    """

    bins: int = 9
    cells: int = 1  # a side, within each cell of the predicted grid
    window: int | None = None  # pixels, of a Gaussian that weighs them
    bias: tuple[float, float] | None = None  # added to every gradient
    resize_patch: int | None = None  # take them from the image resized so that a patch has this many pixels a side
    kind: LossKind = "l2"

    def __post_init__(self) -> None:
        for name in ("bins", "cells", "window", "resize_patch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"HogTarget: {name} must be at least 1, got {value}")
        if not all(map(math.isfinite, self.bias or ())):
            raise ValueError(f"HogTarget: bias must be finite, got {self.bias}")

    @property
    def family(self) -> "HogTarget":
        """What targets have in common that hog_vectors computes together."""
        return self if self.bias is None else replace(self, bias=(0.0, 0.0))

    def length(self, channels: int, patch: int, scale: float = 1.0) -> int:
        self.side(patch, scale)
        return channels * self.bins * self.cells**2

    def side(self, patch: int, scale: float) -> int:
        """Return the side in pixels of a cell of the predicted grid, in the image that histograms are taken from."""
        source = self.resize_patch or patch
        side = source / scale
        if side % self.cells or side < self.cells:
            remedy = "" if self.resize_patch else "; resize_patch=16 would take the target from a resized image"
            raise ValueError(
                f"HogTarget: a patch of {source} pixels has no {self.cells} x {self.cells} cells of a whole number of "
                f"pixels at scale {scale}{remedy}"
            )
        return int(side)

    def vectors(self, images: Tensor, patch: int, scale: float, colors: Colors) -> Tensor:
        return hog_vectors([self], images, patch, [scale], colors)[0]

    def joint_vectors(
        self, members: Sequence["HogTarget"], images: Tensor, patch: int, scales: Sequence[float], colors: Colors
    ) -> list[Tensor]:
        return hog_vectors(members, images, patch, scales, colors)


def hog_vectors(
    targets: Sequence[HogTarget], images: Tensor, patch: int, scales: Sequence[float], colors: Colors
) -> list[Tensor]:
    """Compute targets that differ in their bias alone, each at its scale, from one pass over the images."""
    first, sides = targets[0], [target.side(patch, scale) for target, scale in zip(targets, scales, strict=True)]
    pixels = images if first.bias is None else colors.normalize(images).float()
    if first.resize_patch is not None:
        size = [side // patch * first.resize_patch for side in images.shape[2:]]
        pixels = interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    if first.cells == 1:
        biases = [target.bias for target in targets if target.bias is not None]
        return list(hog(pixels, sides, first.bins, window=first.window, bias=biases or None))
    # The op makes one vector of all cells of a patch, so each size of patch is a call.
    return [
        hog(pixels, side // first.cells, first.bins, window=first.window, bias=target.bias, patch=side)
        for target, side in zip(targets, sides, strict=True)
    ]


def unpatchify(vectors: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Lay patch vectors [B, N, p*p*C] out as images [B, C, H, W]; the inverse of raw pixel targets."""
    rows, columns = grid
    cells = vectors.reshape(len(vectors), rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

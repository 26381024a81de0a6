"""HOG vectors as a picture: every cell is a star of strokes along its edges.

Shapes: h w cells, C channels, S side of a drawn cell in pixels.
"""

import math

import torch
from torch import Tensor

_LENGTH = 0.92  # of a stroke, in cells
_WIDTH = 0.13
_MIN_WIDTH = 1.0  # pixels


def draw_hog(vectors: Tensor, grid: tuple[int, int], bins: int, side: int = 16) -> Tensor:
    """Draw the histograms of one image, or a prediction of them.

    A bin is a stroke through the middle of its cell, along the edge: at a right angle to the bin's gradients. Its
    brightness is the square of the value, since the squares of a histogram add up to one; negative values, which a
    prediction may have, are left out. Every channel has a picture: in RGB, what all three agree on is white.

    Args:
        vectors: [h * w, C * bins], cells in raster order, channel-major, as `bimkern.ops.hog` gives them.
        grid: h, w.
        bins: of a histogram.
        side: S, of a drawn cell in pixels.

    Returns:
        [C, h * S, w * S], float32 in [0, 1].

    Raises:
        ValueError: vectors are not those of such a grid.
    """
    rows, columns = grid
    if vectors.dim() != 2 or vectors.shape[0] != rows * columns or not vectors.shape[1] or vectors.shape[1] % bins:
        raise ValueError(
            f"draw_hog: vectors must be [h*w={rows * columns}, C*bins] with bins={bins}, got {list(vectors.shape)}"
        )
    shares = (
        vectors.float().clamp(0, 1).square().reshape(rows, columns, -1, bins).permute(2, 3, 0, 1)
    )  # [C, bins, h, w]
    picture = vectors.new_zeros(shares.shape[0], rows, side, columns, side, dtype=torch.float32)
    for bin, stroke in enumerate(_strokes(bins, side).to(vectors.device)):
        picture = torch.maximum(picture, shares[:, bin, :, None, :, None] * stroke[:, None, :])
    return picture.flatten(3).flatten(1, 2)


def _strokes(bins: int, side: int) -> Tensor:
    """How much of each pixel the stroke of each bin covers, [bins, S, S]."""
    width = max(_WIDTH * side, _MIN_WIDTH)
    half = (_LENGTH * side - width) / 2
    offset = torch.arange(side) - (side - 1) / 2  # of pixel centers
    y, x = offset[:, None], offset[None, :]
    strokes = []
    for bin in range(bins):
        angle = (bin + 0.5) * math.pi / bins  # of the gradient, from the vertical
        along = x * math.cos(angle) - y * math.sin(angle)
        across = x * math.sin(angle) + y * math.cos(angle)
        distance = torch.hypot((along.abs() - half).clamp(min=0), across)
        strokes.append((0.5 + width / 2 - distance).clamp(0, 1))
    return torch.stack(strokes)

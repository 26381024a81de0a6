"""Orientation: how the image in a file is turned upright.

It is read once, at the check, by one reader; both loaders get the number and turn by nothing else.

Shapes: B samples. Numbers are those of EXIF, 1 (upright) to 8.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from bimkern.data.integers import Int64

Boxes = Int64 | NDArray[np.float64]  # whole pixels, or parts of them

UPRIGHT = 1
_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Going right, or down, in the upright image goes backwards in the stored one.
_MIRRORED_X, _MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)
FIRST_TRANSPOSED = 5  # from here on rows are columns


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of a loaded image, from EXIF or else XMP, in whatever chunk its format keeps them.

    Metadata that cannot be read, or make no sense, turn nothing.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # PIL may raise anything on invalid metadata; the pixels are whole
        return UPRIGHT
    return orientation if orientation in _METHODS else UPRIGHT


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a stored image upright."""
    return image if orientation == UPRIGHT else image.transpose(_METHODS[orientation])


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return width and height of a stored image once it is turned upright."""
    width, height = size
    return (height, width) if orientation >= FIRST_TRANSPOSED else (width, height)


@dataclass(frozen=True)
class StoredBoxes:
    """Crop boxes in the coordinates of stored images, and what is left to do to the crops; all in H W order."""

    corners: NDArray[Any]  # [B, 2], whole pixels or parts of them, as the boxes
    extents: NDArray[Any]  # [B, 2]
    sizes: Int64  # [B, 2], of the whole images
    mirrored: NDArray[np.bool_]  # [B, 2], axes along which a crop is read backwards
    transposed: NDArray[np.bool_]  # [B], crops whose rows then become columns


def stored_boxes(boxes: Boxes, flips: NDArray[np.bool_], sizes: Int64, orientations: Int64) -> StoredBoxes:
    """Find crop boxes of upright images in the images as they are stored.

    Args:
        boxes: [B, 4], left, top, width, height in the upright image.
        flips: [B], upright crops that are mirrored left to right.
        sizes: [B, 2], width and height of the upright images.
        orientations: [B].
    """
    mirrored = np.stack([np.isin(orientations, _MIRRORED_X), np.isin(orientations, _MIRRORED_Y)], axis=1)  # [B, 2], x y
    first, extents = boxes[:, :2], boxes[:, 2:]
    corners = np.where(mirrored, np.maximum(sizes - first - extents, 0), first)  # which rounding may put outside
    mirrored[:, 0] ^= flips
    transposed = orientations >= FIRST_TRANSPOSED

    def rows_and_columns(x_y: NDArray[Any]) -> NDArray[Any]:
        return np.where(transposed[:, None], x_y, x_y[:, ::-1])

    corners, extents, sizes, mirrored = map(rows_and_columns, (corners, extents, sizes, mirrored))
    return StoredBoxes(corners, extents, sizes, mirrored, transposed)

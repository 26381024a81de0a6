"""TIFF files that Pillow does not read, by tifffile: several bands, and values of more than 8 bits.

Bands are the samples of a page, its planes, or pages of one size. It is read from memory, so that a file cannot lead to
others on the disk.

Shapes: H W pixels, C bands.
"""

import logging
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bimkern import optional
from bimkern.data.arrays import refuse_other_count
from bimkern.data.formats import CONVERTED, BadImage, OutOfResources, reason_of, refuse_too_large
from bimkern.data.levels import Range, bounds
from bimkern.data.orientation import UPRIGHT

_EXTRA = "pip install 'bimkern[tiff]'"
_NO_COMPRESSION, _ORIENTATION = 1, 274
_COLORS = ("MINISBLACK", "RGB")  # photometric interpretations whose values are light; CMYK and palettes are not
_ALPHA = (1, 2)  # extra samples of a pixel that are alpha, premultiplied or not
_ORIENTATIONS = range(1, 9)


@dataclass(frozen=True)
class Bands:
    """The values of a TIFF."""

    values: NDArray[Any]  # [H, W, C]
    orientation: int  # how they are to be turned (orientation.py)
    has_alpha: bool  # whether there was alpha behind gray or RGB, which is left out


def read_bands(file: BinaryIO, channels: int, stated: Range | None) -> Bands:
    """Read a TIFF as an image of a number of channels.

    For gray and RGB its first page counts, as where Pillow reads it. For other numbers, bands are the axis of as many
    values, before or behind the pixels.

    Args:
        file: the TIFF.
        channels: that it is to have; gray and RGB may stand for each other.
        stated: range of values of more than 8 bits.

    Raises:
        BadImage: it holds other bands, or values without a range; it is damaged, or too large; or tifffile is missing.
        OutOfResources: there is no memory for it now.
    """
    try:
        tifffile: Any = optional.load("tifffile")
    except optional.Unusable as error:
        raise BadImage(f"a TIFF that Pillow does not read; tifffile does ({error}): {_EXTRA}") from error
    silence("tifffile")
    try:
        content = BytesIO(file.read())
        with tifffile.TiffFile(content) as opened:
            return _read(opened, channels, stated, len(content.getvalue()))
    except (BadImage, OutOfResources):
        raise
    except Exception as error:  # on invalid data, whatever tifffile and decoders raise
        reason = reason_of(error)
        if "imagecodecs" in reason:
            reason = f"{reason.rstrip('.')}: {_EXTRA}"
        raise BadImage(reason) from error


def silence(name: str) -> None:
    """Keep a library from logging what is wrong with an image, which the caller says, unless its level is set."""
    log = logging.getLogger(name)
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)


def _read(opened: Any, channels: int, stated: Range | None, num_bytes: int) -> Bands:
    page = opened.pages.first
    if page.is_reduced:
        raise BadImage("a preview, as in a camera's raw file; convert the photograph to JPEG or PNG")
    colors = getattr(page.photometric, "name", page.photometric)  # a number where it is none that tifffile knows
    if colors not in _COLORS:
        raise BadImage(f"colors of {colors}; convert it to gray, RGB or bands")
    image = page if channels in CONVERTED else opened.series[0]
    shape, count, last = _layout(image, channels)
    has_alpha = channels in CONVERTED and count - 1 in CONVERTED and any(one in _ALPHA for one in page.extrasamples)
    refuse_other_count(count - 1 if has_alpha else count, channels)
    height, width = shape
    if min(shape) < 1:
        raise BadImage(f"no pixels in {list(image.shape)}")
    refuse_too_large(width, height)
    bounds(image.dtype, stated)
    if page.compression == _NO_COMPRESSION and height * width * count * image.dtype.itemsize > num_bytes:
        raise BadImage("truncated")
    values = np.asarray(image.asarray(maxworkers=1)).reshape((*shape, count) if last else (count, *shape))
    values = values if last else np.moveaxis(values, 0, -1)
    tag = page.tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None and tag.value in _ORIENTATIONS else UPRIGHT
    return Bands(values[:, :, :-1] if has_alpha else values, orientation, has_alpha)


def _layout(image: Any, channels: int) -> tuple[tuple[int, int], int, bool]:
    """Return height and width, the number of bands, and whether these come last.

    Programs write arrays [H, W, C] also as H pages of W x C pixels: so the axis whose length fits counts, and the names
    of the axes where both do, or none.
    """
    shape = tuple(image.shape)
    if len(shape) == 2:
        return (shape[0], shape[1]), 1, True
    if len(shape) != 3:
        raise BadImage(f"{image.dtype} {list(shape)} ({image.axes}); bands are one axis beside height and width")
    fits = [shape[axis] == channels for axis in (0, -1)]
    last = fits[1] if fits[0] != fits[1] else image.axes.endswith("S")
    return ((shape[0], shape[1]), shape[2], True) if last else ((shape[1], shape[2]), shape[0], False)

"""One image as a .npy file: its header is checked before memory is taken for what it claims.

Shapes: H W pixels, C channels.
"""

import os
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bimkern.data.formats import ARRAY_SUFFIX, CONVERTED, BadImage, reason_of, refuse_too_large
from bimkern.data.levels import KINDS, Range, bounds


def is_array(file: BinaryIO) -> bool:
    """Return whether a file begins as a .npy file."""
    start = file.read(len(npy.MAGIC_PREFIX))
    file.seek(0)
    return start == npy.MAGIC_PREFIX


def read_array(file: BinaryIO, channels: int, stated: Range | None) -> NDArray[Any]:
    """Read the values of an image, [H, W, C], or [H, W] for one channel.

    Args:
        file: a .npy file.
        channels: that it is to have; gray and RGB may stand for each other.
        stated: range of values of more than 8 bits.

    Raises:
        BadImage: it is no such array, truncated, or too large.
        OutOfResources: there is no memory for its header now.
        Exception: whatever the file raises, or for want of memory (formats.blamed_on_image).
    """
    try:
        read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
    except Exception as error:  # it parses a line of Python
        raise BadImage(f"not a {ARRAY_SUFFIX} file that can be read ({reason_of(error)})") from error
    if dtype.kind not in KINDS or len(shape) not in (2, 3):
        raise BadImage(f"{dtype} {list(shape)}; {ARRAY_SUFFIX} images are numbers [H, W, C]")
    height, width, count = shape if len(shape) == 3 else (*shape, 1)
    refuse_other_count(count, channels)
    if min(height, width) < 1:
        raise BadImage(f"no pixels in {list(shape)}")
    refuse_too_large(width, height)
    bounds(dtype, stated)
    num_bytes = height * width * count * dtype.itemsize
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    if end - start < num_bytes:
        raise BadImage("truncated")
    file.seek(start)
    values = np.frombuffer(file.read(num_bytes), dtype=dtype)
    return values.reshape((height, width, count), order="F" if by_columns else "C")


def refuse_other_count(count: int, channels: int) -> None:
    """Raise BadImage unless values of `count` channels can be read as an image of `channels`."""
    if count != channels and not (count in CONVERTED and channels in CONVERTED):
        raise BadImage(f"has {count_channels(count)}, the encoder takes {channels}")


def count_channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"

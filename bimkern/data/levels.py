"""Levels: values of more than 8 bits as the 256 that a network gets, by a range that the user states.

The range is mapped to [0, 255] linearly and rounded to the nearest level, a tie to the even one; what lies outside
becomes 0 or 255. Values of 8 bits stay as they are, whatever the range.
"""

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bimkern.data.formats import BadImage

Range = tuple[float, float] | Literal["dtype"]  # the values that become 0 and 255; dtype: the ends of unsigned integers

KINDS = "uif"  # of dtypes: unsigned and signed integers, floats
_TABLE_BYTES = 2  # of a value: up to so many, all values are mapped beforehand


def refuse_range(stated: Range | None) -> None:
    """Raise ValueError if a range is none."""
    if stated is None or stated == "dtype":
        return
    low, high = stated
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--range must be dtype, or two finite numbers, the smaller one first, got {low:g} {high:g}")


def bounds(dtype: np.dtype[Any], stated: Range | None) -> tuple[float, float]:
    """Return the values of a dtype that become 0 and 255.

    Raises:
        BadImage: they are not stated, or there is no such range.
    """
    if dtype == np.uint8:
        return 0, 255
    if dtype.kind not in KINDS:
        raise BadImage(f"values of {dtype}; an image is of integers or floats")
    if stated is None:
        raise BadImage(
            f"{8 * dtype.itemsize} bits per channel ({dtype}); state their range, as in --range 0 4095, or convert "
            f"it to 8"
        )
    if stated != "dtype":
        return stated
    if dtype.kind != "u":
        raise BadImage(f"--range dtype is for unsigned integers, and these are {dtype}; state two numbers")
    return 0, int(np.iinfo(dtype).max)


def to_levels(values: NDArray[Any], stated: Range | None) -> NDArray[np.uint8]:
    """Map values of any shape to levels, [0, 255] uint8.

    Raises:
        BadImage: as by bounds(); or some are not finite.
    """
    low, high = bounds(values.dtype, stated)
    if values.dtype == np.uint8:
        return values
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadImage("some values are not finite")
        return _mapped(values, low, high)
    if values.itemsize > _TABLE_BYTES:
        return _mapped(values, low, high)
    return _table(values.dtype, low, high)[values.view(_unsigned(values.dtype))]


@lru_cache(maxsize=8)
def _table(dtype: np.dtype[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return the levels of all values of an integer dtype, in the order of the unsigned integers of the same bits."""
    return _mapped(np.arange(2 ** (8 * dtype.itemsize), dtype=_unsigned(dtype)).view(dtype), low, high)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _mapped(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = values.astype(np.float64)
    with np.errstate(over="ignore"):  # it is clipped
        scaled -= low
        scaled *= 255 / (high - low)
    levels: NDArray[np.uint8] = np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
    return levels

"""Values of more than 8 bits become levels by a stated range, and by no other."""

import numpy as np
import pytest

from bimkern.data.formats import BadImage
from bimkern.data.levels import bounds, refuse_range, to_levels


def plain(values, low, high):
    """The rule as it is documented, value by value."""
    return [min(max(round((float(value) - low) * 255 / (high - low)), 0), 255) for value in values.ravel()]


@pytest.mark.parametrize("stated", [None, (0, 100), "dtype"])
def test_8_bits_stay_as_they_are(stated):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert to_levels(values, stated) is values


@pytest.mark.parametrize("dtype", ["u2", "<u2", ">u2", "i2", "i1", "u4", "i4", "u8", "f2", "f4", ">f4", "f8"])
def test_a_range_is_mapped_linearly_rounded_to_the_nearest_and_clipped(dtype):
    values = np.random.default_rng(0).integers(-100, 100, (9, 8, 3)).astype(dtype)  # unsigned: also the largest
    levels = to_levels(values, (-64, 63.5))
    assert levels.dtype == np.uint8
    assert levels.ravel().tolist() == plain(values, -64, 63.5)


def test_ties_go_to_the_even_level():
    assert to_levels(np.array([0, 1, 2, 3, 5, 510, 511], np.uint16), (0, 510)).tolist() == [0, 0, 1, 2, 2, 255, 255]


def test_values_that_lie_apart_in_memory_are_read():
    values = np.arange(600, dtype=np.int16).reshape(10, 20, 3)[::2, ::-3, 1]
    assert to_levels(values, (0, 599)).tolist() == to_levels(values.copy(), (0, 599)).tolist()


@pytest.mark.parametrize(("dtype", "largest"), [("u2", 65535), ("u4", 2**32 - 1), ("u8", 2**64 - 1)])
def test_dtype_is_the_range_of_unsigned_integers(dtype, largest):
    assert bounds(np.dtype(dtype), "dtype") == (0, largest)
    assert to_levels(np.array([0, largest // 2, largest], dtype), "dtype").tolist() in ([0, 127, 255], [0, 128, 255])


def test_values_far_outside_are_clipped_without_a_warning():
    values = np.array([-1e308, 1e308, np.finfo(np.float64).max])
    assert to_levels(values, (0, 1e-3)).tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("values", "stated", "message"),
    [
        (np.zeros(3, np.uint16), None, r"16 bits per channel \(uint16\); state their range, as in --range 0 4095, or"),
        (np.zeros(3, np.float32), None, r"32 bits per channel \(float32\); state their range"),
        (np.zeros(3, np.float32), "dtype", "--range dtype is for unsigned integers, and these are float32; state two"),
        (np.zeros(3, np.int16), "dtype", "and these are int16"),
        (np.zeros(3, bool), (0, 1), "values of bool; an image is of integers or floats"),
        (np.zeros(3, np.complex64), (0, 1), "values of complex64"),
        (np.array([0, np.nan], np.float32), (0, 1), "some values are not finite"),
        (np.array([0, np.inf]), (0, 1), "some values are not finite"),
    ],
)
def test_what_has_no_range_is_refused(values, stated, message):
    with pytest.raises(BadImage, match=message):
        to_levels(values, stated)


@pytest.mark.parametrize("stated", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_is_two_finite_numbers(stated):
    with pytest.raises(ValueError, match=r"--range must be dtype, or two finite numbers, the smaller one first, got"):
        refuse_range(stated)

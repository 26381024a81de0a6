"""Rows of values: where they start, and how far they are aligned, on which the width of loads and stores depends."""

import math

import triton
import triton.language as tl
from torch import Tensor

_MAX_ALIGNMENT = 8  # values: a vector of 16 bytes in 16-bit types


def with_contiguous_rows(rows: Tensor) -> Tensor:
    return rows if rows.shape[-1] <= 1 or rows.stride(-1) == 1 else rows.contiguous()


def row_strides(rows: Tensor) -> tuple[int, ...]:
    """Return the strides of [..., P] but the last; 0 of a dimension of size 1, whose stride may be any number."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(rows.shape[:-1], rows.stride()[:-1], strict=True))


def alignment(*rows: Tensor) -> int:
    """Return the greatest power of two up to 8 that divides the length of all rows [..., P] and their start, in values.

    Triton itself asks of an argument only whether 16 divides it: rows of 588 values would be read one by one.
    """
    starts = [x.data_ptr() // x.element_size() for x in rows]
    strides = [stride for x in rows for stride in row_strides(x)]
    return math.gcd(_MAX_ALIGNMENT, *(x.shape[-1] for x in rows), *starts, *strides)


@triton.jit
def row_starts(rows, strides, image, token, ALIGNMENT: tl.constexpr):
    """Return a pointer to each row; image and token are int64, any shape."""
    starts = rows + image * strides[0] + token * strides[1]
    # Set on a kernel's argument itself, the compiler ignores such a hint.
    return tl.multiple_of(starts, ALIGNMENT * (rows.dtype.element_ty.primitive_bitwidth // 8))

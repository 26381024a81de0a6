"""Composite kernels: those made of torch operations, in Python.

What a kernel calls is not visible from outside the dispatcher. So the tracker of allocations runs the Python of a
composite kernel in place of the op, and sees its buffers.
"""

from collections.abc import Callable
from typing import Any

import torch

_KERNELS: dict[torch._ops.OpOverload, Callable[..., Any]] = {}


def add(overload: torch._ops.OpOverload, kernel: Callable[..., Any]) -> None:
    """Enter the Python of an op's kernel."""
    _KERNELS[overload] = kernel


def kernel_of(overload: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """Return the Python of an op's kernel; None where the kernel is no composite."""
    return _KERNELS.get(overload)

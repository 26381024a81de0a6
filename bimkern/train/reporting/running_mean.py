"""The mean of scalars on a device, without waiting for the device at every one."""

import math

from torch import Tensor


class RunningMean:
    """Sum scalars on their device; only take() waits for it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Add a float tensor of one element."""
        self._sum = value.double() if self._sum is None else self._sum + value
        self._count += 1

    def take(self) -> float:
        """Return the mean, NaN if nothing was added, and reset."""
        mean = math.nan if self._sum is None else self._sum.item() / self._count
        self.clear()
        return mean

    def clear(self) -> None:
        self._sum, self._count = None, 0

"""The mean of scalars that are on a device, read once."""

import math

from torch import Tensor


class RunningMean:
    """Add up scalars where they are; nothing waits for the device until the mean is taken."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Add a float tensor of one element."""
        self._sum = value.double() if self._sum is None else self._sum + value
        self._count += 1

    def take(self) -> float:
        """Return the mean of what was added, NaN if nothing was, and begin anew."""
        mean = math.nan if self._sum is None else self._sum.item() / self._count
        self.clear()
        return mean

    def clear(self) -> None:
        self._sum, self._count = None, 0

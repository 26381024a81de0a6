"""Schedules: learning rates as functions of progress in [0, 1]."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up from zero, then half a cosine down to a floor.

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5; He et al. 2022 (MAE), table 8 for warm-up and decay.
    """

    warmup: float  # share of the run
    final: float = 0.0  # factor of the peak at the end

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"Cosine: warmup must be in [0, 1), a share of the run, got {self.warmup}")

    def factor(self, progress: float) -> float:
        """Return what the peak learning rate is multiplied with."""
        if progress < self.warmup:
            return progress / self.warmup
        position = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * position))

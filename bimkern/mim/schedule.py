"""Schedules: what changes in the course of a run, as functions of progress in [0, 1].

A schedule says what the peak learning rate is multiplied with, for every unit of the encoder where it tells them apart
(0 is the embedding, i the i-th of `depth` blocks) and for the heads that read it, and how many units, from the first
on, learn no more. A head stops with the unit that it reads.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple


class Unit(NamedTuple):
    """A unit of the encoder, or the heads that read it."""

    number: int
    head: bool = False


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up from zero, then half a cosine down to a floor.

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5; He et al. 2022 (MAE), table 8 for warm-up and decay.
    """

    warmup: float  # share of the run
    final: float = 0.0  # factor of the peak at the end
    per_unit: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"Cosine: warmup must be in [0, 1), a share of the run, got {self.warmup}")

    def frozen_units(self, progress: float, depth: int) -> int:
        return 0

    def factor(self, progress: float, unit: int = 0, depth: int = 1, *, head: bool = False) -> float:
        """Return what the peak learning rate is multiplied with; the same for all units."""
        if progress < self.warmup:
            return progress / self.warmup
        position = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * position))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Linear warm-up from zero, then the peak, multiplied with gamma at every milestone.

    Source: Xie et al. 2022 (SimMIM), for 800 epochs; Guo et al. 2022 (FastMIM), for Swin-L.
    """

    warmup: float  # share of the run
    milestones: tuple[float, ...]  # shares of the run, warm-up included
    gamma: float = 0.1
    per_unit: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"Step: warmup must be in [0, 1), a share of the run, got {self.warmup}")
        if not all(a < b for a, b in pairwise((self.warmup, *self.milestones, 1.0))):
            raise ValueError(f"Step: milestones must rise between warmup={self.warmup} and 1, got {self.milestones}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"Step: gamma must be in (0, 1), got {self.gamma}")

    def frozen_units(self, progress: float, depth: int) -> int:
        return 0

    def factor(self, progress: float, unit: int = 0, depth: int = 1, *, head: bool = False) -> float:
        """Return what the peak learning rate is multiplied with; the same for all units."""
        if progress < self.warmup:
            return progress / self.warmup
        return self.gamma ** sum(milestone <= progress for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class FreezeOut:
    """Units stop learning one after the other, the first ones first, each at the end of its own cosine.

    Unit i of n learns for a share ((t0 + (1 - t0) * i / n) ** power) of the run after warm-up. Nothing has to be saved
    or undone: what is frozen follows from the progress alone.

    Source: Brock et al. 2017 (FreezeOut), sections 2 and 3; ViTFreeze (Topcuoglu & Akbas 2023), section 3, for units,
    power and warm-up, and for heads, which keep the rate of the method that is frozen. The published program differs:
    it warms every unit up to the common rate, from where it jumps to its own (warmup_to "common"), and gives heads the
    rate of the unit that they read (heads "unit").
    """

    warmup: float  # share of the run, in which nothing is frozen
    t0: float = 0.8  # before the power
    power: int = 3
    rate: Literal["scaled", "unscaled", "global"] = "scaled"  # "scaled": a unit that learns shortly learns faster
    warmup_to: Literal["own", "common"] = "own"
    heads: Literal["global", "unit"] = "global"  # the rate of heads, until they stop
    final: float = 0.0  # of the one cosine of "global" rates and heads, as in Cosine
    per_unit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"FreezeOut: warmup must be in [0, 1), a share of the run, got {self.warmup}")
        if not 0 < self.t0 <= 1:
            raise ValueError(f"FreezeOut: t0 must be in (0, 1], got {self.t0}")
        if self.power < 1:
            raise ValueError(f"FreezeOut: power must be at least 1, got {self.power}")

    def share(self, unit: int, depth: int) -> float:
        """Return for what share of the run after warm-up a unit learns."""
        return (self.t0 + (1 - self.t0) * unit / depth) ** self.power

    def frozen_units(self, progress: float, depth: int) -> int:
        """Return how many units, from the first on, have come to their end."""
        elapsed = (progress - self.warmup) / (1 - self.warmup)
        return sum(elapsed > self.share(unit, depth) for unit in range(depth + 1))

    def factor(self, progress: float, unit: int = 0, depth: int = 1, *, head: bool = False) -> float:
        """Return what the peak learning rate is multiplied with; it is zero for frozen units and their heads."""
        share, common = self.share(unit, depth), self.rate == "global" or (head and self.heads == "global")
        peak = 1 / share if self.rate == "scaled" and not common else 1.0
        if progress < self.warmup:
            return (peak if self.warmup_to == "own" else 1.0) * progress / self.warmup
        elapsed = (progress - self.warmup) / (1 - self.warmup)
        if elapsed > share:
            return 0.0
        if common:
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * elapsed))
        return peak * 0.5 * (1 + math.cos(math.pi * elapsed / share))


Schedule = Cosine | Step | FreezeOut

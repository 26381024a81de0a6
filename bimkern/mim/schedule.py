"""Schedules: what changes over a run, as functions of progress in [0, 1].

A schedule gives the factor of the peak learning rate, where need be for every layer group of the encoder (0 is the
embedding, i the i-th of `depth` layers) and for the heads that read it, and how many groups, from the first on, have
stopped learning. A head stops with the group that it reads.

What a schedule gives in epochs, or as a learning rate, becomes a share or a factor once a run says how long it is and
how high its peak: resolve().
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch

from bimkern import pieces

RATES = (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)  # least and largest peak: float32 holds it
FreezeRate = Literal["scaled", "unscaled", "global"]


class LayerGroup(NamedTuple):
    """The parameters of a layer of the encoder, or those of the heads that read it."""

    number: int
    head: bool = False


class Schedule(Protocol):
    """A frozen dataclass that gives the learning rates of a run."""

    @property
    def per_group(self) -> bool:
        """Whether layer groups differ."""

    def frozen_groups(self, progress: float, depth: int) -> int:
        """Return how many groups, from the first on, have stopped learning."""

    def factor(self, progress: float, group: int = 0, depth: int = 1, *, head: bool = False) -> float:
        """Return the factor of the peak learning rate for a group or, with head, the heads that read it."""


@runtime_checkable
class DependsOnRun(Protocol):
    """A schedule with a number in epochs, or a learning rate."""

    def resolved(self, epochs: float, peak_lr: float) -> Schedule:
        """Return it for a run of so many epochs, with this peak learning rate, in shares and factors alone."""


def resolve(schedule: Schedule, epochs: float, peak_lr: float) -> Schedule:
    """Return what a schedule is in a run of so many epochs, with this peak learning rate."""
    return schedule.resolved(epochs, peak_lr) if isinstance(schedule, DependsOnRun) else schedule


@dataclass(frozen=True, kw_only=True)
class WarmUp(ABC):
    """Linear warm-up from zero. One in epochs stays as long in a longer run, and takes all of a shorter one."""

    warmup: float = 0.0  # share of the run
    warmup_epochs: float | None = None  # in place of the share
    per_group: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name, given = type(self).__name__, self.warmup_epochs
        if not 0 <= self.warmup <= 1:
            raise ValueError(
                f"{name}: warmup must be in [0, 1], a share of the run, got {self.warmup}; epochs are warmup_epochs"
            )
        if given is not None and not 0 <= given < math.inf:
            raise ValueError(f"{name}: warmup_epochs must be at least 0 and finite, got {given}")
        if given is not None and self.warmup:
            raise ValueError(f"{name}: give warmup or warmup_epochs, got {self.warmup} and {given}")

    def resolved(self, epochs: float, peak_lr: float) -> Self:
        if self.warmup_epochs is None:
            return self
        return replace(self, warmup=min(self.warmup_epochs / epochs, 1.0), warmup_epochs=None)

    def frozen_groups(self, progress: float, depth: int) -> int:
        return 0

    def factor(self, progress: float, group: int = 0, depth: int = 1, *, head: bool = False) -> float:
        """Return the factor of the peak learning rate for a group or, with head, the heads that read it."""
        elapsed = self._elapsed(progress)
        if elapsed < 0:
            return self._warmup_peak(group, depth, head) * progress / self.warmup
        return self._after_warmup(progress, elapsed, group, depth, head)

    def _warmup_peak(self, group: int, depth: int, head: bool) -> float:
        return 1.0

    @abstractmethod
    def _after_warmup(self, progress: float, elapsed: float, group: int, depth: int, head: bool) -> float: ...

    def _elapsed(self, progress: float) -> float:
        """Return the share of the run after warm-up that is done; below 0 in warm-up."""
        if self.warmup_epochs is not None:
            raise ValueError(f"{type(self).__name__}: warmup_epochs has no meaning without a run; resolve() it first")
        return (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else progress - 1


def _cosine(elapsed: float, final: float = 0.0) -> float:
    """Fall from 1 to final along half a cosine."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * elapsed))


@dataclass(frozen=True, kw_only=True)
class _Falling(WarmUp):
    """Warm-up, then a fall to a floor."""

    final: float = 0.0  # factor of the peak at the end
    final_lr: float | None = None  # in place of the factor: a learning rate, whatever the peak

    def __post_init__(self) -> None:
        super().__post_init__()
        name, given = type(self).__name__, self.final_lr
        if not 0 <= self.final < math.inf:
            raise ValueError(f"{name}: final must be at least 0 and finite, got {self.final}")
        if given is not None and not 0 <= given <= RATES[1]:
            raise ValueError(f"{name}: final_lr must be at least 0 and at most {RATES[1]:.1e}, got {given}")
        if given is not None and self.final:
            raise ValueError(f"{name}: give final or final_lr, got {self.final} and {given}")

    def resolved(self, epochs: float, peak_lr: float) -> Self:
        schedule = super().resolved(epochs, peak_lr)
        return schedule if self.final_lr is None else replace(schedule, final=self.final_lr / peak_lr, final_lr=None)

    def _fallen(self, elapsed: float) -> float:
        if self.final_lr is not None:
            raise ValueError(f"{type(self).__name__}: final_lr has no meaning without a run; resolve() it first")
        return _cosine(elapsed, self.final)


@pieces.register(Schedule)
@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Linear warm-up from zero, then half a cosine down to a floor.

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5; He et al. 2022 (MAE), table 8 for warm-up and decay.
    """

    def _after_warmup(self, progress: float, elapsed: float, group: int, depth: int, head: bool) -> float:
        return self._fallen(elapsed)


@pieces.register(Schedule)
@dataclass(frozen=True, kw_only=True)
class MultiStep(WarmUp):
    """Linear warm-up from zero, then the peak, multiplied by gamma at every milestone.

    Source: Xie et al. 2022 (SimMIM), for 800 epochs; Guo et al. 2022 (FastMIM), for Swin-L.
    """

    milestones: tuple[float, ...]  # shares of the run, warm-up included; one within it counts at its end
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(a < b for a, b in pairwise((0.0, *self.milestones, 1.0))):
            raise ValueError(f"MultiStep: milestones must rise within (0, 1), got {self.milestones}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"MultiStep: gamma must be in (0, 1), got {self.gamma}")

    def _after_warmup(self, progress: float, elapsed: float, group: int, depth: int, head: bool) -> float:
        return self.gamma ** sum(milestone <= progress for milestone in self.milestones)


@pieces.register(Schedule)
@dataclass(frozen=True, kw_only=True)
class FreezeOut(_Falling):
    """Layer groups stop learning one after the other, the first ones first, each at the end of its own cosine.

    Group i of n learns for a share ((t0 + (1 - t0) * i / n) ** power) of the run after warm-up. Nothing has to be saved
    or undone: what is frozen follows from the progress alone. Batch norms of frozen layers use what they have learned.

    Source: Brock et al. 2017 (FreezeOut), sections 2 and 3; ViTFreeze (Topcuoglu & Akbas 2023), section 3, for groups,
    power and warm-up, and for heads, which keep the rate of the method that is frozen. The published program differs:
    it warms every group up to the common rate, from where it jumps to its own (warmup_to "common"), and gives heads the
    rate of the group that they read (heads "group").
    """

    t0: float = 0.8  # before the power
    power: int = 3
    rate: FreezeRate = "scaled"  # "scaled": a group that learns shortly learns faster
    warmup_to: Literal["own", "common"] = "own"
    heads: Literal["global", "group"] = "global"  # the rate of heads, until they stop; what is "global" has the floor
    per_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.t0 <= 1:
            raise ValueError(f"FreezeOut: t0 must be in (0, 1], got {self.t0}")
        if self.power < 1:
            raise ValueError(f"FreezeOut: power must be at least 1, got {self.power}")

    def share(self, group: int, depth: int) -> float:
        """Return for what share of the run after warm-up a group learns."""
        return (self.t0 + (1 - self.t0) * group / depth) ** self.power

    def frozen_groups(self, progress: float, depth: int) -> int:
        elapsed = self._elapsed(progress)
        return sum(elapsed > self.share(group, depth) for group in range(depth + 1))

    def _warmup_peak(self, group: int, depth: int, head: bool) -> float:
        return self._peak(group, depth, head) if self.warmup_to == "own" else 1.0

    def _after_warmup(self, progress: float, elapsed: float, group: int, depth: int, head: bool) -> float:
        share = self.share(group, depth)
        if elapsed > share:
            return 0.0
        if self._is_common(head):
            return self._fallen(elapsed)
        return self._peak(group, depth, head) * _cosine(elapsed / share)

    def _peak(self, group: int, depth: int, head: bool) -> float:
        return 1 / self.share(group, depth) if self.rate == "scaled" and not self._is_common(head) else 1.0

    def _is_common(self, head: bool) -> bool:
        """Return whether the rate is that of the whole run."""
        return self.rate == "global" or (head and self.heads == "global")

"""Where the memory of a run's steps comes from: torch's allocator, or an arena that plans it."""

import logging
from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from bimkern.arena import Arena, Plan, unusable
from bimkern.mim.flow import Scope
from bimkern.train.config import ArenaName, ConfigError

logger = logging.getLogger("bimkern.train")

# Of every kind of work: in the first, optimizer state and tables are born; in the second, live activations are counted.
_UNPLANNED_STEPS = 2


class StepMemory(Protocol):
    def scope(self, work: Hashable) -> Scope:
        """Begin a step; work names what its allocations follow from, and changes when they do."""

    def plan(self) -> Plan | None:
        """Return the plan in force, if there is one."""

    def record(self) -> dict[str, Any]:
        """Return numbers for the metrics; None for what is not known."""


class TorchMemory:
    """torch's allocator."""

    def scope(self, work: Hashable) -> Scope:
        return nullcontext

    def plan(self) -> Plan | None:
        return None

    def record(self) -> dict[str, Any]:
        return dict.fromkeys(_NUMBERS)


class PlannedMemory:
    """An arena, which records a step, plans it and gives all later ones the same places.

    Other work gets a new arena: the memory of the old plan is given back before that of the new one is asked for.
    """

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._plan: Plan | None = None
        self._work: Hashable = None
        self._steps_begun = 0
        self._num_plans = 0  # of earlier arenas

    def scope(self, work: Hashable) -> Scope:
        if work != self._work:
            self._forget()
            self._work, self._steps_begun = work, 0
        self._steps_begun += 1
        if self._steps_begun <= _UNPLANNED_STEPS:
            return nullcontext
        if self._arena is None:
            self._arena = Arena()
        return self._arena.scope

    def plan(self) -> Plan | None:
        if self._plan is None and self._arena is not None and self._arena.stats().plans:
            self._plan = self._arena.plan()
            logger.info("planned %d bytes, %.2f %% above the bound", self._plan.peak, 100 * self._plan.gap)
        return self._plan

    def record(self) -> dict[str, Any]:
        plan = self.plan()
        if self._arena is None or plan is None:
            return dict.fromkeys(_NUMBERS) | {"plans": self._num_plans}
        stats = self._arena.stats()
        numbers = (
            *(plan.peak, plan.gap, stats.planned_reach, stats.fallback_peak),
            *(stats.upstream_calls_last_step, stats.diverged_steps, self._num_plans + stats.plans),
        )
        return dict(zip(_NUMBERS, numbers, strict=True))

    def _forget(self) -> None:
        if self._arena is not None:
            self._num_plans += self._arena.stats().plans
        self._arena = self._plan = None


# Of the last step that was whole when they are asked for, but for the counts of steps and plans.
_NUMBERS = (
    *("planned_bytes", "plan_gap", "planned_peak_bytes", "unplanned_peak_bytes"),
    *("upstream_calls", "diverged_steps", "plans"),
)


def choose(name: ArenaName, device: torch.device, *, compiled: bool) -> StepMemory:
    """Return the memory that --arena names; auto plans where that can be done.

    Raises:
        ConfigError: there is no arena here.
    """
    reason = unusable()
    if device.type != "cpu":
        reason = f"it plans the memory of a CPU so far, not of {device.type}"
    elif compiled:
        reason = "what --compile makes allocates memory differently while it is still compiling; use one of them"
    if name == "plan" and reason is not None:
        raise ConfigError(f"--arena plan: {reason}")
    return PlannedMemory() if name != "off" and reason is None else TorchMemory()

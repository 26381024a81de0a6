"""The allocator of a run's steps: torch's own, a pool of torch's, or an arena that plans them."""

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch

from bimkern.arena import Arena, ArenaUnavailable, Plan, install, unusable
from bimkern.mim.flow import ScopeFactory
from bimkern.train.config.run import ArenaName, ConfigError

logger = logging.getLogger("bimkern.train")

# After every change of work: the first step allocates optimizer state and tables, the second counts live activations.
_UNPLANNED_STEPS = 2


class StepMemory(Protocol):
    def scope(self, work: Hashable) -> ScopeFactory:
        """Begin a step; `work` is what determines its allocations, and differs when they do."""

    def plan(self) -> Plan | None:
        """Return the current plan, if there is one."""

    def record(self) -> dict[str, Any]:
        """Return numbers for the metrics; None for unknown ones."""


class TorchMemory:
    """torch's allocator."""

    def scope(self, work: Hashable) -> ScopeFactory:
        return nullcontext

    def plan(self) -> Plan | None:
        return None

    def record(self) -> dict[str, Any]:
        return dict.fromkeys(_NUMBERS)


class PlannedMemory:
    """An arena: it records a step, plans it, and places the allocations of later steps at the same offsets.

    Other work gets a new arena; the memory of the old plan is released before the new one is allocated.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arena: Arena | None = None
        self._plan: Plan | None = None
        self._work: Hashable = None
        self._steps_begun = 0
        self._plans = 0  # of this arena, the last of which is kept here
        self._num_plans = 0  # of earlier arenas

    def scope(self, work: Hashable) -> ScopeFactory:
        if work != self._work:
            self._forget()
            self._work, self._steps_begun = work, 0
        self._steps_begun += 1
        if self._steps_begun <= _UNPLANNED_STEPS:
            return nullcontext
        if self._arena is None:
            self._arena = Arena(self._device)
        return self._arena.scope

    @property
    def arena(self) -> Arena | None:
        """The arena of the work that is under way; None before it has one."""
        return self._arena

    def plan(self) -> Plan | None:
        plans = 0 if self._arena is None else self._arena.stats().plans
        if self._arena is not None and plans != self._plans:  # also where steps have changed, and were planned again
            self._plan, self._plans = self._arena.plan(), plans
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
            *(stats.reserved_bytes, stats.planned_bytes, None),
        )
        return dict(zip(_NUMBERS, numbers, strict=True))

    def _forget(self) -> None:
        if self._arena is not None:
            self._num_plans += self._arena.stats().plans
        self._arena = self._plan = None
        self._plans = 0


class PooledMemory:
    """A torch.cuda.MemPool: torch's own allocator, with segments that hold only tensors of the steps.

    Other work gets a new pool; the memory of the old one is released. It has not yet run on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: torch.cuda.MemPool | None = None
        self._work: Hashable = None
        self._steps_begun = 0

    def scope(self, work: Hashable) -> ScopeFactory:
        if work != self._work:
            self._pool = None  # releases its empty segments
            self._work, self._steps_begun = work, 0
        self._steps_begun += 1
        if self._steps_begun <= _UNPLANNED_STEPS:
            return nullcontext
        if self._pool is None:
            torch.cuda.empty_cache()  # releases what earlier steps cached outside of it
            self._pool = torch.cuda.MemPool()
        return self._in_pool

    def plan(self) -> Plan | None:
        return None

    def record(self) -> dict[str, Any]:
        if self._pool is None:
            return dict.fromkeys(_NUMBERS)
        segments = self._pool.snapshot()
        return dict.fromkeys(_NUMBERS) | {
            "reserved_bytes": sum(segment["total_size"] for segment in segments),
            "allocated_bytes": sum(segment["allocated_size"] for segment in segments),
            "segments": len(segments),
        }

    @contextmanager
    def _in_pool(self, name: str) -> Iterator[None]:
        # A pool is entered by a thread, and backward of a GPU's tensors runs on another. torch's documentation of both,
        # set_multithreading_enabled and use_mem_pool, says so; the first has it run on the calling thread instead.
        assert self._pool is not None
        with torch.autograd.set_multithreading_enabled(False), torch.cuda.use_mem_pool(self._pool, self._device):
            yield


# Of the last step that was whole when they are asked for, but for the counts of steps and plans; and what is held when
# they are asked for, between two steps: reserved for steps, of this alive, and the driver's allocations that it is in.
_NUMBERS = (
    *("planned_bytes", "plan_gap", "planned_peak_bytes", "unplanned_peak_bytes"),
    *("upstream_calls", "diverged_steps", "plans"),
    *("reserved_bytes", "allocated_bytes", "segments"),
)


def prepare(name: ArenaName, device: torch.device, *, compiled: bool) -> None:
    """Make sure that the memory that --arena names can be had; to be called before anything touches a GPU.

    Raises:
        ConfigError: it cannot; the message is the reason.
    """
    reason = _why_not(name, device, compiled=compiled)
    if reason is None and name == "plan" and device.type == "cuda":
        try:
            install(device)
        except ArenaUnavailable as error:
            reason = str(error)
    if reason is not None:
        raise ConfigError(f"--arena {name}: {reason}")


def choose(name: ArenaName, device: torch.device, *, compiled: bool, gathers: bool = False) -> StepMemory:
    """Return the memory that --arena names.

    auto plans on a CPU. On a GPU it takes the pool, which is torch's own allocator: a plan was not measured on one yet.
    It takes neither with --compile, which does not go with a plan and was not tried with the pool, nor where layers are
    gathered from other ranks, in memory that outlives a step.

    Raises:
        ConfigError: it cannot be had here.
    """
    if name == "auto":
        name = "plan" if device.type == "cpu" else "pool"
        if compiled or gathers:
            name = "off"
        elif (reason := _why_not(name, device, compiled=compiled)) is not None:
            logger.warning("--arena auto: torch's allocator serves the steps: %s", reason)
            name = "off"
    prepare(name, device, compiled=compiled)
    if name == "off":
        return TorchMemory()
    return PlannedMemory(device) if name == "plan" else PooledMemory(device)


def _why_not(name: ArenaName, device: torch.device, *, compiled: bool) -> str | None:
    if name == "plan":
        if compiled:
            return "what --compile makes allocates memory differently while it is still compiling; use one of them"
        return unusable(device.type)
    if name == "pool":
        if device.type != "cuda":
            return f"torch's allocator on a {device.type.upper()} has no pools; use plan or off"
        if (backend := torch.cuda.get_allocator_backend()) != "native":
            return f"torch's {backend} allocator, which this process uses, has no pools; use off"
    return None

"""The block arena: activation memory that is planned once and recycled after every scope.

A step of training is a row of scopes, and ends when the name of one comes again. The first step passes, since it is
unlike the others (optimizer state is born); the second is recorded; from the third on its plan is replayed: allocations
on the thread that opens the scopes take a place that was known before. What does not fit the plan is served by torch's
own allocator and counted; when two steps in a row do not fit, the second is recorded and planned anew.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bimkern.arena._native import native
from bimkern.arena.outlived import Outlived, describe
from bimkern.arena.plan import Plan, from_native, to_native

logger = logging.getLogger("bimkern.arena")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What an arena counted so far. Bytes of the plan are rounded up as planned, others as asked for."""

    steps: int  # that have ended
    diverged_steps: int  # of these, under a plan that did not fit
    plans: int  # put in force
    refused_plans: int  # that got no memory: the run goes on without a plan

    planned: int  # allocations served by a plan
    smaller: int  # of these, in a block that is larger than needed
    held: int  # allocations of what lives into the next step, not served since earlier ones are still held
    late: int  # other allocations not served since their memory was still in use
    unplanned: int  # allocations of scopes without a plan, or after the work left it
    elsewhere: int  # allocations of other threads while a scope was open
    elsewhere_bytes: int
    outlived: int  # blocks that lived on after their scope, against the plan
    overruns: int  # debug mode: writes behind the end of a block

    upstream_calls: int  # allocations from torch's allocator, regions included
    upstream_calls_last_step: int  # of these, in the last step that has ended

    live_blocks: int  # now
    planned_bytes: int
    fallback_bytes: int

    planned_live_peak: int  # in the last step: the largest sum of live planned bytes,
    planned_reach: int  # the highest end in both regions together,
    fallback_peak: int  # and the largest sum of live bytes of the fallback
    reserved_bytes: int  # the regions, and those of earlier plans where something still lives


class Arena:
    """Memory for what a training step allocates inside its scopes, on the thread that opens them.

    Tensors may outlive their scope, and the arena: their memory stays until they are freed.

    Args:
        device: the CPU.
        debug: poison freed and fresh memory with NaN, look for writes behind the end of a block, and log what outlived
            its scope with the name of the tensor. Slow.

    Raises:
        ArenaUnavailable: the compiled part is missing, or was built for another torch.
        ValueError: there is no arena for this device.
    """

    def __init__(self, device: torch.device | str = "cpu", *, debug: bool = False) -> None:
        self.device = torch.device(device)
        if self.device.type != "cpu":
            raise ValueError(f"Arena: device must be cpu, got {self.device}")
        self.debug = debug
        self._native = native().HostArena(debug)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Serve the allocations of this thread until the scope is left; scopes follow each other and never nest.

        Raises:
            ArenaError: another scope is open, or another thread opened the first one; in debug mode also when leaving,
                if something wrote behind the end of a block.
        """
        self._native.open(name)
        try:
            yield
        except BaseException:
            self._native.close(name, True)
            raise
        self._native.close(name, False)
        if self.debug and self._native.has_plan():
            for block in self.outlived():
                logger.warning("%s", block)

    def plan(self) -> Plan:
        """Return the plan in force, or that of the last step if this was the recorded one.

        Raises:
            ArenaError: no whole step was recorded yet.
        """
        return from_native(self._native.plan())

    def adopt(self, plan: Plan) -> None:
        """Put a plan in force from the next step on, as one that was saved by an earlier run.

        Raises:
            ArenaError: it was made for another alignment, or with debug mode set differently.
        """
        self._native.adopt(to_native(plan))

    def stats(self) -> Stats:
        return Stats(**self._native.statistics())

    def outlived(self) -> list[Outlived]:
        """Name what outlived the scope that was left last, in debug mode only; without a plan, all survivors."""
        return describe(self._native.outlived())

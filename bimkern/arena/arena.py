"""The arena: activation memory that is planned once and reused by every scope.

A training step is a sequence of scopes, and ends when the name of one repeats. The first step runs unrecorded, since it
differs from the others (it creates optimizer state); the second is recorded; from the third on its plan is replayed,
which gives every allocation of the owner a known offset. What does not fit the plan is served by torch's own allocator,
on a GPU by the driver's stream-ordered pool, and counted. When two steps in a row do not fit, the second is recorded
and replanned.

The owner of an arena opens its scopes: on the CPU a thread; on a GPU a stream, whatever threads use it, such as
autograd's. A tensor that another stream uses needs `record_stream`, as with torch's own allocator: the owner then waits
for that stream before it reuses the memory. It must be a stream of the same GPU. The GPU part has not run on one yet.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bimkern.arena import device as gpu
from bimkern.arena._native import native
from bimkern.arena.errors import ArenaError
from bimkern.arena.leaks import Leak, describe
from bimkern.arena.plan import Plan, from_native, to_native

logger = logging.getLogger("bimkern.arena")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What an arena counted so far. Bytes of the plan are rounded up as planned, others as requested."""

    steps: int  # that have ended
    diverged_steps: int  # of these, under a plan that did not fit
    plans: int  # activated
    refused_plans: int  # rejected for lack of memory: the run continues without a plan

    planned: int  # allocations served by a plan
    smaller: int  # of these, at an offset planned for a larger one
    still_in_use: int  # allocations that live into the next step, not served since two earlier ones are still in use
    late: int  # other allocations not served since their memory was not freed yet
    unplanned: int  # allocations in scopes without a plan, or after the work left it
    other_allocations: int  # by other threads (CPU) or on other streams (GPU), while a scope was open
    other_bytes: int
    leaked: int  # allocations that were live after their scope, against the plan
    overruns: int  # debug mode: writes past the end of an allocation
    unsynchronized_frees: int  # debug mode: while a stream was current that neither owns the memory nor was recorded

    upstream_calls: int  # allocations from torch's allocator or the driver's pool, regions included
    upstream_calls_last_step: int  # of these, in the last step that has ended

    live_allocations: int  # now
    planned_bytes: int
    fallback_bytes: int

    planned_live_peak: int  # in the last step: the largest sum of live planned bytes,
    planned_reach: int  # the highest end in the region,
    fallback_peak: int  # and the largest sum of live bytes of the fallback
    reserved_bytes: int  # the region, and those of earlier plans with live allocations


class Arena:
    """Memory for what a training step allocates inside its scopes, on the thread or the stream that opens them.

    Tensors may outlive their scope, and the arena: their memory stays until they are freed.

    Args:
        device: the CPU, or a GPU. The first arena on a GPU replaces torch's CUDA allocator for the whole process: make
            it before anything else touches a GPU. torch then has no memory statistics; use `held_bytes`.
        debug: fill freed and fresh memory with NaN, detect writes past the end of an allocation, and log tensors that
            leak from their scope, by name. On a GPU, also report a free while a stream is current that neither owns the
            memory nor was recorded by `record_stream`. A side stream's use is missed if the owner frees. Slow.

    Raises:
        ArenaUnavailable: the compiled part is missing, or was built for another torch or without CUDA; there is no
            GPU; or torch's own allocator has served a GPU already.
        ArenaError: on this GPU memory was freed that was not live, and no scope has reported it yet.
        ValueError: there is no arena for this device.
    """

    def __init__(self, device: torch.device | str = "cpu", *, debug: bool = False) -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"Arena: device must be cpu or cuda, got {self.device}")
        self.debug = debug
        if self.device.type == "cpu":
            self._native = native().HostArena(debug)
        else:
            self._native = native().DeviceArena(gpu.install(self.device), debug)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Serve the allocations of this thread, on a GPU those on its current stream, until the scope is left.

        Scopes follow each other and never nest.

        Raises:
            ArenaError: another scope is open, or another thread or stream opened the first one. On a GPU also, when
                entering or leaving, if memory was freed that was not live. In debug mode also when leaving, after a
                write past the end of an allocation or an unsynchronized free. An exception that leaves the scope is
                re-raised, with the arena's message as a note.
        """
        self._native.open(name)
        try:
            yield
        except BaseException as error:
            try:
                self._native.close(name, True)
            except ArenaError as misuse:
                error.add_note(str(misuse))
            raise
        self._native.close(name, False)
        if self.debug and self._native.has_plan():
            for leak in self.leaks():
                logger.warning("%s", leak)

    def plan(self) -> Plan:
        """Return the active plan, or that of the last step if it was the recorded one.

        Raises:
            ArenaError: no whole step was recorded yet.
        """
        return from_native(self._native.plan())

    def adopt(self, plan: Plan) -> None:
        """Activate a plan with the next step, such as one that an earlier run saved.

        Raises:
            ArenaError: it was made for another alignment, or with debug mode set differently.
        """
        self._native.adopt(to_native(plan))

    def stats(self) -> Stats:
        """Return what the arena has counted since it was made."""
        return Stats(**self._native.statistics())

    def leaks(self) -> list[Leak]:
        """Describe what leaked from the scope that was left last, in debug mode only; without a plan, all survivors."""
        return describe(self._native.leaks())

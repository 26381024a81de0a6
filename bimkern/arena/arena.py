"""The block arena: activation memory that is planned once and recycled after every scope.

A step of training is a row of scopes, and ends when the name of one comes again. The first step passes, since it is
unlike the others (optimizer state is born); the second is recorded; from the third on its plan is replayed: allocations
of their owner take a place that was known before. What does not fit the plan is served by torch's own allocator, on a
GPU by the driver's stream-ordered pool, and counted; when two steps in a row do not fit, the second is recorded and
planned anew.

The owner is who opens the scopes: on the CPU a thread; on a GPU a stream, whatever threads feed it, as the one that
autograd runs backward on. A tensor that another stream uses needs `record_stream`, as with torch's own allocator: the
owner then waits for that stream before it has the memory again. It must be a stream of the same GPU. The part of this
for GPUs never ran on one yet.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bimkern.arena import device as gpu
from bimkern.arena._native import native
from bimkern.arena.errors import ArenaError
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
    elsewhere: int  # allocations of other threads, or on other streams, while a scope was open
    elsewhere_bytes: int
    outlived: int  # blocks that lived on after their scope, against the plan
    overruns: int  # debug mode: writes behind the end of a block
    strayed: int  # debug mode: blocks let go while a stream was current that neither owned them nor was recorded

    upstream_calls: int  # allocations from torch's allocator or the driver's pool, regions included
    upstream_calls_last_step: int  # of these, in the last step that has ended

    live_blocks: int  # now
    planned_bytes: int
    fallback_bytes: int

    planned_live_peak: int  # in the last step: the largest sum of live planned bytes,
    planned_reach: int  # the highest end in both regions together,
    fallback_peak: int  # and the largest sum of live bytes of the fallback
    reserved_bytes: int  # the regions, and those of earlier plans where something still lives


class Arena:
    """Memory for what a training step allocates inside its scopes, on the thread or the stream that opens them.

    Tensors may outlive their scope, and the arena: their memory stays until they are freed.

    Args:
        device: the CPU, or a GPU. The first arena on a GPU replaces torch's CUDA allocator for the whole process: make
            it before anything else touches a GPU. torch's statistics of memory are gone then (`held_bytes` are ours).
        debug: poison freed and fresh memory with NaN, look for writes behind the end of a block, and log what outlived
            its scope with the name of the tensor. On a GPU, compare the stream that is current when a block is let go
            with its owner and those that `record_stream` named: a block that a side stream used, and that is let go on
            its owner, is not seen. Slow.

    Raises:
        ArenaUnavailable: the compiled part is missing, or was built for another torch or without CUDA; there is no
            GPU; or torch's own allocator has served a GPU already.
        ArenaError: on this GPU memory was freed that was not in use, and no scope has told so yet.
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
            ArenaError: another scope is open, or another thread or stream opened the first one; on a GPU also, here or
                when leaving, if memory was freed since that was not in use. In debug mode also when leaving, if
                something wrote behind the end of a block, or one was let go on a stream that was not recorded. When an
                exception leaves the scope, it goes on, with the arena's message as a note.
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
        """Return what was counted since the arena was made."""
        return Stats(**self._native.statistics())

    def outlived(self) -> list[Outlived]:
        """Name what outlived the scope that was left last, in debug mode only; without a plan, all survivors."""
        return describe(self._native.outlived())

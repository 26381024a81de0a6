"""Steps as graphs: every part of a step is captured over the addresses of an arena, and then replayed.

The arena serves captures alone. The first two captures of a step are discarded: the arena records what they
allocate, which is not what the same kernels allocate otherwise. Its plan serves the third, whose graphs are kept.
A capture leaves nothing behind in the arena. So all of its memory is a graph's while it is replayed, and what the next
part or an update reads of it is taken over before the next graph. What a graph reads lies outside, in buffers.

Whatever the host decides is decided at the capture: steps of other work, shapes or dtypes are not replayed. Modules
must hold nothing that changes from step to step, such as a draw of paths: pre-training draws none. Parameters stay
where they are.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bimkern.arena import Arena, Stats
from bimkern.mim.flow import MicroBatch, Part, ScopeFactory, denominators_of, run_part
from bimkern.train.graphs.device import Graph, GraphDevice
from bimkern.train.graphs.fixed import Address, Buffers, Shapes, shapes_of
from bimkern.train.memory.allocator import PlannedMemory, StepMemory

logger = logging.getLogger("bimkern.train")

Prepared = tuple[Sequence[MicroBatch], dict[str, Any]]  # the batches of a step, and options of it

_EDGE = "edge"  # the first scope of a step, without allocations


class Steps(Protocol):
    """How steps are given to the device."""

    def stream(self) -> AbstractContextManager[object]:
        """Make the stream of steps the current one."""

    def prepare(self, batches: Sequence[MicroBatch], memory: StepMemory, work: Hashable) -> Prepared:
        """Begin a step; `work` is what determines its kernels, and differs when they do."""

    def forget(self) -> None:
        """Replay nothing that was captured so far."""


class EagerSteps:
    """One kernel after the other."""

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def prepare(self, batches: Sequence[MicroBatch], memory: StepMemory, work: Hashable) -> Prepared:
        return batches, {"scope": memory.scope(work)}

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class _CapturedPart:
    graph: Graph
    losses: Tensor  # a buffer
    left: list[Tensor]  # the tokens that leave, in the arena's memory
    gradients: list[tuple[nn.Parameter, Tensor]]  # likewise

    def replay(self, tokens: list[Tensor], losses: Tensor) -> None:
        self.graph.replay()
        tokens[:] = self.left
        losses.copy_(self.losses)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


@dataclass
class _Captured:
    """The graphs of steps that are alike; none while the arena has no plan."""

    work: Hashable
    shapes: Shapes
    buffers: Buffers = field(default_factory=Buffers)
    parts: dict[str, _CapturedPart] = field(default_factory=dict)
    ended: bool = False  # the step that was captured, for the arena
    refused: bool = False

    def refuse(self, reason: str) -> None:
        """Have these steps run without graphs."""
        logger.warning("--cuda-graphs: %s; such steps run without graphs", reason)
        self.refused = True
        self.parts.clear()


class GraphedSteps:
    """Replay steps for as long as they are alike.

    A step of other shapes, such as a smaller last batch, runs without graphs; the second in a row has its own captured
    in place of those before. Steps without graphs are served by torch's allocator. So are updates.

    Args:
        device: captures and replays.
    """

    def __init__(self, device: GraphDevice) -> None:
        self._device = device
        self._captured: _Captured | None = None
        self._differed = False  # the last step did, in its shapes
        self._arena: Arena | None = None

    def stream(self) -> AbstractContextManager[object]:
        return self._device.stream()

    def prepare(self, batches: Sequence[MicroBatch], memory: StepMemory, work: Hashable) -> Prepared:
        assert isinstance(memory, PlannedMemory)
        denominators = denominators_of(batches)
        captured = self._alike(memory, work, shapes_of(batches, denominators))
        if captured is None:
            return batches, {"denominators": denominators}
        batches, denominators = captured.buffers.batches(batches, denominators)
        return batches, {"denominators": denominators, "run": self._run}

    def forget(self) -> None:
        self._captured = None

    def _alike(self, memory: PlannedMemory, work: Hashable, shapes: Shapes) -> _Captured | None:
        """Return the graphs of steps that are like this one, which may still be none; None if it is to have no part."""
        captured, differed, self._differed = self._captured, self._differed, False
        if captured is not None and (captured.work, captured.shapes) != (work, shapes):
            if captured.work == work and not differed:
                self._differed = True
                return None
            captured = None
        if captured is None:
            self._captured = self._arena = None  # before the memory that it uses
            captured = _Captured(work, shapes)
        memory.scope((work, shapes))
        self._captured, self._arena = captured, memory.arena
        if self._arena is None or captured.refused:
            return None
        if not captured.ended:
            with self._arena.scope(_EDGE):  # a plan begins with a step: its own memory cannot be captured
                captured.ended = bool(captured.parts)
            if self._arena.stats().refused_plans:
                captured.refuse("there is no memory for the plan of a captured step")
                return None
        return captured

    def _run(self, part: Part, tokens: list[Tensor], losses: Tensor, scope: ScopeFactory) -> None:
        captured = self._captured
        assert captured is not None
        tokens[:] = captured.buffers.tokens(tokens)
        if not captured.refused and part.name not in captured.parts:
            self._capture(captured, part, list(tokens), losses)
        if part.name in captured.parts:
            captured.parts[part.name].replay(tokens, losses)
            part.update()
        else:
            run_part(part, tokens, losses, scope)

    def _capture(self, captured: _Captured, part: Part, tokens: list[Tensor], losses: Tensor) -> None:
        """Capture a part; keep its graph if a plan has served it."""
        assert self._arena is not None
        graph, own, before = self._device.graph(), torch.full_like(losses, torch.nan), self._arena.stats()
        with _named(part), graph.capture(), self._arena.scope(part.name):
            part.gradients(tokens, own)
            left = [Address.of(tensor) for tensor in tokens]
            gradients = [(p, Address.of(p.grad)) for _, p in part.parameters() if p.grad is not None]
            tokens.clear()
            for parameter, _ in gradients:
                parameter.grad = None
        after = self._arena.stats()
        if after.live_allocations != before.live_allocations:
            captured.refuse(f"something of {part.name} leaked from its capture")
        elif after.plans and _unserved(after) != _unserved(before):
            captured.refuse(f"the plan did not serve {part.name} while it was captured")
        elif after.plans:
            found = [(parameter, address.tensor()) for parameter, address in gradients]
            captured.parts[part.name] = _CapturedPart(graph, own, [address.tensor() for address in left], found)


def _unserved(stats: Stats) -> tuple[int, ...]:
    return stats.unplanned, stats.late, stats.still_in_use, stats.smaller


@contextmanager
def _named(part: Part) -> Iterator[None]:
    """Add to an error that a part was being captured."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(f"--cuda-graphs: {part.name} was being captured, which some of its work may not allow")
        raise

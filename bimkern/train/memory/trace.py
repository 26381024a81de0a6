"""The trace of a step: when its storages are allocated and freed, from which bimkern.arena makes a plan."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bimkern.arena import Block, Plan, Scope, make_plan
from bimkern.train.memory.live_bytes import LiveBytes


@dataclass(slots=True)
class Lifetime:
    """The lifetime of a storage; times are ticks of the trace."""

    scope: int | None  # index of the scope that it is allocated in
    batch: int | None  # index of the micro-batch that it is allocated for
    bytes: int
    begin: int
    end: int | None = None  # None: it outlives the step
    accumulated: int | None = None  # when it became the gradient of a parameter


class StepTrace:
    """Record the lifetimes of storages, and the peaks of activations and of accumulated gradients.

    It observes an AllocationTracker.
    """

    def __init__(self) -> None:
        self.live = LiveBytes()
        self.activations: dict[str, int] = {}  # peak of live bytes inside each scope
        self.gradient_peak = 0
        self.outside = 0  # bytes allocated outside of scopes, freed ones included
        self.turns: list[tuple[int, int | None]] = []  # tick and micro-batch at every change of micro-batch
        self.lifetimes: list[Lifetime] = []
        self.scopes: list[Scope] = []  # their blocks are the lifetimes inside scopes, in order
        self.ticks = 0
        self._batch: int | None = None
        self._scope: str | None = None
        self._num_inside = 0  # lifetimes that begin in a scope
        self._gradients: dict[int, int] = {}  # key -> bytes, of accumulated ones
        self._alive: dict[int, Lifetime] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Record a scope."""
        begin, first = self._tick(), self._num_inside
        self._scope, self.activations[name] = name, self.live.now
        try:
            yield
        finally:
            self._scope = None
            self.scopes.append(Scope(name, begin, self._tick(), first, self._num_inside))

    def turn(self, batch: int | None) -> None:
        """Attribute the allocations from now on to a micro-batch."""
        self._batch = batch
        self.turns.append((self._tick(), batch))

    def plan(self, alignment: int) -> Plan:
        """Plan the storages that are allocated inside scopes."""
        return plan_of(self.scopes, self.lifetimes, self.ticks, alignment)

    def allocated(self, key: int, size: int) -> None:
        self.live.allocated(key, size)
        inside = self._scope is not None
        lifetime = Lifetime(len(self.scopes) if inside else None, self._batch, size, self._tick())
        self.lifetimes.append(lifetime)
        self._alive[key] = lifetime
        if self._scope is not None:
            self.activations[self._scope] = max(self.activations[self._scope], self.live.now)
            self._num_inside += 1
        else:
            self.outside += size

    def freed(self, key: int) -> None:
        self.live.freed(key)
        self._gradients.pop(key, None)
        self._alive.pop(key).end = self._tick()

    def accumulated(self, key: int, size: int) -> None:
        self.live.accumulated(key, size)
        self._gradients[key] = size
        lifetime = self._alive.get(key)
        if lifetime is not None and lifetime.accumulated is None:
            lifetime.accumulated = self._tick()
        self.gradient_peak = max(self.gradient_peak, sum(self._gradients.values()))

    def _tick(self) -> int:
        self.ticks += 1
        return self.ticks - 1


def plan_of(scopes: Iterable[Scope], lifetimes: Iterable[Lifetime], ticks: int, alignment: int) -> Plan:
    """Plan the storages that are allocated inside scopes."""
    blocks = [Block(one.scope, one.bytes, one.begin, one.end) for one in lifetimes if one.scope is not None]
    return make_plan(scopes, blocks, ticks=ticks, alignment=alignment)

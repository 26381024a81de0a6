"""The allocations of a step, counted on tensors of any kind, also on fake ones: what bimkern.arena makes a plan of."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimkern.arena import Allocation, Plan, Scope, make_plan
from bimkern.train.memory.live_bytes import LiveBytes


@dataclass(slots=True)
class Life:
    """A storage of a step; times are ticks."""

    scope: int | None  # that it is born in
    batch: int | None  # the micro-batch that it is born for
    bytes: int
    begin: int
    end: int | None = None  # none in this step
    accumulated: int | None = None  # since when it is the gradient of a parameter


class Allocations(LiveBytes):
    """Record when the storages that are born inside its scopes are born and die; count what gradients take of them.

    What is born between scopes counts as `outside`, also when it has died.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.outside = 0
        self.live_peak = 0  # of what is born inside, gradients included
        self.gradient_peak = 0
        self._live = 0
        self.activations: dict[str, int] = {}  # that live at most inside each scope
        self._batch: int | None = None
        self.turns: list[tuple[int, int | None]] = []  # ticks at which another micro-batch has its turn
        self.lives: list[Life] = []
        self.scopes: list[Scope] = []  # their allocations are the lives of a scope, in order
        self.ticks = 0
        self._gradients: dict[int, int] = {}  # bytes of those that are accumulated, by storage
        self._tracked: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}
        self._scope: str | None = None
        self._inside = 0  # lives that are born in a scope
        self._alive_as: dict[int, Life] = {}  # by storage

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Record what is born until the scope is left."""
        begin, first = self._tick(), self._inside
        self._scope, self.activations[name] = name, self.now
        try:
            yield
        finally:
            self._scope = None
            self.scopes.append(Scope(name, begin, self._tick(), first, self._inside))

    def turn(self, batch: int | None) -> None:
        """Take what is born from now on for that of a micro-batch."""
        self._batch = batch
        self.turns.append((self._tick(), batch))

    def plan(self, alignment: int) -> Plan:
        """Place what was recorded."""
        return plan_of(self.scopes, self.lives, self.ticks, alignment)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for finalizer in self._tracked.values():
            finalizer.detach()
        self._tracked.clear()

    def _born(self, storage: torch.UntypedStorage) -> None:
        super()._born(storage)
        key, size = storage._cdata, storage.nbytes()
        if self._scope is not None:
            self.activations[self._scope] = max(self.activations[self._scope], self.now)
        if key in self._tracked or not size:
            return
        inside = self._scope is not None
        life = Life(len(self.scopes) if inside else None, self._batch, size, self._tick())
        self.lives.append(life)
        self._alive_as[key] = life
        if inside:
            self._inside += 1
            self._live += size
            self.live_peak = max(self.live_peak, self._live)
        else:
            self.outside += size
        self._tracked[key] = weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        del self._tracked[key]
        self._gradients.pop(key, None)
        life = self._alive_as.pop(key)
        life.end = self._tick()
        if life.scope is not None:
            self._live -= life.bytes

    def _forget_grad(self, parameter: Tensor) -> None:
        super()._forget_grad(parameter)
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._gradients[storage._cdata] = storage.nbytes()
        life = self._alive_as.get(storage._cdata)
        if life is not None and life.accumulated is None:
            life.accumulated = self._tick()
        self.gradient_peak = max(self.gradient_peak, sum(self._gradients.values()))

    def _tick(self) -> int:
        self.ticks += 1
        return self.ticks - 1


def plan_of(scopes: Iterable[Scope], lives: Iterable[Life], ticks: int, alignment: int) -> Plan:
    """Place what is born inside scopes."""
    allocations = [Allocation(life.scope, life.bytes, life.begin, life.end) for life in lives if life.scope is not None]
    return make_plan(scopes, allocations, ticks=ticks, alignment=alignment)

"""The allocations of a step, counted on tensors of any kind, also on fake ones: what bimkern.arena makes a plan of."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bimkern.arena import Block, Plan, Scope, make_plan
from bimkern.train.memory import LiveBytes


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
        self._gradients: dict[int, int] = {}  # bytes of those that are accumulated, by storage
        self._tracked: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}
        self._scope: str | None = None
        self._ticks = 0
        self._scopes: list[Scope] = []
        self._begins: list[tuple[int, int, int]] = []  # scope, bytes, tick
        self._ends: dict[int, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Record what is born until the scope is left."""
        begin, first = self._tick(), len(self._begins)
        self._scope, self.activations[name] = name, self.now
        try:
            yield
        finally:
            self._scope = None
            self._scopes.append(Scope(name, begin, self._tick(), first, len(self._begins)))

    def plan(self, alignment: int) -> Plan:
        """Place what was recorded."""
        blocks = [Block(*begin, self._ends.get(i)) for i, begin in enumerate(self._begins)]
        return make_plan(self._scopes, blocks, ticks=self._ticks, alignment=alignment)

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
        block = None
        if self._scope is None:
            self.outside += size
        else:
            block = len(self._begins)
            self._begins.append((len(self._scopes), size, self._tick()))
            self._live += size
            self.live_peak = max(self.live_peak, self._live)
        self._tracked[key] = weakref.finalize(storage, self._freed, key, block)

    def _freed(self, key: int, block: int | None) -> None:
        del self._tracked[key]
        self._gradients.pop(key, None)
        if block is not None:
            self._ends[block] = self._tick()
            self._live -= self._begins[block][1]

    def _forget_grad(self, parameter: Tensor) -> None:
        super()._forget_grad(parameter)
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._gradients[storage._cdata] = storage.nbytes()
        self.gradient_peak = max(self.gradient_peak, sum(self._gradients.values()))

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks - 1

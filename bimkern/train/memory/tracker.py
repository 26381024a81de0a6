"""Tracking of allocations: which storages are allocated and freed, seen from torch's dispatcher."""

import weakref
from collections.abc import Iterable
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bimkern.ops import composite

_PLANS = torch.ops.bimkern.group_windows.default  # what it puts out is small, and its size depends on the mask


class Observer(Protocol):
    """Is called as storages come and go; a key names a storage as long as it lives."""

    def allocated(self, key: int, size: int) -> None:
        """A storage of `size` bytes, above 0, was allocated."""

    def freed(self, key: int) -> None:
        """An allocated storage was freed."""

    def accumulated(self, key: int, size: int) -> None:
        """A storage, allocated inside the context or before, holds the accumulated gradient of a parameter."""


class AllocationTracker(TorchDispatchMode):
    """Report to an observer every storage that is allocated by operations inside the context, until it is freed.

    A storage that an operation only reads, modifies in place or views is not allocated by it. So parameters, inputs
    and optimizer state that exist before are not reported; nor are plans of windows. It works on real and fake tensors.
    Every operation passes through Python: use it for single steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], observer: Observer) -> None:
        """Track allocations, and accumulated gradients of `parameters`."""
        super().__init__()
        self._parameters, self._observer = list(parameters), observer
        self._hooks: list[Any] = []
        self._alive: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}

    def __enter__(self) -> Self:
        self._hooks = [p.register_post_accumulate_grad_hook(self._accumulated) for p in self._parameters]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        for finalizer in self._alive.values():
            finalizer.detach()
        self._alive.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default or func is _PLANS:  # the first: most calls on fake tensors
            return func(*args)
        kernel = composite.kernel_of(func)
        if kernel is not None:
            super().__enter__()
            try:
                return kernel(*args, **(kwargs or {}))
            finally:
                super().__exit__(None, None, None)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._allocated(tensor.untyped_storage())
        return result

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size and key not in self._alive:
            self._alive[key] = weakref.finalize(storage, self._freed, key)
            self._observer.allocated(key, size)

    def _freed(self, key: int) -> None:
        del self._alive[key]
        self._observer.freed(key)

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is None:  # sent to other ranks, and freed
            return
        storage = parameter.grad.untyped_storage()
        self._observer.accumulated(storage._cdata, storage.nbytes())

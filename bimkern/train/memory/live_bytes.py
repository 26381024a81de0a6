"""Memory: live activation bytes, counted tensor by tensor, and what the process or the device holds."""

import resource
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bimkern import arena
from bimkern.ops._backend import composed


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that are born inside the context and still alive.

    What an operation only reads, changes in place or views is not born in it, so parameters, inputs and optimizer
    state that exist before are left out, and so are the gradients of `parameters`, once accumulated. What remains are
    activations, their gradients, and what our own kernels need for a while. Every operation passes through Python: use
    it for one step, not for all.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._parameters = list(parameters)
        self._hooks: list[Any] = []
        self._alive: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}

    def __enter__(self) -> Self:
        self._hooks = [p.register_post_accumulate_grad_hook(self._forget_grad) for p in self._parameters]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        for finalizer in self._alive.values():
            finalizer.detach()
        self._alive.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls on fake tensors
            return func(*args)
        kernel = composed.get(func)
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
                self._born(tensor.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.finalize(storage, self._died, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _died(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def _forget_grad(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        finalizer = self._alive.get(storage._cdata)
        if finalizer is not None and finalizer.detach() is not None:
            self._died(storage._cdata, storage.nbytes())


def held_bytes(device: torch.device) -> tuple[int, int]:
    """Return the bytes held now and at most so far: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        own = arena.held_bytes(device)  # torch counts nothing beside another allocator
        return own or (torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

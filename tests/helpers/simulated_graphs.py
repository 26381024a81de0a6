"""Graphs without a GPU: a capture notes every op with the addresses that it reads and writes, a replay runs it on them.

As on a GPU, a capture does nothing: what it would write starts as NaN or stays as it was. Nothing is kept alive by a
graph, so that with an arena, which reuses memory, a wrong lifetime shows as wrong numbers.
"""

import ctypes
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from bimkern.train.graphs.fixed import Address

_WAIT = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh"}  # for the device, or copy from the host


class SimulatedGraphs:
    """A device whose graphs tell what was done to them."""

    def __init__(self):
        self.events = []
        self.capturing = False

    def stream(self):
        return nullcontext()

    def graph(self):
        return SimulatedGraph(self)

    def taken(self):
        """Return the events since this was last called."""
        events, self.events = self.events, []
        return events


class SimulatedGraph(TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self._device, self._ops = device, []

    @contextmanager
    def capture(self):
        self._device.events.append("captured")
        self._device.capturing = True
        try:
            with self:
                yield
        finally:
            self._device.capturing = False

    @torch.no_grad()
    def replay(self):
        assert self._ops
        self._device.events.append("replayed")
        for op, args, kwargs, outputs in self._ops:
            results = _fresh(op(*args, **kwargs), (args, kwargs))
            for output, result in zip(outputs, results, strict=True):
                output.copy_(result)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = args, kwargs or {}
        if op.overloadpacket.__name__ in _WAIT:
            raise RuntimeError(f"{op}: operation not permitted when stream is capturing")
        written = [tensor.untyped_storage() for tensor in _written(op, *given)]
        before = [ctypes.string_at(storage.data_ptr(), storage.nbytes()) for storage in written]
        results = op(*given[0], **given[1])
        fresh = _fresh(results, given)
        self._ops.append((op, *tree_map(_aliased, given), [_aliased(tensor) for tensor in fresh]))
        for storage, content in zip(written, before, strict=True):
            ctypes.memmove(storage.data_ptr(), content, len(content))
        for tensor in fresh:
            if tensor.is_floating_point():
                ctypes.memset(tensor.untyped_storage().data_ptr(), 0xFF, tensor.untyped_storage().nbytes())
        return results


def _aliased(value):
    if not isinstance(value, Tensor):
        return value
    return Address.of(value).tensor() if value.numel() else torch.empty(value.shape, dtype=value.dtype)


def _tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _fresh(results, given):
    """Return what an op has made, rather than a view of what it was given."""
    known = {tensor.untyped_storage().data_ptr() for tensor in _tensors(given)}
    return [tensor for tensor in _tensors(results) if tensor.untyped_storage().data_ptr() not in known]


def _written(op, args, kwargs):
    """Return the arguments that an op changes."""
    found = []
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += _tensors(value)
    return found

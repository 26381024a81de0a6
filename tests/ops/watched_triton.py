"""Watch interpreted Triton kernels: what they read and write, and whether what they tell the compiler is true."""

from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import TensorHandle

from bench.traffic.triton_accesses import recorded
from bimkern.ops._triton import group_attention, masked_loss, masked_pixel_loss, pixel_targets
from bimkern.ops._triton.launch import launch

MODULES = (group_attention, masked_loss, masked_pixel_loss, pixel_targets)
# The arguments that each kernel writes.
RESULTS = {
    "attend": ("out", "logsumexp"),
    "query_grads": ("grad_queries", "along_rows"),
    "key_grads": ("grad_keys_values",),
    "loss_tiles": ("partial",),
    "loss_patches": ("partial",),
    "add_partials": ("loss",),
    "slope_tiles": ("grad_pred",),
    "slope_patches": ("grad_pred",),
    "write_patches": ("out",),
}
SUMS = {"add_to_table": ("table_sums",)}  # that it adds to


def addresses(tensor):
    """Return the address of every element, in the shape of the tensor."""
    offsets = np.zeros(tuple(tensor.shape), np.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        offsets += (np.arange(size) * stride).reshape(-1, *[1] * (tensor.ndim - dim - 1))
    return tensor.data_ptr() + offsets * tensor.element_size()


@contextmanager
def watched(*unread):
    """Hold every launch inside to the elements of its tensors, and to write each element of its results once.

    Args:
        unread: pairs of a tensor and a mask of its first dimensions, true where nothing must be read.

    Raises:
        AssertionError: the kernel, and what it did.
    """
    forbidden = _joined(addresses(tensor)[mask.numpy()] for tensor, mask in unread)

    def watch(kernel, programs, *args, **options):
        with recorded() as accesses:
            launch(kernel, programs, *args, **options)
        named = {name: _tensors(value) for name, value in zip(kernel.arg_names, args, strict=False)}
        inside = _joined(addresses(x) for tensors in named.values() for x in tensors)
        loads, stores, sums = (
            _joined(x.addresses for x in accesses if x.kind == kind) for kind in ("load", "store", "atomic")
        )
        name = kernel.fn.__name__
        results, added_to = (
            _joined(addresses(x) for result in written.get(name, ()) for x in named[result])
            for written in (RESULTS, SUMS)
        )
        assert np.isin(loads, inside).all(), f"{name} reads beside its tensors"
        assert not np.isin(loads, forbidden).any(), f"{name} reads what does not count"
        assert np.isin(sums, added_to).all(), f"{name} adds beside its sums"
        assert np.array_equal(np.sort(stores), np.sort(results)), f"{name} does not write each result once"

    def hint(handle, key, values):
        if key == "tt.divisibility":
            assert not (handle.data % values[0]).any(), f"not all are multiples of {values[0]}, as the compiler is told"

    with ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(mock.patch.object(module, "launch", watch))
        stack.enter_context(mock.patch.object(TensorHandle, "set_attr", hint))
        yield


def _tensors(value):
    return [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, torch.Tensor)]


def _joined(arrays):
    return np.concatenate([np.zeros(0, np.int64), *(array.ravel() for array in arrays)])

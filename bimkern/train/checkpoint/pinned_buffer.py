"""A host buffer for copies of tensors, allocated once: page-faulting new memory costs many times the copy.

All copies lie in one allocation. Torch would round each pinned tensor up to a power of two, so the buffer is allocated
unpinned and registered with CUDA.
"""

import ctypes
import logging
import weakref

import torch
from torch import Tensor

logger = logging.getLogger("bimkern.train")

_ALIGNMENT = 64  # bytes
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class PinnedBuffer:
    """A buffer for copies of a list of tensors, one after the other; pinned if any of them is on a GPU."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._unpin: weakref.finalize[..., PinnedBuffer] | None = None
        self._warned = False

    def allocate(self, tensors: list[Tensor]) -> bool:
        """Allocate the buffer for copies of these tensors; return whether there is enough memory."""
        if _layout(self._copies) == _layout(tensors):
            return True
        self._release()
        try:
            buffer = self._buffer(sum(map(_padded_bytes, tensors)), pinned=any(tensor.is_cuda for tensor in tensors))
        except (RuntimeError, MemoryError) as error:  # the former is torch's
            if not self._warned:
                logger.warning("no memory to copy checkpoints to (%s); training waits for every save", error)
            self._warned = True
            return False
        offset = 0
        for tensor in tensors:
            copy = buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._copies.append(copy)
            offset += _padded_bytes(tensor)
        return True

    def copy(self, tensors: list[Tensor]) -> list[Tensor] | None:
        """Copy tensors and return the copies, None without memory; GPU tensors are copied on their current stream."""
        if not self.allocate(tensors):
            return None
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        return self._copies

    def _buffer(self, num_bytes: int, *, pinned: bool) -> Tensor:
        """Allocate memory whose pages are resident."""
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        # Unlike torch's fill, memset takes neither torch's threads nor the interpreter's lock from the training loop.
        ctypes.memset(buffer.data_ptr(), 0, num_bytes)
        if pinned and num_bytes:
            failed = int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), num_bytes, _PORTABLE))
            if failed:
                logger.warning("memory for checkpoints cannot be pinned (CUDA error %d); copies take longer", failed)
            else:
                self._unpin = weakref.finalize(self, _unregister, buffer.data_ptr())
                self._unpin.atexit = False
        return buffer

    def _release(self) -> None:
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self._copies = []


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _layout(tensors: list[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]

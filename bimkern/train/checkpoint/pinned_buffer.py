"""Memory on the host for copies of tensors, got once and kept: new pages cost many times the copy.

All copies lie in one block. Pinned by torch, each would take a power of two of bytes, so the block is registered with
CUDA as it is.
"""

import ctypes
import logging
import weakref

import torch
from torch import Tensor

logger = logging.getLogger("bimkern.train")

_ALIGNMENT = 64  # bytes
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class HostMemory:
    """Room for copies of a list of tensors, one after the other."""

    def __init__(self) -> None:
        self._places: list[Tensor] = []
        self._unpin: weakref.finalize[..., HostMemory] | None = None
        self._said = False

    def fit(self, tensors: list[Tensor]) -> bool:
        """Make the room such that these tensors can be copied into it; say whether there is enough memory."""
        if _layout(self._places) == _layout(tensors):
            return True
        self._release()
        try:
            block = self._block(sum(map(_room, tensors)), pinned=any(tensor.is_cuda for tensor in tensors))
        except (RuntimeError, MemoryError) as error:  # the former is torch's
            if not self._said:
                logger.warning("no memory for a copy of what is saved (%s); training waits for every save", error)
            self._said = True
            return False
        start = 0
        for tensor in tensors:
            place = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._places.append(place)
            start += _room(tensor)
        return True

    def copy(self, tensors: list[Tensor]) -> list[Tensor] | None:
        """Copy tensors and return the copies, None without room; a GPU does it in the order of its current stream."""
        if not self.fit(tensors):
            return None
        for place, tensor in zip(self._places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        return self._places

    def _block(self, num_bytes: int, *, pinned: bool) -> Tensor:
        """Return memory whose pages the process already has."""
        block = torch.empty(num_bytes, dtype=torch.uint8)
        # Neither torch's threads nor the interpreter's lock are taken from the loop.
        ctypes.memset(block.data_ptr(), 0, num_bytes)
        if pinned and num_bytes:
            failed = int(torch.cuda.cudart().cudaHostRegister(block.data_ptr(), num_bytes, _PORTABLE))
            if failed:
                logger.warning("memory for saves cannot be pinned (CUDA error %d); copies take longer", failed)
            else:
                self._unpin = weakref.finalize(self, _unregister, block.data_ptr())
                self._unpin.atexit = False
        return block

    def _release(self) -> None:
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        self._places = []


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _layout(tensors: list[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]

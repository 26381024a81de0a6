"""Tensors at fixed addresses: buffers that graphs read, and tensors over memory that the arena owns."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bimkern.mim.flow import MicroBatch
from bimkern.mim.masking.view import copied

Shapes = tuple[Any, ...]


class Buffers:
    """Tensors that stay where they are, and take over the values of others."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Tensor] = {}

    def batches(self, batches: Sequence[MicroBatch], denominators: Tensor) -> tuple[list[MicroBatch], Tensor]:
        """Take over what a step reads; its shapes must be those of the first."""
        count = 0

        def take(tensor: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return self._take(count, tensor)

        return _mapped(batches, take), take(denominators)

    def tokens(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Take over what enters a part; parts whose tokens have the same shape share buffers, one after the other."""
        own = {id(buffer) for buffer in self._by_key.values()}
        return [
            tensor if id(tensor) in own else self._take((i, tensor.shape, tensor.dtype), tensor)
            for i, tensor in enumerate(tokens)
        ]

    def _take(self, key: Hashable, tensor: Tensor) -> Tensor:
        shared = tensor.dim() > 0 and len(tensor) > 1 and tensor.stride(0) == 0  # one row for all images
        rows = tensor[:1] if shared else tensor
        if key not in self._by_key:
            self._by_key[key] = torch.empty_like(rows, memory_format=torch.contiguous_format)
        buffer = self._by_key[key].copy_(rows, non_blocking=True)
        return buffer.expand_as(tensor) if shared else buffer


def shapes_of(batches: Sequence[MicroBatch], denominators: Tensor) -> Shapes:
    """Describe all that a step reads but the values: equal for steps that are alike."""
    seen: list[Tensor] = []

    def describe(tensor: Tensor) -> Shapes:
        seen.append(tensor)
        return len(seen), tensor.shape, tensor.dtype, tensor.dim() > 0 and tensor.stride(0) == 0

    described = _mapped(batches, describe)
    return (describe(denominators), *((batch.images, tuple(batch.views)) for batch in described))


@dataclass(frozen=True)
class Address:
    """Where a tensor is; it does not keep it."""

    start: int
    bytes: int  # of the storage
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Address":
        whole = tensor.untyped_storage()
        offset = int(tensor.storage_offset())
        return cls(whole.data_ptr(), whole.nbytes(), offset, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def tensor(self) -> Tensor:
        """Return a tensor there, of which the memory is another's: for as long as that holds what is meant."""
        storage = torch._C._construct_storage_from_data_pointer(self.start, self.device, self.bytes)
        return torch.empty(0, dtype=self.dtype, device=self.device).set_(storage, self.offset, self.shape, self.stride)


def _mapped(batches: Sequence[MicroBatch], change: Callable[[Tensor], Any]) -> list[MicroBatch]:
    return [MicroBatch(change(batch.images), copied(batch.views, change)) for batch in batches]

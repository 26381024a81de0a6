"""Tensors that are on other ranks, or in no memory: read one at a time, where they are written or sent on."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Streamed:
    """A tensor that is received, or put together, whenever it is read."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]
    live: bool  # the next step changes it, so that training waits for what is to be read before

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def is_live(tensor: Tensor | Streamed) -> bool:
    return isinstance(tensor, Streamed) and tensor.live


def read(tensor: Tensor | Streamed) -> Tensor:
    return tensor.read() if isinstance(tensor, Streamed) else tensor


def read_all(tensors: Mapping[str, Tensor | Streamed]) -> dict[str, Tensor]:
    return {name: read(tensor) for name, tensor in tensors.items()}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            SafetensorError, OSError: it cannot be read.
        """
        self._file = safe_open(path, "pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

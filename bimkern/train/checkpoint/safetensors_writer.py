"""Safetensors files, written in pieces of 16 MiB and hashed on the way.

The bytes are those of the library's save_file, which is not used because it can neither report progress nor be
canceled: 512 MiB are one call of 3.3 s, and on a disk that hangs the call never ends. It also gives each file the mode
0600, whatever the umask, and its error for a full disk has no errno. Time and memory are equal: with SHA-256 and fsync,
512 MiB take 6.3 s by save_file and a second pass, 6.4 s here, and 1 MiB of memory each (safetensors 0.8.0, two cores).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# In the library's order, last first: wide numbers come first, so that all are aligned.
_CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_RANK = {dtype: -i for i, dtype in enumerate(_CODES)}
_PIECE = 2**24  # bytes
_SYNC_EVERY = 2**26  # bytes


@dataclass(frozen=True)
class Deferred:
    """A tensor that is fetched when its turn comes to be written, and not kept."""

    shape: torch.Size
    dtype: torch.dtype
    fetch: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def write(
    path: Path,
    tensors: Mapping[str, Tensor | Deferred],
    *,
    metadata: Mapping[str, str] | None = None,
    between: Callable[[], object] = lambda: None,
) -> str:
    """Write tensors to a file, sync it to disk, and return its SHA-256.

    Args:
        path: created or overwritten.
        tensors: on any device, of any layout, or yet to be fetched.
        metadata: for the header, in this order.
        between: called before each piece; an exception from it cancels the write.

    Same as: safetensors.torch.save_file.
    """
    digest, synced = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for piece in _pieces(tensors, metadata):
            between()
            digest.update(piece)
            while piece:
                piece = piece[file.write(piece) :]
            if file.tell() - synced >= _SYNC_EVERY:  # else the last fsync takes long, and looks like a hang
                os.fdatasync(file.fileno())
                synced = file.tell()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor | Deferred], metadata: Mapping[str, str] | None) -> Iterator[memoryview]:
    names = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))
    yield memoryview(_header({name: tensors[name] for name in names}, metadata))
    for name in names:
        tensor = tensors[name]
        tensor = tensor.fetch() if isinstance(tensor, Deferred) else tensor
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]


def _header(tensors: Mapping[str, Tensor | Deferred], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

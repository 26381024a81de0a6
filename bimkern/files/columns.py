"""Columns: one file of a header and arrays, written as a whole, with a digest of all that it holds.

It begins with the digest, then a line of JSON, then the bytes of the arrays.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimkern.files import atomic

_DIGEST_BYTES = 16
_ARRAYS = "arrays"  # in the header: name, type and shape of each


@dataclass(frozen=True, eq=False)
class Columns:
    """A header, as JSON, and arrays of numbers."""

    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def write(path: Path, columns: Columns) -> None:
    """Write an atomic file, replacing what was there."""
    arrays = {name: np.asarray(one, one.dtype.newbyteorder("<"), order="C") for name, one in columns.arrays.items()}
    described = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    header = json.dumps({**columns.header, _ARRAYS: described}).encode() + b"\n"
    digest = hashlib.blake2b(header, digest_size=_DIGEST_BYTES)
    with atomic.replaced(path) as scratch, scratch.open("wb") as file:
        file.write(bytes(_DIGEST_BYTES))
        file.write(header)
        for array in arrays.values():
            content = array.reshape(-1).view(np.uint8).data
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(digest.digest())


def read(path: Path) -> Columns | None:
    """Read a file; return None where there is none, or it is not as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    rest = memoryview(content)[_DIGEST_BYTES:]
    if content[:_DIGEST_BYTES] != hashlib.blake2b(rest, digest_size=_DIGEST_BYTES).digest():
        return None
    at = content.index(b"\n", _DIGEST_BYTES) + 1
    header, arrays = json.loads(content[_DIGEST_BYTES:at]), {}
    for name, (kind, shape) in header.pop(_ARRAYS).items():
        dtype, count = np.dtype(kind), math.prod(shape)
        array = np.frombuffer(content, dtype, count, at)
        arrays[name] = array.astype(dtype.newbyteorder("=")).reshape(shape)  # a copy, which is aligned
        at += count * dtype.itemsize
    return Columns(header, arrays)

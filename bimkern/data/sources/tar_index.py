"""The index of a tar file: its members sorted by name, in arrays, kept in a file so that it is made once.

The file lies beside the tar file, or in the cache where that folder is read-only. It holds a digest of its content, and
the size and time of the tar file that it was made of; if any of them differs, the index is made again.

Shapes: N members.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bimkern.data.sources.tar import Fault, Members, decoded, encoded, scan
from bimkern.files import atomic
from bimkern.files.cache import cache_folder

_VERSION = 1
_DIGEST_BYTES = 16
_ARRAYS = ("ends", "offsets", "sizes")

Int64 = NDArray[np.int64]


class Names(Sequence[bytes]):
    """Names in one string of bytes."""

    def __init__(self, joined: bytes, ends: Int64) -> None:
        """Split `joined` at `ends`, [N]."""
        self.joined, self.ends = joined, ends
        self._view: Any = memoryview(ends)  # type: ignore[arg-type]  # whose items are ints, which slice faster than those of an array

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "Names":
        return cls(b"".join(names), np.cumsum([0, *map(len, names)], dtype=np.int64)[1:])

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[bytes]: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.joined[self._view[i - 1] if i > 0 else 0 : self._view[i]]

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self.ends.tolist():
            yield self.joined[start:end]
            start = end


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the members of a tar file lie, sorted by name."""

    names: Names
    offsets: Int64  # [N] bytes
    sizes: Int64  # [N] bytes
    faults: tuple[Fault, ...]  # what is not used
    bytes: int  # of the tar file
    mtime_ns: int


def read_index(path: Path) -> TarIndex:
    """Return the index of a tar file, which is made and stored if there is none yet.

    Raises:
        OSError: the tar file cannot be read.
    """
    path = path.resolve()
    status = path.stat()
    stamp = {"version": _VERSION, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    places = _places(path)
    for place in places:
        if (stored := _read(place, stamp)) is not None:
            return stored
    index = _sorted(scan(path), status.st_size, status.st_mtime_ns)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replaced(place) as scratch:
                scratch.write_bytes(_to_bytes(index, stamp))
            break
        except OSError:
            continue
    return index


def _places(path: Path) -> tuple[Path, Path]:
    digest = hashlib.blake2b(encoded(str(path)), digest_size=_DIGEST_BYTES).hexdigest()
    return path.with_name(f".{path.name}.index"), cache_folder() / f"shards-v{_VERSION}" / f"{digest}.index"


def _sorted(members: Members, num_bytes: int, mtime_ns: int) -> TarIndex:
    """Sort members by name; of several of one name, keep the first."""
    arrays = [np.array(values, dtype=np.int64) for values in (members.ends, members.offsets, members.sizes)]
    names = Names(bytes(members.names), arrays[0])
    if all(one < other for one, other in pairwise(names)):  # as most tar files are
        return TarIndex(names, arrays[1], arrays[2], tuple(members.faults), num_bytes, mtime_ns)
    listed, faults = list(names), members.faults
    order = sorted(range(len(listed)), key=listed.__getitem__)
    kept = [i for j, i in enumerate(order) if j == 0 or listed[i] != listed[order[j - 1]]]
    if len(kept) < len(order):
        first = {listed[i]: i for i in kept}
        for i in sorted(set(order).difference(kept)):
            at = members.offsets[first[listed[i]]]
            reason = f"of the same name as the member whose content begins at {at}"
            faults.append(Fault(members.offsets[i], decoded(listed[i]), reason))
    rows = np.array(kept, dtype=np.int64)
    return TarIndex(
        Names.of([listed[i] for i in kept]), arrays[1][rows], arrays[2][rows], tuple(faults), num_bytes, mtime_ns
    )


def _to_bytes(index: TarIndex, stamp: dict[str, int]) -> bytes:
    head = stamp | {"count": len(index.names), "faults": [asdict(fault) for fault in index.faults]}
    parts = [json.dumps(head).encode() + b"\n", *(_array(index, name).tobytes() for name in _ARRAYS)]
    content = b"".join([*parts, index.names.joined])
    return _digest(content) + content


def _array(index: TarIndex, name: str) -> Int64:
    return (index.names.ends if name == "ends" else getattr(index, name)).astype("<i8")


def _read(place: Path, stamp: dict[str, int]) -> TarIndex | None:
    """Return a stored index, None where there is none, or another one."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    if content[:_DIGEST_BYTES] != _digest(memoryview(content)[_DIGEST_BYTES:]):
        return None
    start = content.index(b"\n", _DIGEST_BYTES) + 1
    head = json.loads(content[_DIGEST_BYTES:start])
    if any(head[key] != value for key, value in stamp.items()):
        return None
    count = head["count"]
    size = 8 * count  # bytes of an array
    ends, offsets, sizes = (
        np.frombuffer(content, "<i8", count, start + i * size).astype(np.int64) for i in range(len(_ARRAYS))
    )
    names = Names(content[start + len(_ARRAYS) * size :], ends)
    faults = tuple(Fault(**fault) for fault in head["faults"])
    return TarIndex(names, offsets, sizes, faults, head["bytes"], head["mtime_ns"])


def _digest(content: "bytes | memoryview[int]") -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()

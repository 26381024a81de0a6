"""The index of a tar file: its members sorted by name, in arrays, kept in a file so that it is made once.

The file lies beside the tar file, or in the cache where that folder is read-only or the tar file is at an address. It
holds a digest of its content, and the size and time of the tar file that it was made of; if any of them differs, the
index is made again.

Shapes: N members.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from operator import lt
from pathlib import Path

import numpy as np

from bimkern.data.integers import Int64
from bimkern.data.names import Names, decoded, encoded
from bimkern.data.source import UNKNOWN_TIME
from bimkern.data.sources.tar import Fault, Members, scan
from bimkern.files import columns
from bimkern.files.cache import cache_folder
from bimkern.files.columns import Columns

_VERSION = 2
_DIGEST_BYTES = 16


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
    files = (path.with_name(f".{path.name}.index"), _cached(str(path)))
    return _read_or_made(files, status.st_size, status.st_mtime_ns, lambda: scan(path))


def read_far_index(name: str, num_bytes: int, time: int, make: Callable[[], Members]) -> TarIndex:
    """Return the index of a tar file at an address, which is made, and stored in the cache, if there is none yet.

    Args:
        name: what tells it from all others.
        num_bytes: of the file.
        time: of its last change, or what else changes with it; UNKNOWN_TIME: the index is always made.
        make: finds the members.
    """
    return _read_or_made(() if time == UNKNOWN_TIME else (_cached(name),), num_bytes, time, make)


def _read_or_made(files: Sequence[Path], num_bytes: int, mtime_ns: int, make: Callable[[], Members]) -> TarIndex:
    """Return the index that one of some files holds, else one that is made, and stored in the first that can be."""
    stamp = {"version": _VERSION, "bytes": num_bytes, "mtime_ns": mtime_ns}
    for file in files:
        if (stored := _read(file, stamp)) is not None:
            return stored
    index = _sorted(make(), num_bytes, mtime_ns)
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            columns.write(file, _columns(index, stamp))
            break
        except OSError:
            continue
    return index


def _cached(name: str) -> Path:
    digest = hashlib.blake2b(encoded(name), digest_size=_DIGEST_BYTES).hexdigest()
    return cache_folder() / f"shards-v{_VERSION}" / f"{digest}.index"


def _sorted(members: Members, num_bytes: int, mtime_ns: int) -> TarIndex:
    """Sort members by name; of several of one name, keep the first."""
    arrays = [np.array(values, dtype=np.int64) for values in (members.ends, members.offsets, members.sizes)]
    names = Names(bytes(members.names), arrays[0])
    listed, faults = list(names.all_encoded()), members.faults
    if all(map(lt, listed, islice(listed, 1, None))):  # as most tar files are
        return TarIndex(names, arrays[1], arrays[2], tuple(faults), num_bytes, mtime_ns)
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
        Names.joined_from(listed[i] for i in kept), arrays[1][rows], arrays[2][rows], tuple(faults), num_bytes, mtime_ns
    )


def _columns(index: TarIndex, stamp: dict[str, int]) -> Columns:
    faults = [asdict(fault) for fault in index.faults]
    arrays = {"offsets": index.offsets, "sizes": index.sizes}
    return Columns(stamp | {"faults": faults}, index.names.to_arrays() | arrays)


def _read(file: Path, stamp: dict[str, int]) -> TarIndex | None:
    """Return a stored index, None where there is none, or another one."""
    found = columns.read(file)
    if found is None or any(found.header.get(key) != value for key, value in stamp.items()):
        return None
    arrays, faults = found.arrays, tuple(Fault(**fault) for fault in found.header["faults"])
    names = Names.from_arrays(arrays)
    return TarIndex(names, arrays["offsets"], arrays["sizes"], faults, stamp["bytes"], stamp["mtime_ns"])

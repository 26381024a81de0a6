"""The results of checking files: of one, and of many in arrays.

Shapes: N files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimkern.data.integers import Int64
from bimkern.data.names import Names
from bimkern.data.orientation import UPRIGHT
from bimkern.files.columns import Columns

_UNCHECKED, _SOUND = -1, 0  # in place of the number of a fault
_FIELDS = {
    "bytes": np.int64,
    "mtime_ns": np.int64,
    "digest": np.uint64,
    "width": np.int64,
    "height": np.int64,
    "orientation": np.int8,
    "pil_only": np.bool_,
    "fault": np.int32,
}
_ROW = np.dtype(list(_FIELDS.items()))


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of checking a file."""

    bytes: int = 0
    mtime_ns: int = 0
    digest: str = ""  # BLAKE2b of the content, 64 bits in hex
    width: int = 0  # pixels, upright
    height: int = 0
    orientation: int = UPRIGHT  # how the stored image is turned upright
    pil_only: bool = False  # whether DALI might decode it differently
    fault: str | None = None  # why it cannot be trained on; the other fields then have their defaults


class FileChecks(Mapping[str, FileCheck]):
    """The results for files, each of which is an object only when it is asked for. Files may be unchecked as yet."""

    def __init__(self, names: Names, rows: NDArray[Any] | None = None, faults: "list[str] | None" = None) -> None:
        """Hold the results for some files.

        Args:
            names: of the files; they ascend.
            rows: the results, [N]; None: they are yet to be checked.
            faults: what the numbers of faults mean, of which the first is 1.
        """
        self.names, self._faults = names, [] if faults is None else faults
        self._numbers = {fault: number for number, fault in enumerate(self._faults, start=1)}
        if rows is None:
            rows = np.zeros(len(names), dtype=_ROW)
            rows["fault"] = _UNCHECKED
        self._rows = rows

    @classmethod
    def of(cls, found: Mapping[str, FileCheck]) -> "FileChecks":
        """Return the results in a mapping, or this mapping as it is."""
        if isinstance(found, FileChecks):
            return found
        checks = cls(Names.of(sorted(found)))
        for i, file in enumerate(checks.names):
            checks.put(i, found[file])
        return checks

    @classmethod
    def recorded(cls, names: Names, sizes: Int64, digests: NDArray[np.uint64]) -> "FileChecks":
        """Return results of which the rest is not known: sizes [N, 2] and digests [N] of sound files."""
        rows = np.zeros(len(names), dtype=_ROW)
        rows["width"], rows["height"], rows["digest"], rows["orientation"] = *sizes.T, digests, UPRIGHT
        return cls(names, rows)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, file: str) -> FileCheck:
        i = self.names.index_of(file)
        if i is None:
            raise KeyError(file)
        num_bytes, mtime_ns, digest, width, height, orientation, pil_only, fault = self._rows[i].item()
        assert fault != _UNCHECKED, file
        if fault != _SOUND:
            return FileCheck(fault=self._faults[fault - 1])
        return FileCheck(num_bytes, mtime_ns, f"{digest:016x}", width, height, orientation, pil_only)

    def put(self, i: int, result: FileCheck) -> None:
        """Store the result for file i."""
        if result.fault is None:
            num_bytes, mtime_ns, digest, *fields, _ = astuple(result)
            self._rows[i] = (num_bytes, as_int64(mtime_ns), int(digest or "0", 16), *fields, _SOUND)
            return
        self._rows[i] = np.zeros((), dtype=_ROW)
        if (number := self._numbers.setdefault(result.fault, len(self._faults) + 1)) > len(self._faults):
            self._faults.append(result.fault)
        self._rows["fault"][i] = number

    @property
    def stats(self) -> Int64:
        """Bytes and time of change (ns) of every file when it was checked, [N, 2]."""
        return np.stack([self._rows["bytes"], self._rows["mtime_ns"]], axis=1)

    @property
    def sizes(self) -> Int64:
        """Width and height of every image, upright, [N, 2]."""
        return np.stack([self._rows["width"], self._rows["height"]], axis=1)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """The digest of every image, [N]."""
        digests: NDArray[np.uint64] = self._rows["digest"]
        return digests

    @property
    def orientations(self) -> Int64:
        return self._rows["orientation"].astype(np.int64)

    @property
    def pil_only(self) -> NDArray[np.bool_]:
        return self._rows["pil_only"].copy()

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Which of the files can be trained on, [N]."""
        return self._rows["fault"] == _SOUND

    @property
    def faults(self) -> dict[str, str]:
        """Why the others cannot, of those that are checked."""
        numbers = self._rows["fault"]
        return {self.names[i]: self._faults[numbers[i] - 1] for i in np.flatnonzero(numbers > _SOUND).tolist()}

    def where(self, mask: NDArray[np.bool_]) -> "FileChecks":
        """Return the results for the files for which a mask [N] holds."""
        return FileChecks(self.names.where(mask), self._rows[mask], self._faults)

    def of_files(self, names: Names) -> "FileChecks":
        """Return the results for some files, in their order; those that are none of ours are unchecked."""
        indexes = self.names.indexes_of(names)
        found = FileChecks(names, faults=self._faults)
        known = indexes >= 0
        found._rows[known] = self._rows[indexes[known]]
        return found

    def updated(self, other: "FileChecks") -> "FileChecks":
        """Return the results for our files, those of another where these are sound."""
        now = other.of_files(self.names)
        return FileChecks(self.names, np.where(now.sound, now._rows, self._rows), self._faults)

    def forget(self, mask: NDArray[np.bool_]) -> None:
        """Make files unchecked for which a mask [N] holds."""
        self._rows["fault"][mask] = _UNCHECKED

    def joined(self, other: "FileChecks") -> "FileChecks":
        """Return the sound files of two, of which none is in both."""
        parts = [one.where(one.sound) for one in (self, other)]
        names = [name for part in parts for name in part.names]
        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        rows = np.concatenate([part._rows for part in parts])[order]
        return FileChecks(Names.of(names[i] for i in order.tolist()), rows)

    def to_columns(self) -> Columns:
        """Return all of it but the faults, which none of the files may have."""
        assert self.sound.all()
        fields = {field: self._rows[field] for field in _FIELDS if field != "fault"}
        return Columns({}, self.names.to_arrays() | fields)

    @classmethod
    def from_columns(cls, columns: Columns) -> "FileChecks":
        """Undo to_columns()."""
        names = Names.from_arrays(columns.arrays)
        rows = np.zeros(len(names), dtype=_ROW)
        for field in _FIELDS.keys() - {"fault"}:
            rows[field] = columns.arrays[field]
        return cls(names, rows)


def as_int64(number: float) -> int:
    """Return bytes or a time of change as an integer of 64 bits; a source of the user's own may give any number."""
    return (int(number) + 2**63) % 2**64 - 2**63

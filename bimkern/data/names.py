"""Names of files in one string of bytes: of a million, no name is an object of its own until it is asked for.

Shapes: N names.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice, pairwise, repeat
from operator import lt
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bimkern.data.integers import Int64

_CODING = ("utf-8", "surrogateescape")  # as Python has names of files
_AT_ONCE = 1 << 12  # names whose limits are Python's integers


class Names(Sequence[str]):
    """Names of files, which become text as they are asked for. It is equal to other sequences of the same text."""

    def __init__(self, joined: bytes, ends: Int64) -> None:
        """Split `joined` at `ends`, [N]."""
        self.joined, self.ends = joined, ends
        self._view: Any = memoryview(ends)  # type: ignore[arg-type]  # whose items are ints, which slice faster than those of an array

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return the names that these are, or these as they are."""
        return names if isinstance(names, Names) else cls.joined_from(map(encoded, names))

    @classmethod
    def joined_from(cls, names: Iterable[bytes]) -> "Names":
        """Return names that are encoded already."""
        listed = list(names)
        return cls(b"".join(listed), np.cumsum(np.fromiter(map(len, listed), np.int64, len(listed))))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Names":
        """Undo to_arrays()."""
        return cls(arrays["names"].tobytes(), arrays["ends"])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return them as arrays of a file (files/columns.py)."""
        return {"names": np.frombuffer(self.joined, dtype=np.uint8), "ends": self.ends}

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Names": ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.take(np.arange(*i.indices(len(self))))
        return decoded(self.encoded(i))

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self.all_encoded(), *map(repeat, _CODING))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self is other or (self.joined == other.joined and np.array_equal(self.ends, other.ends))
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self.joined, self.ends)

    def __repr__(self) -> str:
        return f"Names.of({list(self)!r})"

    @cached_property
    def starts(self) -> Int64:
        """Return where the names begin in `joined`, [N]."""
        return np.concatenate([np.zeros(min(1, len(self)), dtype=np.int64), self.ends[:-1]])

    def encoded(self, i: int) -> bytes:
        """Return name i as bytes."""
        i += len(self) if i < 0 else 0
        return self.joined[self._view[i - 1] if i > 0 else 0 : self._view[i]]

    def all_encoded(self) -> Iterator[bytes]:
        """Yield all names as bytes."""
        return chain.from_iterable(map(self._some_encoded, range(0, len(self), _AT_ONCE)))

    def _some_encoded(self, first: int) -> Iterator[bytes]:
        starts, ends = (limits[first : first + _AT_ONCE].tolist() for limits in (self.starts, self.ends))
        return map(self.joined.__getitem__, map(slice, starts, ends))

    @cached_property
    def is_text(self) -> bool:
        """Whether all names are text: then they are in the same order as bytes and as text."""
        try:
            self.joined.decode()
        except UnicodeDecodeError:
            return False
        starts = self.starts[self.ends > self.starts]
        return not bool((np.frombuffer(self.joined, dtype=np.uint8)[starts] & 0xC0 == 0x80).any())

    @cached_property
    def ascend(self) -> bool:
        """Whether every name is, as text, greater than the one before."""
        if self.is_text:
            listed = list(self.all_encoded())
            return all(map(lt, listed, islice(listed, 1, None)))
        texts = list(self)
        return all(map(lt, texts, islice(texts, 1, None)))

    def index_of(self, name: str) -> int | None:
        """Return where a name is, None where it is not there. The names must ascend."""
        assert self.ascend
        i = bisect_left(self, name)
        return i if i < len(self) and self[i] == name else None

    def indexes_of(self, names: "Names") -> Int64:
        """Return where names are, those that are there [len(names)]; -1 for others. No two of ours may be equal."""
        if self == names:
            return np.arange(len(self))
        indexes = dict(zip(self.all_encoded(), range(len(self)), strict=True))
        return np.fromiter(map(indexes.get, names.all_encoded(), repeat(-1)), np.int64, len(names))

    def where(self, mask: NDArray[np.bool_]) -> "Names":
        """Return the names for which a mask [N] holds."""
        if mask.all():
            return self
        lengths = self.ends - self.starts
        joined = np.frombuffer(self.joined, dtype=np.uint8)[np.repeat(mask, lengths)]
        return Names(joined.tobytes(), np.cumsum(lengths[mask]))

    def take(self, ids: Int64) -> "Names":
        """Return the names at some indexes, in their order."""
        steps = np.diff(ids)
        if len(ids) and (steps == 1).all():
            first, last = int(ids[0]), int(ids[-1])
            start = int(self.starts[first])
            return Names(self.joined[start : self._view[last]], self.ends[first : last + 1] - start)
        if (steps > 0).all():
            mask = np.zeros(len(self), dtype=bool)
            mask[ids] = True
            return self.where(mask)
        return Names.joined_from(map(self.encoded, ids.tolist()))

    def inserted(self, names: Sequence[str]) -> tuple["Names", Int64]:
        """Return these and a few others, both ascending; and before which of ours each of the others is inserted."""
        indexes = [bisect_left(self, name) for name in names]
        new = list(map(encoded, names))
        at = [0, *(int(self.starts[i]) if i < len(self) else len(self.joined) for i in indexes), len(self.joined)]
        parts = [self.joined[start:end] for start, end in pairwise(at)]
        joined = b"".join([*chain.from_iterable(zip(parts[:-1], new, strict=True)), parts[-1]])
        lengths = np.insert(self.ends - self.starts, indexes, list(map(len, new)))
        return Names(joined, np.cumsum(lengths)), np.array(indexes, dtype=np.int64)


def decoded(name: bytes) -> str:
    """Return a name as Python has those of files."""
    return name.decode(*_CODING)


def encoded(name: str) -> bytes:
    """Undo decoded()."""
    return name.encode(*_CODING)

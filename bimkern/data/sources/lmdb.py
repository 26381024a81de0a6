"""LMDB data bases whose values are encoded images; the keys are their names."""

from functools import cache
from pathlib import Path
from typing import Any

from bimkern import optional
from bimkern.data.names import decoded
from bimkern.data.source import SourceError
from bimkern.data.sources.mapped import MappedFile

_NOTES = b"__"  # keys that begin so, such as __len__, are no images


class LmdbRows:
    """The values of an LMDB."""

    survives_fork = True  # it is read without locks; a process may not open it again

    def __init__(self, path: Path, key: str | None) -> None:
        if key is not None:
            raise SourceError(f"{path} has no arrays with names; leave out :{key}")
        self._base = _opened(path.resolve(), path.stat().st_ino)
        self._mapped = MappedFile(path / "data.mdb" if path.is_dir() else path)
        with self._base.begin() as reading:
            found = reading.cursor().iternext(values=False)
            self._keys = [bytes(key) for key in found if not bytes(key).startswith(_NOTES)]

    def __len__(self) -> int:
        return len(self._keys)

    def names(self) -> list[str]:
        return [decoded(key) for key in self._keys]

    def read(self, i: int) -> bytes:
        self._mapped.check()
        with self._base.begin() as reading:
            return bytes(reading.get(self._keys[i]))


@cache
def _opened(path: Path, inode: int) -> Any:
    """Open a data base, once in a process, which must not do so twice."""
    lmdb: Any = optional.load("lmdb")
    return lmdb.open(str(path), readonly=True, lock=False, subdir=path.is_dir(), readahead=False)

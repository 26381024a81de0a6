"""WebDataset shards on disk: images inside tar files, read in place and in any order, never extracted."""

import glob
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from bimkern import pieces
from bimkern.data.formats import BadImage, reason_of
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.braces import expanded
from bimkern.data.sources.folders import files_alone
from bimkern.data.sources.sharded import COMPRESSED, SUFFIX, ShardedImages, ShardState
from bimkern.data.sources.tar_index import TarIndex, read_index

_OPEN_SHARDS = 64  # of a process


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ImageShards(ShardedImages):
    """The images in tar files on disk.

    Args:
        paths: tar files, patterns of these (`*`, `?`, `{0000..0099}`, `{a,b}`), and folders of tar files.
        held_out: images to evaluate on.
    """

    paths: tuple[Path, ...]

    @classmethod
    def accepts(cls, place: str) -> bool:
        """Return whether a place names tar files: by a suffix, or a folder of them alone."""
        return place.endswith((SUFFIX, *COMPRESSED)) or bool(files_alone(Path(place), (SUFFIX,)))

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        return cls(paths=tuple(map(Path, places)))

    def shards(self) -> "list[TarFile]":
        return [TarFile(shard) for path in self.paths for shard in _shards_of(path)]


@dataclass(frozen=True)
class TarFile:
    """A shard on disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def origin(self) -> Path:
        return self.path.resolve()

    def index(self) -> TarIndex:
        try:
            return read_index(self.path)
        except OSError as error:
            raise SourceError(f"{self} cannot be read ({error.strerror})") from error

    def read(self, state: ShardState, offset: int, size: int) -> bytes:
        try:
            opened = _opened(self.path, state.bytes, state.mtime_ns)  # named, or another thread's might close it
            status = os.fstat(opened.number)
            content = os.pread(opened.number, size, offset)
        except OSError as error:
            raise BadImage(f"{self}: {reason_of(error)}") from error
        if (status.st_size, status.st_mtime_ns) != (state.bytes, state.mtime_ns) or len(content) < size:
            raise BadImage(f"{self} has changed since it was indexed")
        return content

    def read_ahead(self, state: ShardState, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):  # macOS has none
            with suppress(OSError):  # which read() meets again
                opened = _opened(self.path, state.bytes, state.mtime_ns)
                os.posix_fadvise(opened.number, offset, size, os.POSIX_FADV_WILLNEED)


def _shards_of(path: Path) -> list[Path]:
    """Return the tar files that a path, a pattern or a folder names.

    Raises:
        SourceError: there is none, or one is compressed.
    """
    if path.name.endswith(COMPRESSED):
        raise SourceError(f"{path} is compressed, and cannot be read at any position; unpack it to a .tar file")
    if path.is_dir():
        found = files_alone(path, (SUFFIX,))
    elif path.exists():
        found = [path]
    else:
        found = [match for text in expanded(str(path)) for match in _matches(text)]
    if not found:
        raise SourceError(f"{path} names no {SUFFIX} file")
    return sorted(set(found))


def _matches(text: str) -> list[Path]:
    """Return the files that a pattern names; a name without a wildcard is a file, which must be there."""
    if not glob.has_magic(text):
        if not Path(text).is_file():
            raise SourceError(f"{text} does not exist")
        return [Path(text)]
    return [Path(match) for match in glob.glob(text, recursive=True)]


class _Descriptor:
    """An open file, closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, os may be gone before
        if hasattr(self, "number"):
            close(self.number)


@lru_cache(maxsize=_OPEN_SHARDS)
def _opened(path: Path, num_bytes: int, mtime_ns: int) -> _Descriptor:
    """Open a shard, again if it is indexed with another size or time."""
    return _Descriptor(path)

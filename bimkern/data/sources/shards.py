"""WebDataset shards: images inside tar files, read in place and in any order, never extracted.

Members of one key, which is the path up to the first dot of its last part, belong together: beside an image,
`KEY.cls` holds its label, or `KEY.json` an object with `label`.
"""

import glob
import json
import logging
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from io import BytesIO
from itertools import chain, islice, pairwise, product
from operator import lt
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import numpy as np

from bimkern import pieces
from bimkern.data.formats import START_BYTES, BadImage, reason_of
from bimkern.data.names import Int64, Names, encoded
from bimkern.data.reasons import Reasons
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError, title, why_each_skipped
from bimkern.data.sources.folders import files_alone
from bimkern.data.sources.tar import Fault
from bimkern.data.sources.tar_index import TarIndex, read_index
from bimkern.data.suffixes import are_dot_files

logger = logging.getLogger("bimkern.data")

_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_OPEN_SHARDS = 64  # of a process


@dataclass(frozen=True)
class _ShardState:
    """A shard as it was indexed."""

    bytes: int
    mtime_ns: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True, eq=False)
class _Table:
    """All members of all shards, sorted by name as bytes."""

    shards: tuple[Path, ...]
    states: tuple[_ShardState, ...]
    names: Names
    rows: Int64  # [N, 3]: shard, offset, bytes
    prefixed: bool  # whether names begin with the shard's name, as several shards use the same ones
    guess: list[int] = field(default_factory=lambda: [0])  # the next member, where they are asked for in order

    def find(self, file: str) -> tuple[int, int, int]:
        """Return shard, offset and bytes of a member.

        Raises:
            BadImage: there is none of this name.
        """
        name, (i,), names = encoded(file), self.guess, self.names
        if i == len(names) or names.encoded(i) != name:
            i = bisect_left(range(len(names)), name, key=names.encoded)
            if i == len(names) or names.encoded(i) != name:
                raise BadImage("no such member in any shard")
        self.guess[0] = i + 1
        shard, offset, size = self.rows[i].tolist()
        return shard, offset, size


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class ImageShards:
    """The images in tar files, by the paths of their members.

    If a path is in several shards, all paths begin with the name of their shard.

    Args:
        paths: tar files, patterns of these (`*`, `?`, `{0000..0099}`, `{a,b}`), and folders of tar files.
        held_out: images to evaluate on.
    """

    paths: tuple[Path, ...]
    held_out: Source | None = None
    on_disk: ClassVar[bool] = False

    @classmethod
    def accepts(cls, place: str) -> bool:
        """Return whether a place names tar files: by a suffix, or a folder of them alone."""
        return place.endswith((_SUFFIX, *_COMPRESSED)) or bool(files_alone(Path(place), (_SUFFIX,)))

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        return cls(paths=tuple(map(Path, places)))

    def files(self) -> Reasons:
        vars(self).pop("_table", None)  # the shards may have changed since
        table, faults = self._table, dict[str, str | None]()
        names = table.names.where(~are_dot_files(table.names))
        found = why_each_skipped(names if names.is_text else Names.of(sorted(names)), self._open_start)
        for shard, state in zip(table.shards, table.states, strict=True):
            faults |= {f"{shard.name}, offset {fault.offset}: {fault.name}": fault.reason for fault in state.faults}
            if state.faults:
                first, more = state.faults[0], len(state.faults) - 1
                what = f"{first.name}: {first.reason}" if first.name else first.reason
                also = f"; {more} more parts of it" if more else ""
                logger.warning("%s, offset %d: %s%s; left out", shard, first.offset, what, also)
        return found.joined(faults)

    def stat(self, file: str) -> tuple[int, int]:
        shard, _, size = self._table.find(file)
        return size, self._table.states[shard].mtime_ns

    def stats(self, files: Names) -> Int64:
        """Return what stat() returns of every file, [N, 2]; UNKNOWN_TIME for those that are gone."""
        table, found = self._table, np.full((len(files), 2), UNKNOWN_TIME, dtype=np.int64)
        places = table.names.places(files)
        known = places >= 0
        times = np.array([state.mtime_ns for state in table.states], dtype=np.int64)
        rows = table.rows[places[known]]
        found[known] = np.stack([rows[:, 2], times[rows[:, 0]]], axis=1)
        return found

    def origin(self, file: str) -> tuple[Path, int]:
        """Return the shard of a file, and its offset there."""
        shard, offset, _ = self._table.find(file)
        return self._table.shards[shard].resolve(), offset

    def open(self, file: str) -> BinaryIO:
        return BytesIO(self._read(*self._table.find(file)))

    def path(self, file: str) -> None:
        return None

    def labels(self, files: Sequence[str]) -> dict[str, str]:
        """Return the label of every image: of its .cls or .json member, else the folder that its path begins with."""
        table = self._table
        found = {}
        for file in files:
            label = next(filter(None, (self._label(key_of(file) + suffix) for suffix in (".cls", ".json"))), None)
            if label is None:
                inside = file.partition("/")[2] if table.prefixed else file
                label, slash, _ = inside.partition("/")
                if not slash:
                    raise SourceError(
                        f"{title(self)}: {file} has no label: its shard has no {key_of(file)}.cls or .json, nor does "
                        "its path begin with a class"
                    )
            found[file] = label
        return found

    def _open_start(self, file: str) -> BinaryIO:
        shard, offset, size = self._table.find(file)
        return BytesIO(self._read(shard, offset, min(size, START_BYTES)))

    def _label(self, member: str) -> str | None:
        try:
            content = self._read(*self._table.find(member))
        except BadImage:
            return None
        if member.endswith(".cls"):
            return content.decode(errors="replace").strip()
        try:
            label = json.loads(content).get("label")
        except (ValueError, AttributeError) as error:
            raise SourceError(f"{title(self)}: {member} is no JSON object") from error
        return None if label is None else str(label)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path, state = self._table.shards[shard], self._table.states[shard]
        try:
            opened = _opened(path, state.bytes, state.mtime_ns)  # named, or another thread's shard might close it
            status = os.fstat(opened.number)
            content = os.pread(opened.number, size, offset)
        except OSError as error:
            raise BadImage(f"{path}: {reason_of(error)}") from error
        if (status.st_size, status.st_mtime_ns) != (state.bytes, state.mtime_ns) or len(content) < size:
            raise BadImage(f"{path} has changed since it was indexed")
        return content

    @cached_property
    def _table(self) -> _Table:
        shards = tuple(shard for path in self.paths for shard in _shards_of(path))
        for one, other in pairwise(sorted(shards, key=lambda shard: shard.name)):
            if one.name == other.name:
                raise SourceError(f"{one} and {other} have the same name, which tells their images apart; rename one")
        indexes = []
        for shard in shards:
            try:
                indexes.append(read_index(shard))
            except OSError as error:
                raise SourceError(f"{shard} cannot be read ({error.strerror})") from error
        return _merged(shards, indexes)


def _merged(shards: tuple[Path, ...], indexes: Sequence[TarIndex]) -> _Table:
    counts = [len(index.names) for index in indexes]
    rows = np.empty((sum(counts), 3), dtype=np.int64)
    rows[:, 0] = np.repeat(np.arange(len(shards)), counts)
    rows[:, 1] = np.concatenate([index.offsets for index in indexes])
    rows[:, 2] = np.concatenate([index.sizes for index in indexes])
    states = tuple(_ShardState(index.bytes, index.mtime_ns, index.faults) for index in indexes)
    names = list(chain.from_iterable(index.names.all_encoded() for index in indexes))
    if all(map(lt, names, islice(names, 1, None))):
        starts = np.cumsum([0, *(len(index.names.joined) for index in indexes)])
        ends = np.concatenate([index.names.ends + start for index, start in zip(indexes, starts[:-1], strict=True)])
        joined = b"".join(index.names.joined for index in indexes)
        return _Table(shards, states, Names(joined, ends), rows, prefixed=False)
    prefixed = len(set(names)) < len(names)
    if prefixed:
        names = [b"%s/%s" % (encoded(shards[i].stem), name) for i, name in zip(rows[:, 0], names, strict=True)]
    order = sorted(range(len(names)), key=names.__getitem__)
    return _Table(shards, states, Names.joined_from(names[i] for i in order), rows[order], prefixed)


def _shards_of(path: Path) -> list[Path]:
    """Return the tar files that a path, a pattern or a folder names.

    Raises:
        SourceError: there is none, or one is compressed.
    """
    if path.name.endswith(_COMPRESSED):
        raise SourceError(f"{path} is compressed, and cannot be read at any position; unpack it to a .tar file")
    if path.is_dir():
        found = files_alone(path, (_SUFFIX,))
    elif path.exists():
        found = [path]
    else:
        found = [match for text in _expanded(str(path)) for match in _matches(text)]
    if not found:
        raise SourceError(f"{path} names no {_SUFFIX} file")
    return sorted(set(found))


def _matches(text: str) -> list[Path]:
    """Return the files that a pattern names; a name without a wildcard is a file, which must be there."""
    if not glob.has_magic(text):
        if not Path(text).is_file():
            raise SourceError(f"{text} does not exist")
        return [Path(text)]
    return [Path(match) for match in glob.glob(text, recursive=True)]


def _expanded(text: str) -> Iterator[str]:
    """Yield what the braces in a text stand for: `{00..12}` and `{a,b}`."""
    parts = _RANGE.split(text)  # text and braces in turns
    choices = []
    for braces in parts[1::2]:
        numbers = _NUMBERS.fullmatch(braces)
        if numbers:
            first, last = map(int, numbers.groups())
            choices.append([f"{i:0{len(numbers[1])}d}" for i in range(first, last + 1)])
        else:
            choices.append(braces.split(","))
    for chosen in product(*choices):
        yield "".join([parts[0], *(word + after for word, after in zip(chosen, parts[2::2], strict=True))])


def key_of(file: str) -> str:
    """Return the key that members share which belong together."""
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


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

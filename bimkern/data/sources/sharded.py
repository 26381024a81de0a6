"""Images inside shards, which are tar files somewhere, read in place and in any order.

Members of one key, which is the path up to the first dot of its last part, belong together: beside an image,
`KEY.cls` holds its label, or `KEY.json` an object with `label`.
"""

import json
import logging
import os
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import chain, islice, pairwise
from operator import lt
from typing import BinaryIO, ClassVar, Protocol

import numpy as np

from bimkern.data.formats import START_BYTES, BadImage
from bimkern.data.integers import Int64
from bimkern.data.names import Names, encoded
from bimkern.data.reasons import Reasons
from bimkern.data.skipped import why_each_skipped
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError, title
from bimkern.data.sources.label_text import label_text
from bimkern.data.sources.tar import Fault
from bimkern.data.sources.tar_index import TarIndex
from bimkern.data.suffixes import are_dot_files

logger = logging.getLogger("bimkern.data")

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shard(Protocol):
    """A tar file; str() is its name in messages."""

    @property
    def name(self) -> str:
        """Its last part, which tells its images from those of other shards."""

    @property
    def origin(self) -> Hashable:
        """What tells it from all other files."""

    def index(self) -> TarIndex:
        """Return where its members lie.

        Raises:
            SourceError: it cannot be read.
        """

    def read(self, state: "ShardState", offset: int, size: int) -> bytes:
        """Return a part of it.

        Raises:
            BadImage: it cannot be read, or is no longer as it was indexed.
        """

    def read_ahead(self, state: "ShardState", offset: int, size: int) -> None:
        """Have a part of it fetched, if that can be done without waiting."""


@dataclass(frozen=True)
class ShardState:
    """A shard as it was indexed."""

    bytes: int
    mtime_ns: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True, eq=False)
class _Table:
    """All members of all shards, sorted by name as bytes."""

    shards: tuple[Shard, ...]
    states: tuple[ShardState, ...]
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


@dataclass(frozen=True, kw_only=True)
class ShardedImages(ABC):
    """The images in shards, by the paths of their members.

    If a path is in several shards, all paths begin with the name of their shard.
    """

    held_out: Source | None = None
    on_disk: ClassVar[bool] = False

    @abstractmethod
    def shards(self) -> Sequence[Shard]:
        """Return the shards.

        Raises:
            SourceError: there is none.
        """

    def indexes(self, shards: Sequence[Shard]) -> list[TarIndex]:
        """Return where the members of all shards lie.

        Raises:
            SourceError: one cannot be read.
        """
        return [shard.index() for shard in shards]

    def files(self) -> Reasons:
        vars(self).pop("_table", None)  # the shards may have changed since
        table = self._table
        names = table.names.where(~are_dot_files(table.names))
        found = why_each_skipped(names if names.is_text else Names.of(sorted(names)), self._open_start)
        for shard, state in zip(table.shards, table.states, strict=True):
            if state.faults:
                first, more = state.faults[0], len(state.faults) - 1
                what = f"{first.name}: {first.reason}" if first.name else first.reason
                also = f"; {more} more parts of it" if more else ""
                logger.warning("%s, offset %d: %s%s; left out", shard, first.offset, what, also)
        return found.joined(self.damaged())

    def damaged(self) -> dict[str, str]:
        """Return why parts of shards are not used, by shard, offset and name."""
        return {
            f"{shard.name}, offset {fault.offset}: {fault.name}": fault.reason
            for shard, state in zip(self._table.shards, self._table.states, strict=True)
            for fault in state.faults
        }

    def stat(self, file: str) -> tuple[int, int]:
        shard, _, size = self._table.find(file)
        return size, self._table.states[shard].mtime_ns

    def stats(self, files: Names) -> Int64:
        """Return what stat() returns of every file, [N, 2]; UNKNOWN_TIME for those that are gone."""
        table, found = self._table, np.full((len(files), 2), UNKNOWN_TIME, dtype=np.int64)
        indexes = table.names.indexes_of(files)
        known = indexes >= 0
        times = np.array([state.mtime_ns for state in table.states], dtype=np.int64)
        rows = table.rows[indexes[known]]
        found[known] = np.stack([rows[:, 2], times[rows[:, 0]]], axis=1)
        return found

    def origin(self, file: str) -> tuple[Hashable, int]:
        """Return the shard of a file, and its offset there."""
        shard, offset, _ = self._table.find(file)
        return self._table.shards[shard].origin, offset

    def open(self, file: str) -> BinaryIO:
        return BytesIO(self._read(*self._table.find(file)))

    def read_ahead(self, files: Sequence[str]) -> None:
        """Have the members fetched that are read next: the disk then serves them in an order of its own."""
        table = self._table
        for file in files:
            with suppress(BadImage):  # which open() raises again
                shard, offset, size = table.find(file)
                table.shards[shard].read_ahead(table.states[shard], offset, size)

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
                        f"{self._title}: {file} has no label: its shard has no {key_of(file)}.cls or .json, nor does "
                        "its path begin with a class"
                    )
            found[file] = label
        return found

    @property
    def _title(self) -> str:
        return title(self)  # type: ignore[arg-type]  # its subclasses have paths

    def _open_start(self, file: str) -> BinaryIO:
        shard, offset, size = self._table.find(file)
        return BytesIO(self._read(shard, offset, min(size, START_BYTES)))

    def _label(self, member: str) -> str | None:
        try:
            place = self._table.find(member)
        except BadImage:  # there is none
            return None
        try:
            content = self._read_label(*place)
        except BadImage as error:
            raise SourceError(f"{self._title}: the label in {member} cannot be read: {error}") from error
        if member.endswith(".cls"):
            return content.decode(errors="replace").strip()
        try:
            label = json.loads(content).get("label")
        except (ValueError, AttributeError) as error:
            raise SourceError(f"{self._title}: {member} is no JSON object") from error
        return label_text(label)

    def _read_label(self, shard: int, offset: int, size: int) -> bytes:
        return self._read(shard, offset, size)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        return self._table.shards[shard].read(self._table.states[shard], offset, size)

    @cached_property
    def _table(self) -> _Table:
        shards = tuple(self.shards())
        for one, other in pairwise(sorted(shards, key=lambda shard: shard.name)):
            if one.name == other.name:
                raise SourceError(f"{one} and {other} have the same name, which tells their images apart; rename one")
        return _merged(shards, self.indexes(shards))


def _merged(shards: tuple[Shard, ...], indexes: Sequence[TarIndex]) -> _Table:
    counts = [len(index.names) for index in indexes]
    rows = np.empty((sum(counts), 3), dtype=np.int64)
    rows[:, 0] = np.repeat(np.arange(len(shards)), counts)
    rows[:, 1] = np.concatenate([index.offsets for index in indexes])
    rows[:, 2] = np.concatenate([index.sizes for index in indexes])
    states = tuple(ShardState(index.bytes, index.mtime_ns, index.faults) for index in indexes)
    names = list(chain.from_iterable(index.names.all_encoded() for index in indexes))
    if all(map(lt, names, islice(names, 1, None))):
        starts = np.cumsum([0, *(len(index.names.joined) for index in indexes)])
        ends = np.concatenate([index.names.ends + start for index, start in zip(indexes, starts[:-1], strict=True)])
        joined = b"".join(index.names.joined for index in indexes)
        return _Table(shards, states, Names(joined, ends), rows, prefixed=False)
    prefixed = len(set(names)) < len(names)
    if prefixed:
        stems = [encoded(os.path.splitext(shard.name)[0]) for shard in shards]
        names = [b"%s/%s" % (stems[i], name) for i, name in zip(rows[:, 0], names, strict=True)]
    order = sorted(range(len(names)), key=names.__getitem__)
    return _Table(shards, states, Names.joined_from(names[i] for i in order), rows[order], prefixed)


def key_of(file: str) -> str:
    """Return the key that members share which belong together."""
    folder, slash, name = file.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"

"""WebDataset shards at an address: every image is read by itself, at its offset, and kept in the bounded cache."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

from bimkern import pieces
from bimkern.data.addresses import is_address
from bimkern.data.formats import BadImage
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.braces import expanded
from bimkern.data.sources.remote_files import RemoteFile, RemoteFiles, refuse_several_kinds
from bimkern.data.sources.sharded import COMPRESSED, SUFFIX, Shard, ShardedImages, ShardState
from bimkern.data.sources.tar import scan_far
from bimkern.data.sources.tar_index import TarIndex, read_far_index

_ASKED_AT_ONCE = 16  # shards, or labels
_LABELS = 64  # that a thread reads one after the other


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class RemoteShards(ShardedImages):
    """The images in tar files at addresses.

    Args:
        urls: tar files, and patterns of these (`*`, `{0000..0099}`, `{a,b}`).
        held_out: images to evaluate on.
    """

    urls: tuple[str, ...]
    paths: ClassVar[tuple[()]] = ()

    @classmethod
    def accepts(cls, place: str) -> bool:
        return is_address(place) and place.endswith((SUFFIX, *COMPRESSED))

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        for place in places:
            if place.endswith(COMPRESSED):
                raise SourceError(f"{place} is compressed, and cannot be read at any position; store it as a .tar file")
        refuse_several_kinds(places)
        return cls(urls=tuple(places))

    @property
    def title(self) -> str:
        return ", ".join(self.urls)

    def shards(self) -> "list[RemoteShard]":
        urls = [one for url in self.urls for one in expanded(url)]
        if not urls:
            raise SourceError(f"{self.title} names no file")
        return [RemoteShard(self._remote, file) for file in self._remote.named(urls)]

    def indexes(self, shards: Sequence[Shard]) -> list[TarIndex]:
        first = shards[0].index()  # alone: a server that ignores ranges sends all of it
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return [first, *pool.map(lambda shard: shard.index(), shards[1:])]

    def labels(self, files: Sequence[str]) -> dict[str, str]:
        """Return the label of every image, as on disk; they are read side by side."""
        found: dict[str, str] = {}
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            parts = [files[at : at + _LABELS] for at in range(0, len(files), _LABELS)]
            for labels in pool.map(super().labels, parts):
                found |= labels
        return found

    def _read_label(self, shard: int, offset: int, size: int) -> bytes:
        """Read a label, which is not kept: in the cache, each would be a file, of which the disk needs a block."""
        found = self._table.shards[shard]
        assert isinstance(found, RemoteShard)
        return found.remote.part(found.file, offset, size, keep=False)

    @cached_property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.urls[0])


@dataclass(frozen=True)
class RemoteShard:
    """A shard at an address."""

    remote: RemoteFiles
    file: RemoteFile

    def __str__(self) -> str:
        return self.remote.address(self.file.path)

    @property
    def name(self) -> str:
        return self.file.path.rpartition("/")[2]

    @property
    def origin(self) -> str:
        return str(self)

    def index(self) -> TarIndex:
        length = self.file.size
        assert length is not None

        def read(at: int, size: int) -> bytes:
            return self.remote.part(self.file, at, min(size, length - at), keep=False)

        try:
            return read_far_index(str(self), length, self.file.time, lambda: scan_far(read, length))
        except BadImage as error:
            raise SourceError(str(error)) from error

    def read(self, state: ShardState, offset: int, size: int) -> bytes:
        return self.remote.part(self.file, offset, size)

    def read_ahead(self, state: ShardState, offset: int, size: int) -> None:
        """Do nothing: a request would have to be waited for."""

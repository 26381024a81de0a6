"""Parquet files at an address: of each, its end is read when it is opened, and then one row group after the other."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Self

from bimkern import optional, pieces
from bimkern.data.addresses import is_address
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.braces import expanded
from bimkern.data.sources.file_rows import FileRows, errors_of
from bimkern.data.sources.parquet import ParquetRows
from bimkern.data.sources.remote_files import RemoteFile, RemoteFiles, refuse_several_kinds
from bimkern.data.sources.remote_reader import RemoteReader
from bimkern.data.sources.rows import Joined, RowImages, Rows

_PLACE = re.compile(r"(.*\.parquet)(?::([^:]+))?", re.IGNORECASE)


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class RemoteTables(RowImages):
    """The images in the rows of Parquet files at addresses, joined in the order of their names.

    Args:
        urls: the files, and patterns of these (`*`, `{0000..0099}`, `{a,b}`).
        key: the column of images; None: the only one.
        held_out: images to evaluate on.
    """

    urls: tuple[str, ...]
    key: str | None = None
    paths: ClassVar[tuple[()]] = ()

    @classmethod
    def accepts(cls, place: str) -> bool:
        return is_address(place) and _PLACE.fullmatch(place) is not None

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        refuse_several_kinds(places)
        parsed = [match.groups() for place in places if (match := _PLACE.fullmatch(place))]
        if len({key for _, key in parsed}) > 1:
            raise SourceError(f"{', '.join(places)}: all must have the same column, named after a colon")
        return cls(urls=tuple(str(url) for url, _ in parsed), key=parsed[0][1])

    @property
    def title(self) -> str:
        return ", ".join(self.urls)

    def open_rows(self) -> Rows:
        return Joined(
            [
                FileRows(self._remote.address(file.path), self._open(file), partial(_stamp_of, file))
                for file in self._files
            ]
        )

    def origin(self, file: str) -> Hashable:
        """Return the address of the file of an image, the column in that, and the row."""
        rows: Any = self._rows()
        origin: Hashable = rows.origin(self._number(file))
        return origin

    def files(self) -> dict[str, str | None]:
        vars(self).pop("_files", None)
        return super().files()

    def _open(self, file: RemoteFile) -> Rows:
        place = self._remote.address(file.path)
        try:
            with errors_of(place):
                return ParquetRows(place, self.key, RemoteReader(self._remote, file))
        except optional.Unusable as error:
            remedy = "pip install 'bimkern[parquet]'"
            raise SourceError(f"{place}: .parquet files need pyarrow ({error}); {remedy}") from error

    @cached_property
    def _files(self) -> list[RemoteFile]:
        """The files as they are listed, in the process that a loader's processes are forked from."""
        found = self._remote.named(one for url in self.urls for one in expanded(url))
        return sorted(found, key=lambda file: file.path)

    @cached_property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.urls[0])


def _stamp_of(file: RemoteFile) -> tuple[int, int]:
    assert file.size is not None
    return file.size, file.time

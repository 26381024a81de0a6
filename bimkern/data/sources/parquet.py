"""Parquet files with a column of encoded images.

The least that Parquet reads is the column of a row group; a few groups are kept. Images in random order therefore cost
a row group each: a hundred rows, as Hugging Face's datasets writes them, are bearable, many thousands are not.
"""

from collections import OrderedDict
from io import RawIOBase
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from bimkern import optional
from bimkern.data.sources.arrow import Columns, TableRows, field_of
from bimkern.data.sources.mapped import MappedFile
from bimkern.data.sources.per_process import PerProcess

_CACHED_BYTES = 128 << 20  # of a process
_numbers = count()  # of the files that were opened


class ParquetRows(TableRows):
    """The rows of a Parquet file; its pieces are the row groups."""

    def __init__(self, place: Path | str, key: str | None, opened: RawIOBase | None = None) -> None:
        """Open a path, or take what was opened at an address."""
        pyarrow_parquet: Any = optional.load("pyarrow.parquet")
        on_disk = opened is None
        self._file = pyarrow_parquet.ParquetFile(place if on_disk else opened, memory_map=on_disk)
        metadata = self._file.metadata
        lengths = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        folder = Path(place).parent if on_disk else None
        super().__init__(folder, Columns(str(place), key, self._file.schema_arrow), lengths)
        self._number, self._groups = next(_numbers), _groups()
        self._mapped = MappedFile(Path(place)) if on_disk else None
        self._lock = Lock()

    def piece(self, number: int) -> Any:
        with self._lock:  # a file of pyarrow is not for several threads
            group = self._groups.get(self._number, number)
            if group is None:
                if self._mapped is not None:
                    self._mapped.check()
                column = self._file.read_row_group(number, [self._columns.image], use_threads=False).column(0)
                group = column.combine_chunks()
                self._groups.put(self._number, number, group)
            return group

    def column(self, name: str) -> Any:
        column = self._file.read([name]).column(0)
        return field_of(column, name.rpartition(".")[2]) if "." in name else column


class _Groups:
    """The row groups of all files that were used last, for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, file: int, number: int) -> Any:
        with self._lock:
            if (file, number) in self._kept:
                self._kept.move_to_end((file, number))
            return self._kept.get((file, number))

    def put(self, file: int, number: int, group: Any) -> None:
        with self._lock:
            self._kept[file, number] = group
            self._bytes += group.nbytes
            while len(self._kept) > 1 and self._bytes > _CACHED_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


_groups = PerProcess(_Groups)

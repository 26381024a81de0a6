"""Parquet files with a column of encoded images.

The least that Parquet reads is the column of a row group; a few groups are kept. Images in random order therefore cost
a row group each: a hundred rows, as Hugging Face's datasets writes them, are bearable, many thousands are not.
"""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from bimkern import optional
from bimkern.data.sources.arrow import Columns, TableRows

_CACHED_BYTES = 128 << 20  # of a process


class ParquetRows(TableRows):
    """The rows of a Parquet file; its pieces are the row groups."""

    def __init__(self, path: Path, key: str | None) -> None:
        pyarrow_parquet: Any = optional.load("pyarrow.parquet")
        self._file = pyarrow_parquet.ParquetFile(path, memory_map=True)
        metadata = self._file.metadata
        lengths = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        super().__init__(path, Columns(path, key, self._file.schema_arrow), lengths)
        self._cached: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()

    def piece(self, number: int) -> Any:
        with self._lock:  # a file of pyarrow is not for several threads
            if number not in self._cached:
                column = self._file.read_row_group(number, [self._columns.image], use_threads=False).column(0)
                self._cached[number] = column.combine_chunks()
                while len(self._cached) > 1 and sum(kept.nbytes for kept in self._cached.values()) > _CACHED_BYTES:
                    self._cached.popitem(last=False)
            self._cached.move_to_end(number)
            return self._cached[number]

    def column(self, name: str) -> Any:
        column = self._file.read([name]).column(0)
        _, dot, inner = name.rpartition(".")
        return column.combine_chunks().field(inner) if dot else column

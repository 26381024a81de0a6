"""Parquet files with a column of encoded images.

The least that Parquet reads is the column of a row group; a few groups are kept. Images in random order therefore cost
a row group each: a hundred rows, as Hugging Face's datasets writes them, are bearable, many thousands are not.
"""

from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from bimkern import optional
from bimkern.data.sources.arrow import Columns, content_of, usable_names

_CACHED_BYTES = 128 << 20  # of a process


class ParquetRows:
    """The rows of a Parquet file."""

    def __init__(self, path: Path, key: str | None) -> None:
        pyarrow_parquet: Any = optional.load("pyarrow.parquet")
        self._folder = path.parent
        self._file = pyarrow_parquet.ParquetFile(path, memory_map=True)
        self._columns = Columns(path, key, self._file.schema_arrow)
        metadata = self._file.metadata
        groups = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self._starts = [0, *accumulate(groups)]
        self._cached: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()
        if self._columns.label is not None:
            self.label = self._label

    def __len__(self) -> int:
        return self._starts[-1]

    def names(self) -> list[str]:
        if self._columns.name is None:
            return []
        column = self._file.read([self._columns.name]).column(0).combine_chunks()
        return usable_names(column.field("path").to_pylist())

    def read(self, i: int) -> bytes:
        group = bisect_right(self._starts, i) - 1
        return content_of(self._group(group), i - self._starts[group], self._folder)

    def _label(self, i: int) -> str:
        return self._columns.class_of(self._labels[i].as_py())

    @cached_property
    def _labels(self) -> Any:
        return self._file.read([self._columns.label]).column(0)

    def _group(self, group: int) -> Any:
        """Return the images of a row group."""
        with self._lock:  # a file of pyarrow is not for several threads
            if group not in self._cached:
                column = self._file.read_row_group(group, [self._columns.image], use_threads=False).column(0)
                self._cached[group] = column.combine_chunks()
                while len(self._cached) > 1 and sum(kept.nbytes for kept in self._cached.values()) > _CACHED_BYTES:
                    self._cached.popitem(last=False)
            self._cached.move_to_end(group)
            return self._cached[group]
